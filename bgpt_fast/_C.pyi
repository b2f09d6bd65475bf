"""
C++ and CUDA parts of bgpt_fast
"""

from __future__ import annotations

import collections.abc
import typing

__all__: list[str] = [
    "CpuStatesOptions",
    "CpuStatesReleasedStream",
    "PackedByteDecoder",
    "PackedCache",
    "PackedTransformer",
    "best_isa",
    "bias_gelu",
    "bias_gelu_backward",
    "byte_accept",
    "byte_accept_cuda",
    "byte_decode_cuda",
    "byte_decode_rows",
    "cached_attention",
    "cpu_states_check_program",
    "cpu_states_disassemble",
    "cpu_states_faults",
    "cpu_states_find_invalid",
    "cpu_states_hash_programs",
    "cpu_states_instructions",
    "cpu_states_is_test",
    "cpu_states_pack",
    "cpu_states_run",
    "cpu_states_select",
    "cpu_states_sizes_cuda",
    "cpu_states_write",
    "cpu_states_write_cuda",
    "has_bf16_dot",
    "invariant_linear",
    "pack_patches",
    "patch_embed",
    "patch_embed_backward",
    "patch_embed_cuda",
    "patches_in_range",
    "persistent_room",
    "persistent_rows",
    "persistent_takes",
    "positions_in_range",
    "short_attention",
    "short_attention_backward",
    "short_attention_max_length",
    "with_cuda",
]

class PackedTransformer:
    def __init__(
        self, D: int, H: int, F: int, eps: typing.SupportsFloat | typing.SupportsIndex, precision: int
    ) -> None: ...
    def add_layer(
        self,
        addresses: typing.Annotated[
            collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], "FixedSize(12)"
        ],
    ) -> None: ...
    def features(
        self, cache: PackedCache, x: int, slots: int, positions: int, T: int, y: int, threads: int, isa: int
    ) -> None: ...
    def finish(self, ln_f_weight: int, ln_f_bias: int, wpe: int, positions: int) -> None: ...
    @property
    def nbytes(self) -> int: ...

class PackedCache:
    def __init__(self, transformer: PackedTransformer, slots: int, length: int) -> None: ...

class PackedByteDecoder:
    def __init__(self, transformer: PackedTransformer, wte: int, S: int) -> None: ...
    def decode(
        self,
        features: int,
        N: int,
        prefix_tokens: int,
        drafts: int,
        verify: int,
        max_tokens: int,
        rng_streams: int,
        byte_offsets: int,
        temperature: typing.SupportsFloat | typing.SupportsIndex,
        top_k: int,
        top_p: typing.SupportsFloat | typing.SupportsIndex,
        seed: int,
        tokens: int,
        counts: int,
        logits: int,
        threads: int,
        isa: int,
    ) -> None: ...

class CpuStatesOptions:
    def __init__(self, num_registers: int, memory_size: int, min_program: int, max_program: int) -> None: ...

class CpuStatesReleasedStream:
    def __init__(
        self, key: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], options: CpuStatesOptions
    ) -> None: ...
    def fill(self, out: int, capacity: int, offsets: int, count: int) -> int: ...
    def skip(self, count: int) -> None: ...

