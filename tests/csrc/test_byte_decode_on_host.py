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
        return BGPTConfig(
            patch_size=self.patch_size,
            patch_length=4,
            hidden_size=self.width,
            patch_num_layers=1,
            byte_num_layers=self.layers,
            num_heads=1,
            byte_num_heads=self.heads,
        )


SHAPES = {
    "plain": Shape(64, 4, 6),
    "a width of 96, one head": Shape(96, 1, 4, warps=3),
    # Two groups of 3 heads, in segments of 144 inputs; three of one head each.
    "several groups of heads": Shape(288, 6, 2, layers=1, blocks=5, warps=6),
    "fewer blocks than groups": Shape(264, 3, 2, layers=1, blocks=2, warps=5),
    "more blocks than outputs": Shape(8, 1, 3, layers=1, blocks=11, warps=1),
}


def built(folder: Path, sanitizers: str) -> Path:
    sources = [ROOT / "csrc" / "byte_decode" / "persistent.cpp"]
    return compile_driver(folder, "byte_decode_on_host_driver", sources, "-O0", sanitizers=sanitizers)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("driver"), "address,undefined")


def raw(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def run(program: Path, what: str, content: bytes, fault: str = "") -> tuple[bytes, str]:
    """What the driver wrote, and its complaints."""
    given, found = program.parent / "given", program.parent / "found"
    given.write_bytes(content)
    found.unlink(missing_ok=True)
    command = [str(program), what, str(given), str(found), fault]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return (found.read_bytes() if done.returncode == 0 else b""), done.stderr


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
    found, complaints = run(program, "decode", content, fault)
    ends = (2 * N * S, 2 * N * S + 8 * N)
    parts = (found[: ends[0]], found[ends[0] : ends[1]], found[ends[1] :])
    dtypes = (torch.int16, torch.int64, torch.float32)
    if not found:
        return Decoded(*(torch.empty(0, dtype=dtype) for dtype in dtypes)), complaints
    tokens, counts, logits = (
        torch.frombuffer(bytearray(part), dtype=dtype) for part, dtype in zip(parts, dtypes, strict=True)
    )
    return Decoded(tokens.view(N, S), counts, logits.view(N, S, 257)), complaints


def test_logits_are_right_and_tokens_follow_from_them(program: Path) -> None:
    """Against float64: float32 errs at most twice as much as the model's own float32, bfloat16 as its bfloat16."""
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
            found, complaints = on_host(program, model, shape, call, sampling, precision)
            assert not complaints
            # Teacher-forced by what was written; behind the end nothing was computed.
            computed = torch.arange(S) < found.counts[:, None]
            assert torch.equal(found.logits.isfinite().all(2), computed)
            exact = random_model(config, seed).double().byte_level_decoder
            exact_logits = exact.logits(call["features"].double(), found.tokens)
            dtype = torch.float32 if precision == "float32" else torch.bfloat16
            plain = model.to(dtype).byte_level_decoder.logits(call["features"].to(dtype), found.tokens)
            errors = [(logits.double() - exact_logits)[computed].abs().max() for logits in (found.logits, plain)]
            assert errors[0] <= 2 * errors[1] + 1e-6 * exact_logits.std()
            check_tokens(call, found, sampling)


def check_tokens(call: dict[str, Tensor], found: Decoded, sampling: Sampling) -> None:
    """Each token is what is given, or what the CPU's sampling takes from the same logits; rows end where they must."""
    for n, (given, room) in enumerate(zip(call["prefix_tokens"].tolist(), call["max_tokens"].tolist(), strict=True)):
        count = int(found.counts[n])
        ended = False
        for s in range(count):
            assert not ended
            position = int(call["byte_offsets"].view(torch.int64)[n]) + s
            index = int(call["rng_streams"].view(torch.int64)[n])
            (own,) = choose(found.logits[n, s : s + 1], sampling, [index], [position])
            token = given[s] if given[s] >= 0 else own
            assert int(found.tokens[n, s]) == token
            ended = given[s] < 0 and token == 256
        assert ended or count == room
        assert bool((found.tokens[n, count:] == 256).all())


def test_it_writes_what_the_engine_of_the_cpu_writes(program: Path) -> None:
    """No near tie of these seeds falls within rounding."""
    shape = SHAPES["plain"]
    model = random_model(shape.config)
    for seed, sampling in enumerate((GREEDY, SAMPLED)):
        call = rows(shape.config, 4, seed)
        found, _ = on_host(program, model, shape, call, sampling)
        expected = byte_decode(CpuWeights(model, "float32").byte_decoder, **call, sampling=sampling)
        assert torch.equal(found.tokens, expected.tokens)
        assert torch.equal(found.counts, expected.counts)


def test_a_row_is_alone(program: Path) -> None:
    """The same bits in other company, in another row, with attention joined or not, by other blocks and warps."""
    shape = SHAPES["several groups of heads"]
    model, call = random_model(shape.config), rows(shape.config, 9, 3)
    whole, _ = on_host(program, model, shape, call, SAMPLED)
    for picked, blocks, warps in (([8], 5, 6), ([7, 2], 7, 11), ([3, 8, 0], 1, 6)):
        own = {name: torch.stack([value[n] for n in picked]) for name, value in call.items()}
        found, complaints = on_host(program, model, shape._replace(blocks=blocks, warps=warps), own, SAMPLED)
        assert not complaints
        for part, all_rows in zip(found, whole, strict=True):
            torch.testing.assert_close(part, all_rows[picked], rtol=0, atol=0, equal_nan=True)


def test_damaged_weights_are_told(program: Path) -> None:
    shape = SHAPES["a width of 96, one head"]
    model, call = random_model(shape.config), rows(shape.config, 3)
    with torch.no_grad():
        model.byte_level_decoder.base.transformer.wte.weight[5] = torch.inf
    found, _ = on_host(program, model, shape, call)
    assert found.counts.tolist() == [-1] * 3


def test_a_damaged_row_harms_no_other(program: Path) -> None:
    """It has no token, and is carried along as long as others go on."""
    shape = SHAPES["plain"]
    model, call = random_model(shape.config), rows(shape.config, 4)
    right, _ = on_host(program, model, shape, call)
    call["features"][1] = torch.nan
    call["prefix_tokens"][1] = -1
    found, complaints = on_host(program, model, shape, call)
    assert not complaints
    assert right.counts.max() > 1
    for damaged, others in zip(found, right, strict=True):
        torch.testing.assert_close(damaged[[0, 2, 3]], others[[0, 2, 3]], rtol=0, atol=0, equal_nan=True)
    assert found.counts[1] == -1


def test_faults_are_noticed(program: Path) -> None:
    shape = SHAPES["plain"]
    model, call = random_model(shape.config), rows(shape.config, 3)
    right, _ = on_host(program, model, shape, call)
    _, complaints = on_host(program, model, shape, call, fault="overrun")
    assert "AddressSanitizer" in complaints
    lawless, _ = on_host(program, model, shape, call, fault="barrier")
    assert not torch.equal(lawless.counts, right.counts), "blocks that do not wait for one another read nothing"
    with torch.no_grad():
        model.byte_level_decoder.base.transformer.h[1].mlp.c_proj.bias[3] += 1
    wrong, _ = on_host(program, model, shape, call)
    assert not torch.allclose(wrong.logits, right.logits, equal_nan=True)


def samplings() -> Iterator[Sampling]:
    yield from (Sampling(), Sampling(temperature=1.0, seed=2**64 - 1), Sampling(temperature=0.3, seed=5))
    yield from (Sampling(temperature=2.0, top_k=k, seed=k) for k in (1, 2, 256, 257, 1000))
    yield from (Sampling(temperature=1.5, top_p=p) for p in (1e-9, 0.1, 0.5, 0.999))
    yield Sampling(temperature=0.7, top_k=30, top_p=0.8, seed=9)


def test_a_warp_chooses_what_the_cpu_chooses(program: Path) -> None:
    stream = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 257, generator=stream) * torch.linspace(0.1, 20, 40)[:, None]
    logits[5] = 0.0
    logits[6, 100:] = -1e30
    logits[7] = logits[7].round()  # many ties
    logits[8, 256] = logits[8].max()
    indices = torch.randint(0, 2**62, (40,), generator=stream)
    positions = torch.randint(0, 2**40, (40,), generator=stream)
    for sampling in samplings():
        head = struct.pack("<qdqdQ", 40, sampling.temperature, sampling.top_k, sampling.top_p, sampling.seed)
        found, complaints = run(program, "choose", head + raw(logits) + raw(indices) + raw(positions))
        assert not complaints
        expected = choose(logits, sampling, indices.tolist(), positions.tolist())
        assert torch.frombuffer(bytearray(found), dtype=torch.int32).tolist() == expected
    for bad in (torch.nan, torch.inf, -torch.inf):
        spoiled = logits[:1].clone()
        spoiled[0, 256] = bad
        found, _ = run(program, "choose", struct.pack("<qdqdQ", 1, 1.0, 0, 1.0, 0) + raw(spoiled) + bytes(16))
        assert found == struct.pack("<i", -1)


@pytest.mark.slow
def test_threads_race_nowhere(tmp_path: Path) -> None:
    program = built(tmp_path, "thread")
    for shape in SHAPES.values():
        for count in (1, 9):
            model, call = random_model(shape.config), rows(shape.config, count)
            found, complaints = on_host(program, model, shape, call, SAMPLED)
            assert not complaints
            assert len(found.counts) == count
    shape = SHAPES["plain"]
    _, complaints = on_host(program, random_model(shape.config), shape, rows(shape.config, 1), fault="barrier")
    assert "ThreadSanitizer" in complaints
