"""
C++ and CUDA parts of bgpt_fast
"""

from __future__ import annotations

import collections.abc
import typing

__all__: list[str] = [
    "CpuStatesOptions",
    "CpuStatesPythonStream",
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
    "byte_embed",
    "byte_embed_backward",
    "cached_attention",
    "cpu_states_check_program",
    "cpu_states_disassemble",
    "cpu_states_faults",
    "cpu_states_find_invalid",
    "cpu_states_hash_programs",
    "cpu_states_instructions",
    "cpu_states_is_eval",
    "cpu_states_pack",
    "cpu_states_run",
    "cpu_states_select",
    "cpu_states_sizes_cuda",
    "cpu_states_write",
    "cpu_states_write_cuda",
    "cross_entropy",
    "cross_entropy_backward",
    "has_bf16_dot",
    "invariant_linear",
    "is_intel",
    "layer_norm_backward",
    "layer_norm_forward",
    "matrix_product",
    "pack_patches",
    "patch_embed",
    "patch_embed_backward",
    "patch_embed_cuda",
    "patches_in_range",
    "persistent_rows",
    "persistent_supports",
    "persistent_workspace_size",
    "positions_in_range",
    "short_attention",
    "short_attention_backward",
    "short_attention_max_length",
    "symmetric_product",
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
    def __init__(self, transformer: PackedTransformer, wte: int, V: int, S: int) -> None: ...
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
        eop: int,
        fill: int,
        tokens: int,
        counts: int,
        logits: int,
        drafter: int,
        draft_features: int,
        drafted: int,
        threads: int,
        isa: int,
    ) -> None: ...
    @property
    def address(self) -> int: ...

class CpuStatesOptions:
    def __init__(
        self,
        num_registers: int,
        memory_size: int,
        min_program: int,
        max_program: int,
        small_values: typing.SupportsFloat | typing.SupportsIndex,
    ) -> None: ...

class CpuStatesPythonStream:
    def __init__(
        self, key: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], options: CpuStatesOptions
    ) -> None: ...
    def fill(self, out: int, capacity: int, offsets: int, count: int) -> int: ...
    def skip(self, count: int) -> None: ...

def best_isa() -> int: ...
def bias_gelu(x: int, bias: int, y: int, N: int, F: int, bf16: bool, threads: int, isa: int) -> None: ...
def bias_gelu_backward(
    dy: int, x: int, bias: int, dx: int, y: int, dbias: int, N: int, F: int, bf16: bool, threads: int, isa: int
) -> None: ...
def byte_accept(
    N: int,
    S: int,
    V: int,
    s: int,
    eop: int,
    logits: int,
    prefix_tokens: int,
    max_tokens: int,
    rng_streams: int,
    byte_offsets: int,
    sampling: int,
    tokens: int,
    counts: int,
    next_tokens: int,
    active: int,
) -> None: ...
def byte_accept_cuda(
    N: int,
    S: int,
    V: int,
    s: int,
    eop: int,
    logits: int,
    prefix_tokens: int,
    max_tokens: int,
    rng_streams: int,
    byte_offsets: int,
    sampling: int,
    tokens: int,
    counts: int,
    next_tokens: int,
    active: int,
    stream: int,
) -> None: ...
def byte_decode_cuda(
    D: int,
    H: int,
    F: int,
    S: int,
    layers: int,
    eps: typing.SupportsFloat | typing.SupportsIndex,
    dtype: int,
    weights: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    features: int,
    N: int,
    prefix_tokens: int,
    max_tokens: int,
    rng_streams: int,
    byte_offsets: int,
    temperature: typing.SupportsFloat | typing.SupportsIndex,
    top_k: int,
    top_p: typing.SupportsFloat | typing.SupportsIndex,
    seed: int,
    tokens: int,
    counts: int,
    workspace: int,
    arrived: int,
    stream: int,
) -> None: ...
def byte_embed(
    features: int,
    patches: int,
    wte: int,
    wpe: int,
    x: int,
    T: int,
    S: int,
    D: int,
    bf16: bool,
    tables_bf16: bool,
    threads: int,
    isa: int,
) -> None: ...
def byte_embed_backward(
    dx: int,
    patches: int,
    dfeatures: int,
    dwte: int,
    dwpe: int,
    T: int,
    S: int,
    D: int,
    bf16: bool,
    threads: int,
    isa: int,
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
def cpu_states_faults() -> list[str]: ...
def cpu_states_find_invalid(
    data: int, offsets: int, count: int, num_registers: int, memory_size: int, threads: int
) -> int: ...
def cpu_states_hash_programs(
    data: int, offsets: int, count: int, num_registers: int, memory_size: int, hashes: int, threads: int
) -> None: ...
def cpu_states_instructions() -> list[tuple[str, int, int]]: ...
def cpu_states_is_eval(hash: int) -> bool: ...
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
    in_eval: int,
    stream: int,
) -> None: ...
def cross_entropy(
    logits: int, targets: int, nats: int, lse: int, N: int, V: int, bf16: bool, threads: int, isa: int
) -> None: ...
def cross_entropy_backward(
    logits: int, targets: int, dnats: int, dlogits: int, N: int, V: int, bf16: bool, threads: int, isa: int
) -> None: ...
def has_bf16_dot() -> bool: ...
def invariant_linear(
    x: int, weight: int, bias: int, y: int, M: int, K: int, N: int, gelu: bool, threads: int, isa: int
) -> None: ...
def is_intel() -> bool: ...
def layer_norm_backward(
    dy: int,
    addend: int,
    total: int,
    dtotal: int,
    dx: int,
    weight: int,
    mean: int,
    rstd: int,
    dweight: int,
    dbias: int,
    dtotal_sum: int,
    N: int,
    D: int,
    y_bf16: bool,
    total_bf16: bool,
    threads: int,
    isa: int,
) -> None: ...
def layer_norm_forward(
    x: int,
    residual: int,
    total: int,
    y: int,
    weight: int,
    bias: int,
    mean: int,
    rstd: int,
    N: int,
    D: int,
    eps: typing.SupportsFloat | typing.SupportsIndex,
    y_bf16: bool,
    total_bf16: bool,
    threads: int,
    isa: int,
) -> None: ...
def matrix_product(
    a: int,
    a_row: int,
    a_column: int,
    b: int,
    b_row: int,
    b_column: int,
    bias: int,
    y: int,
    M: int,
    N: int,
    K: int,
    threads: int,
    isa: int,
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
    V: int,
    bf16: bool,
    threads: int,
    isa: int,
) -> None: ...
def patch_embed_backward(
    dy: int, patches: int, rows: int, P: int, S: int, D: int, V: int, bf16: bool, threads: int, isa: int
) -> None: ...
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
    V: int,
    L: int,
    dtype: int,
    stream: int,
) -> None: ...
def patches_in_range(patches: int, count: int, V: int) -> bool: ...
def persistent_supports(D: int, H: int, F: int, S: int, layers: int) -> bool: ...
def persistent_workspace_size(D: int, H: int, F: int, S: int, layers: int, N: int) -> int: ...
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
def symmetric_product(
    a: int,
    b: int,
    c: int,
    out: int,
    M: int,
    n: int,
    K: int,
    row_stride: int,
    column_stride: int,
    alpha: typing.SupportsFloat | typing.SupportsIndex,
    beta: typing.SupportsFloat | typing.SupportsIndex,
    diagonal: typing.SupportsFloat | typing.SupportsIndex,
    threads: int,
    isa: int,
) -> None: ...

byte_decode_rows: int = 128
persistent_rows: int = 64
short_attention_max_length: int = 64
with_cuda: bool