def best_isa() -> int: ...
def bias_gelu(x: int, bias: int, y: int, N: int, F: int, threads: int, isa: int) -> None: ...
def bias_gelu_backward(
    dy: int, x: int, bias: int, dx: int, dbias: int, N: int, F: int, threads: int, isa: int
) -> None: ...
def byte_accept(
    sizes: typing.Annotated[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], "FixedSize(3)"],
    addresses: typing.Annotated[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], "FixedSize(10)"],
) -> None: ...
def byte_accept_cuda(
    sizes: typing.Annotated[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], "FixedSize(3)"],
    addresses: typing.Annotated[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], "FixedSize(10)"],
    stream: int,
) -> None: ...
def byte_decode_cuda(
    sizes: typing.Annotated[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], "FixedSize(5)"],
    eps: typing.SupportsFloat | typing.SupportsIndex,
    dtype: int,
    weights: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    inputs: typing.Annotated[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], "FixedSize(6)"],
    sampling: tuple[
        typing.SupportsFloat | typing.SupportsIndex,
        typing.SupportsInt | typing.SupportsIndex,
        typing.SupportsFloat | typing.SupportsIndex,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    outputs: typing.Annotated[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], "FixedSize(4)"],
    stream: int,
) -> None: ...
def cached_attention(
    qkv: int,
    keys: int,
    values: int,
    slots: int,
    positions: int,
    y: int,
    T: int,
    H: int,
    d: int,
    L: int,
    B: int,
    threads: int,
    isa: int,
) -> None: ...
def cpu_states_check_program(program: bytes, num_registers: int, memory_size: int) -> tuple[int, int]: ...
def cpu_states_disassemble(program: bytes, num_registers: int, separator: str) -> str: ...
def cpu_states_find_invalid(
    data: int, offsets: int, count: int, num_registers: int, memory_size: int, threads: int
) -> int: ...
def cpu_states_hash_programs(
    data: int, offsets: int, count: int, num_registers: int, memory_size: int, hashes: int, threads: int
) -> None: ...
def cpu_states_is_test(hash: int) -> bool: ...
def cpu_states_pack(
    data: int, offsets: int, count: int, extension: bytes, S: int, patches: int, P: int, cu_seqlens: int, threads: int
) -> None: ...
def cpu_states_run(memory: bytes, values: bytes) -> bytes: ...
def cpu_states_select(
    options: CpuStatesOptions, seed: int, start: int, count: int, split: int, threads: int, indices: int, offsets: int
) -> int: ...
def cpu_states_sizes_cuda(
    options: CpuStatesOptions, seed: int, start: int, count: int, sizes: int, stream: int
) -> None: ...
def cpu_states_write(
    options: CpuStatesOptions, seed: int, indices: int, offsets: int, count: int, out: int, threads: int
) -> None: ...
def cpu_states_write_cuda(
    options: CpuStatesOptions,
    seed: int,
    start: int,
    count: int,
    offsets: int,
    out: int,
    capacity: int,
    in_test: int,
    stream: int,
) -> None: ...
def has_bf16_dot() -> bool: ...
def invariant_linear(
    x: int, weight: int, bias: int, y: int, M: int, K: int, N: int, gelu: bool, threads: int, isa: int
) -> None: ...
def pack_patches(
    extensions: collections.abc.Sequence[bytes | bytearray | memoryview],
    contents: collections.abc.Sequence[bytes | bytearray | memoryview],
    ends: collections.abc.Sequence[bool],
    S: int,
    patches: int,
    P: int,
    cu_seqlens: int,
    threads: int,
) -> None: ...
def patch_embed(
    patches: int,
    rows: int,
    bias: int,
    position_rows: int,
    positions: int,
    y: int,
    P: int,
    S: int,
    D: int,
    bf16: bool,
    threads: int,
) -> None: ...
def patch_embed_backward(dy: int, patches: int, rows: int, P: int, S: int, D: int, threads: int) -> None: ...
def patch_embed_cuda(
    patches: int,
    rows: int,
    bias: int,
    position_rows: int,
    positions: int,
    y: int,
    P: int,
    S: int,
    D: int,
    L: int,
    dtype: int,
    stream: int,
) -> None: ...
def patches_in_range(patches: int, count: int) -> bool: ...
def persistent_room(
    sizes: typing.Annotated[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], "FixedSize(5)"], N: int
) -> int: ...
def persistent_takes(
    sizes: typing.Annotated[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], "FixedSize(5)"],
) -> bool: ...
def positions_in_range(positions: int, count: int, L: int) -> bool: ...
def short_attention(
    q: int,
    k: int,
    v: int,
    stride: int,
    y: int,
    B: int,
    length: int,
    starts: int,
    H: int,
    d: int,
    bf16: bool,
    threads: int,
) -> None: ...
def short_attention_backward(
    dy: int,
    q: int,
    k: int,
    v: int,
    stride: int,
    dq: int,
    dk: int,
    dv: int,
    dstride: int,
    B: int,
    length: int,
    starts: int,
    H: int,
    d: int,
    bf16: bool,
    threads: int,
) -> None: ...

byte_decode_rows: int = 128
cpu_states_faults: tuple = (
    "none",
    "opcode",
    "operand_missing",
    "operand_surplus",
    "register_range",
    "pc_range",
    "no_halt",
)
cpu_states_instructions: list = [
    ("HLT", 0, 0),
    ("CLR", 0, 1),
    ("INC", 0, 1),
    ("DEC", 0, 1),
    ("SHL", 0, 1),
    ("SHR", 0, 1),
    ("ROL", 0, 1),
    ("ROR", 0, 1),
    ("NOT", 0, 1),
    ("PUSH", 1, 1),
    ("POP", 1, 1),
    ("LOADI", 1, 1),
    ("SWAP", 1, 2),
    ("ADD", 1, 3),
    ("SUB", 1, 3),
    ("MUL", 1, 3),
    ("DIV", 1, 3),
    ("AND", 1, 3),
    ("OR", 1, 3),
    ("XOR", 1, 3),
    ("MOV", 2, 2),
]
persistent_rows: int = 64
short_attention_max_length: int = 64
with_cuda: bool
