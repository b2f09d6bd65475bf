"""The body of the persistent byte decoder on the host, several blocks and warps as threads, under the sanitizers."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from support.byte_decode import random_model, rows
from support.cpp import compile_driver
from support.paths import ROOT
from torch import Tensor

from bgpt_fast import BGPT, BGPTConfig
from bgpt_fast.config import VOCAB_SIZES
from bgpt_fast.generation.decoders.cpu import CpuWeights
from bgpt_fast.generation.decoders.cuda_layers import ByteWeights
from bgpt_fast.kernels.byte_decode.op import byte_decode
from bgpt_fast.kernels.byte_decode.sampling import Sampling, choose

GREEDY, SAMPLED = Sampling(), Sampling(temperature=0.9, top_k=40, top_p=0.95, seed=7)


class Decoded(NamedTuple):
    tokens: Tensor
    counts: Tensor
    logits: Tensor


class Shape(NamedTuple):
    """A byte decoder, and the blocks and warps that run it."""

    width: int
    heads: int
    patch_size: int
    layers: int = 2
    blocks: int = 3
    warps: int = 2

    @property
    def config(self) -> BGPTConfig:
        return BGPTConfig(self.patch_size, 4, self.width, 1, self.layers, num_heads=1, byte_num_heads=self.heads)


SHAPES = {
    "plain": Shape(64, 4, 6),
    "a width of 96, one head": Shape(96, 1, 4, warps=3),
    # Two groups of 3 heads, in segments of 144 inputs; three of one head each.
    "several groups of heads": Shape(288, 6, 2, layers=1, blocks=5, warps=6),
    "fewer blocks than groups": Shape(264, 3, 2, layers=1, blocks=2, warps=5),
    "more blocks than outputs": Shape(8, 1, 3, layers=1, blocks=11, warps=1),
}


def compiled(folder: Path, sanitizers: str) -> Path:
    sources = [ROOT / "csrc" / "byte_decode" / "persistent.cpp"]
    return compile_driver(folder, "byte_decode_on_host_driver", sources, "-O0", sanitizers=sanitizers)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("driver"), "address,undefined")


def raw(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def run(program: Path, mode: str, content: bytes, fault: str = "") -> tuple[bytes, str]:
    """The driver's output, empty where it failed, and its stderr."""
    source, output = program.parent / "input", program.parent / "output"
    source.write_bytes(content)
    output.unlink(missing_ok=True)
    command = [str(program), mode, str(source), str(output), fault]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return (output.read_bytes() if process.returncode == 0 else b""), process.stderr


def on_host(
    program: Path,
    model: BGPT,
    shape: Shape,
    call: dict[str, Tensor],
    sampling: Sampling = GREEDY,
    precision: str = "float32",
    fault: str = "",
) -> tuple[Decoded, str]:
    weights = ByteWeights(model, precision)
    N, S = call["prefix_tokens"].shape
    sizes = (weights.width, weights.heads, weights.hidden, S, len(weights.layers))
    content = struct.pack("<i5if3i", precision == "bfloat16", *sizes, weights.eps, N, shape.blocks, shape.warps)
    content += struct.pack("<dqdQ", sampling.temperature, sampling.top_k, sampling.top_p, sampling.seed)
    tensors = [tensor[:S] if tensor is weights.wpe else tensor for tensor in weights.tensors()]
    content += b"".join(map(raw, tensors))
    content += b"".join(
        raw(call[name]) for name in ("features", "prefix_tokens", "max_tokens", "rng_streams", "byte_offsets")
    )
    output, stderr = run(program, "decode", content, fault)
    ends = (2 * N * S, 2 * N * S + 8 * N)
    parts = (output[: ends[0]], output[ends[0] : ends[1]], output[ends[1] :])
    dtypes = (torch.int16, torch.int64, torch.float32)
    if not output:
        return Decoded(*(torch.empty(0, dtype=dtype) for dtype in dtypes)), stderr
    tokens, counts, logits = (
        torch.frombuffer(bytearray(part), dtype=dtype) for part, dtype in zip(parts, dtypes, strict=True)
    )
    return Decoded(tokens.view(N, S), counts, logits.view(N, S, 257)), stderr


