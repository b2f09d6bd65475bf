"""The engines of the byte decoder on a GPU: whether they give the same bytes as the CPU, and their speed; for the
batch-invariant engine, also whether a patch's bits are the same in every batch, and the cost of that.

On a CPU the graphs' functions run one by one, and the persistent kernel, which needs a GPU, is left out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from typing import Any

import torch

from benchmarks.op_measure import WrongResultError, mismatch, wrong_result
from benchmarks.timing import measure
from bgpt_fast import BGPT, BGPTConfig
from bgpt_fast.generation.decoders.cpu import CpuDecoder, CpuWeights
from bgpt_fast.generation.decoders.cuda import PERSISTENT_ROWS, CudaWeights, GraphedByteDecoder, begin_persistent
from bgpt_fast.generation.decoders.request import DecodeRequest, DecodeResult
from bgpt_fast.kernels.byte_decode.op import PERSISTENT_MAX_ROWS
from bgpt_fast.kernels.byte_decode.sampling import Sampling

Write = Callable[[DecodeRequest], DecodeResult]

SAMPLINGS = {"greedy": Sampling(), "sampled": Sampling(temperature=0.9, top_k=40, top_p=0.95, seed=7)}
SMALL = BGPTConfig(patch_length=8, hidden_size=64, patch_num_layers=1, byte_num_layers=2, num_heads=1, byte_num_heads=4)


def engines_of(weights: CudaWeights, count: int) -> dict[str, Write]:
    """The engines that can decode `count` patches at once, by name."""
    invariant = GraphedByteDecoder(weights.byte, weights.record, batch_invariant=True)
    engines: dict[str, Write] = {"graphed": weights.graphed.write, "invariant": invariant.write}
    if weights.has_persistent_kernel and count <= PERSISTENT_MAX_ROWS:
        engines["persistent"] = lambda request: begin_persistent(weights.byte, request).wait()
    return engines


def random_request(
    config: BGPTConfig, count: int, seed: int, sampling: Sampling = SAMPLINGS["greedy"]
) -> DecodeRequest:
    """A request for patches with prefixes and limits of several lengths; the features are on the CPU."""
    stream = torch.Generator().manual_seed(seed)
    S = config.patch_size
    max_tokens = torch.randint(1, S + 1, (count,), generator=stream)
    tokens = torch.randint(0, 256, (count, S), generator=stream, dtype=torch.int16)
    prefix = torch.randint(0, S // 2 + 1, (count, 1), generator=stream)
    streams = torch.arange(count)
    return DecodeRequest(
        prefix_tokens=tokens.masked_fill(torch.arange(S) >= prefix, -1),
        max_tokens=max_tokens,
        features=torch.randn(count, config.hidden_size, generator=stream),
        rng_streams=streams.to(torch.uint64),
        byte_offsets=(16 * streams).to(torch.uint64),
        sampling=sampling,
    )


def wrong_bytes(what: str, result: DecodeResult, expected: DecodeResult) -> WrongResultError | None:
    """The error for other tokens than expected, with the first of them; None if they are equal."""
    pairs = ("tokens", result.tokens, expected.tokens), ("counts", result.counts, expected.counts)
    wrong = [item for name, ours, theirs in pairs if (item := mismatch(name, ours, theirs, 0.0)) is not None]
    return wrong_result(what, wrong) if wrong else None


def check_bytes(device: torch.device, record: Any = None, engines: Collection[str] | None = None) -> dict[str, Any]:
    """Compares greedy and sampled bytes of the engines, in float32 on a small model, with the CPU's, in batches of
    several sizes; `engines` None means all that this device has.

    Raises:
        RuntimeError: the device does not have one of `engines`.
        WrongResultError: they differ. Other seeds may give near ties that rounding decides; these seeds give none.
    """
    model = small_model()
    cpu = CpuDecoder(CpuWeights(model, "float32"), 1, 8)
    weights = CudaWeights(model.to(device), "float32", record)
    checked: dict[str, int] = {}
    with torch.inference_mode():
        for count in (1, 2, 3, 9, 33, 70):
            for how, sampling in SAMPLINGS.items():
                request = random_request(SMALL, count, count, sampling)
                expected = cpu.write(request)
                request = request._replace(features=request.features.to(device))
                for name, write in engines_of(weights, count).items():
                    if engines is not None and name not in engines:
                        continue
                    what = f"{name}, {how}, {count} patches: other bytes than the CPU's"
                    if error := wrong_bytes(what, write(request), expected):
                        raise error
                    checked[name] = checked.get(name, 0) + count
    if missing := set(engines or ()) - checked.keys():
        raise RuntimeError(f"this device or build has no engine {', '.join(sorted(missing))}")
    return {"engines": sorted(checked), "patches": sum(checked.values())}


def small_model() -> BGPT:
    """A small random model whose probabilities depend on all of its input."""
    torch.manual_seed(0)
    model = BGPT(SMALL).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3).add_(0.05 * torch.randn_like(parameter))
    return model


def check_bits(device: torch.device, record: Any = None) -> dict[str, int]:
    """`check_alone` in each batch-invariant precision of the device; bfloat16 only on a GPU."""
    precisions = ("float32", "bfloat16") if device.type == "cuda" else ("float32",)
    return {precision: check_alone(device, precision, record) for precision in precisions}


@torch.inference_mode()
def check_alone(device: torch.device, precision: str, record: Any = None, *, batch_invariant: bool = True) -> int:
    """Compares the logits' bits and the bytes of 128 patches at once with those in batches of 1, 2, 3, 7 and 64.

    Returns:
        How many patches were compared.

    Raises:
        WrongResultError: the bits or bytes of a patch differ.
    """
    weights = CudaWeights(small_model().to(device), precision, record).byte
    engine = GraphedByteDecoder(weights, record, batch_invariant=batch_invariant)
    request = random_request(SMALL, 128, 5, SAMPLINGS["sampled"])
    request = request._replace(features=request.features.to(device))
    tokens = request.prefix_tokens.clamp(min=0).to(device)
    together = engine.write(request), engine.logits(request.features, tokens, SMALL.patch_size)
    compared = 0
    for size in (1, 2, 3, 7, 64):
        for first in range(0, min(3 * size, 128), size):
            part = slice(first, first + size)
            compared += size
            where = f"in a batch of {size} than of 128"
            expected = DecodeResult(together[0].tokens[part], together[0].counts[part])
            error = wrong_bytes(
                f"{precision}, patches {first}…: other bytes {where}", engine.write(part_of(request, part)), expected
            )
            if error is not None:
                raise error
            logits = engine.logits(request.features[part], tokens[part], SMALL.patch_size)
            if wrong := mismatch("logits", logits, together[1][part], 0.0):
                raise wrong_result(f"{precision}, patches {first}…: other bits {where}", [wrong])
    return compared


def part_of(request: DecodeRequest, part: slice) -> DecodeRequest:
    """The request for a slice of its patches."""
    return DecodeRequest(*(value[part] if isinstance(value, torch.Tensor) else value for value in request))


def measure_engines(
    config: BGPTConfig, count: int, device: torch.device, precision: str, seconds: float, record: Any = None
) -> dict[str, Any]:
    """Bytes per second of each engine, by name, decoding `count` patches at once.

    `batch_invariant_cost` is the time of the batch-invariant engine divided by that of the engine `Generator` chooses.
    """
    torch.manual_seed(0)
    weights = CudaWeights(BGPT(config).eval().to(device), precision, record)
    # No prefix. Random weights end about one patch in 16, which makes no engine faster or slower.
    request = DecodeRequest(
        features=torch.randn(count, config.hidden_size, device=device),
        prefix_tokens=torch.full((count, config.patch_size), -1, dtype=torch.int16),
        max_tokens=torch.full((count,), config.patch_size),
        rng_streams=torch.arange(count).to(torch.uint64),
        byte_offsets=torch.zeros(count, dtype=torch.uint64),
        sampling=SAMPLINGS["sampled"],
    )
    with torch.inference_mode():
        results: dict[str, Any] = {"persistent_rows": PERSISTENT_ROWS, "precision": precision}
        for name, write in engines_of(weights, count).items():
            timing = measure(functools.partial(write, request), device, seconds=seconds)
            results[name] = {**timing._asdict(), "bytes_per_s": count * config.patch_size / timing.median}
    usual = "persistent" if count <= PERSISTENT_ROWS and "persistent" in results else "graphed"
    results["batch_invariant_cost"] = results["invariant"]["median"] / results[usual]["median"]
    return results