def test_logits_are_right_and_tokens_follow_from_them(program: Path) -> None:
    """Against float64: float32 errs at most twice as much as the model's float32, bfloat16 as its bfloat16."""
    for seed, (shape, precision, count) in enumerate(
        [
            (SHAPES["plain"], "float32", 3),
            (SHAPES["plain"], "bfloat16", 1),
            (SHAPES["a width of 96, one head"], "float32", 9),
            (SHAPES["several groups of heads"], "bfloat16", 2),
            (SHAPES["fewer blocks than groups"], "float32", 1),
            (SHAPES["more blocks than outputs"], "float32", 5),
        ]
    ):
        with torch.no_grad():
            config, S = shape.config, shape.patch_size
            model = random_model(config, seed)
            call = rows(config, count, seed)
            sampling = (GREEDY, SAMPLED)[seed % 2]
            decoded, stderr = on_host(program, model, shape, call, sampling, precision)
            assert not stderr
            # Teacher-forced by the written tokens; after the end nothing was computed.
            computed = torch.arange(S) < decoded.counts[:, None]
            assert torch.equal(decoded.logits.isfinite().all(2), computed)
            exact = random_model(config, seed).double().byte_level_decoder
            exact_logits = exact.logits(call["features"].double(), decoded.tokens)
            dtype = torch.float32 if precision == "float32" else torch.bfloat16
            plain = model.to(dtype).byte_level_decoder.logits(call["features"].to(dtype), decoded.tokens)
            errors = [(logits.double() - exact_logits)[computed].abs().max() for logits in (decoded.logits, plain)]
            assert errors[0] <= 2 * errors[1] + 1e-6 * exact_logits.std()
            check_tokens(call, decoded, sampling)


def check_tokens(call: dict[str, Tensor], decoded: Decoded, sampling: Sampling) -> None:
    """Each token is the prefix's, or the one that the CPU samples from the same logits; rows end where they must."""
    limits = zip(call["prefix_tokens"].tolist(), call["max_tokens"].tolist(), strict=True)
    for n, (prefix_tokens, max_tokens) in enumerate(limits):
        count = int(decoded.counts[n])
        ended = False
        for s in range(count):
            assert not ended
            byte_offset = int(call["byte_offsets"].view(torch.int64)[n]) + s
            rng_stream = int(call["rng_streams"].view(torch.int64)[n])
            (sampled,) = choose(decoded.logits[n, s : s + 1], sampling, [rng_stream], [byte_offset])
            token = prefix_tokens[s] if prefix_tokens[s] >= 0 else sampled
            assert int(decoded.tokens[n, s]) == token
            ended = prefix_tokens[s] < 0 and token == 256
        assert ended or count == max_tokens
        assert bool((decoded.tokens[n, count:] == 256).all())


def test_it_writes_what_the_cpu_decoder_writes(program: Path) -> None:
    """With these seeds no two logits are so close that rounding decides."""
    shape = SHAPES["plain"]
    model = random_model(shape.config)
    for seed, sampling in enumerate((GREEDY, SAMPLED)):
        call = rows(shape.config, 4, seed)
        decoded, _ = on_host(program, model, shape, call, sampling)
        expected = byte_decode(CpuWeights(model, "float32").byte_decoder, **call, sampling=sampling)
        assert torch.equal(decoded.tokens, expected.tokens)
        assert torch.equal(decoded.counts, expected.counts)


def test_a_row_does_not_depend_on_the_others(program: Path) -> None:
    """The same bits with other rows, in another row, with attention joined or not, on other blocks and warps."""
    shape = SHAPES["several groups of heads"]
    model, call = random_model(shape.config), rows(shape.config, 9, 3)
    together, _ = on_host(program, model, shape, call, SAMPLED)
    for chosen_rows, blocks, warps in (([8], 5, 6), ([7, 2], 7, 11), ([3, 8, 0], 1, 6)):
        fewer_rows = {name: torch.stack([value[n] for n in chosen_rows]) for name, value in call.items()}
        decoded, stderr = on_host(program, model, shape._replace(blocks=blocks, warps=warps), fewer_rows, SAMPLED)
        assert not stderr
        for part, all_rows in zip(decoded, together, strict=True):
            torch.testing.assert_close(part, all_rows[chosen_rows], rtol=0, atol=0, equal_nan=True)


def test_damaged_weights_are_reported(program: Path) -> None:
    shape = SHAPES["a width of 96, one head"]
    model, call = random_model(shape.config), rows(shape.config, 3)
    with torch.no_grad():
        model.byte_level_decoder.base.transformer.wte.weight[5] = torch.inf
    decoded, _ = on_host(program, model, shape, call)
    assert decoded.counts.tolist() == [-1] * 3


def test_a_damaged_row_changes_no_other(program: Path) -> None:
    """It has no token, and takes part until the others end."""
    shape = SHAPES["plain"]
    model, call = random_model(shape.config), rows(shape.config, 4)
    right, _ = on_host(program, model, shape, call)
    call["features"][1] = torch.nan
    call["prefix_tokens"][1] = -1
    decoded, stderr = on_host(program, model, shape, call)
    assert not stderr
    assert right.counts.max() > 1
    for damaged, others in zip(decoded, right, strict=True):
        torch.testing.assert_close(damaged[[0, 2, 3]], others[[0, 2, 3]], rtol=0, atol=0, equal_nan=True)
    assert decoded.counts[1] == -1


def test_injected_faults_are_detected(program: Path) -> None:
    shape = SHAPES["plain"]
    model, call = random_model(shape.config), rows(shape.config, 3)
    right, _ = on_host(program, model, shape, call)
    _, stderr = on_host(program, model, shape, call, fault="overrun")
    assert "AddressSanitizer" in stderr
    unsynchronised, _ = on_host(program, model, shape, call, fault="barrier")
    assert not torch.equal(unsynchronised.counts, right.counts), "blocks that do not wait read old values"
    with torch.no_grad():
        model.byte_level_decoder.base.transformer.h[1].mlp.c_proj.bias[3] += 1
    wrong, _ = on_host(program, model, shape, call)
    assert not torch.allclose(wrong.logits, right.logits, equal_nan=True)


def samplings() -> Iterator[Sampling]:
    yield from (Sampling(), Sampling(temperature=1.0, seed=2**64 - 1), Sampling(temperature=0.3, seed=5))
    yield from (Sampling(temperature=2.0, top_k=k, seed=k) for k in (1, 2, 256, 257, 1000))
    yield from (Sampling(temperature=1.5, top_p=p) for p in (1e-9, 0.1, 0.5, 0.999))
    yield Sampling(temperature=0.7, top_k=30, top_p=0.8, seed=9)


@pytest.mark.parametrize("V", VOCAB_SIZES)
def test_a_warp_samples_what_the_cpu_samples(program: Path, V: int) -> None:
    stream = torch.Generator().manual_seed(0)
    logits = torch.randn(40, V, generator=stream) * torch.linspace(0.1, 20, 40)[:, None]
    logits[5] = 0.0
    logits[6, 100:] = -1e30
    logits[7] = logits[7].round()  # many ties
    logits[8, V - 1] = logits[8].max()
    indices = torch.randint(0, 2**62, (40,), generator=stream)
    positions = torch.randint(0, 2**40, (40,), generator=stream)
    for sampling in samplings():
        head = struct.pack("<iqdqdQ", V, 40, sampling.temperature, sampling.top_k, sampling.top_p, sampling.seed)
        output, stderr = run(program, "choose", head + raw(logits) + raw(indices) + raw(positions))
        assert not stderr
        expected = choose(logits, sampling, indices.tolist(), positions.tolist())
        assert torch.frombuffer(bytearray(output), dtype=torch.int32).tolist() == expected
    for bad in (torch.nan, torch.inf, -torch.inf):
        damaged = logits[:1].clone()
        damaged[0, V - 1] = bad
        output, _ = run(program, "choose", struct.pack("<iqdqdQ", V, 1, 1.0, 0, 1.0, 0) + raw(damaged) + bytes(16))
        assert output == struct.pack("<i", -1)


@pytest.mark.slow
def test_threads_do_not_race(tmp_path: Path) -> None:
    program = compiled(tmp_path, "thread")
    for shape in SHAPES.values():
        for count in (1, 9):
            model, call = random_model(shape.config), rows(shape.config, count)
            decoded, stderr = on_host(program, model, shape, call, SAMPLED)
            assert not stderr
            assert len(decoded.counts) == count
    shape = SHAPES["plain"]
    _, stderr = on_host(program, random_model(shape.config), shape, rows(shape.config, 1), fault="barrier")
    assert "ThreadSanitizer" in stderr
