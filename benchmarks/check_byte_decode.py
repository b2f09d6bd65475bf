"""The engines of the byte decoder on a GPU: that they write what the CPU writes, which is faster where, and the
batch-invariant one: that a patch's bits are its own, and what that costs.

On a CPU the graphs' functions run one by one, and the persistent kernel, which is a GPU's, is left out.
"""

from __future__ import annotations

from typing import Any

import torch
from timing import measure

from bgpt_fast import BGPT, BGPTConfig
from bgpt_fast.generation.fused import CpuDecoder, PackedModel
from bgpt_fast.generation.graphed import GraphedByteDecoder
from bgpt_fast.generation.on_device import PERSISTENT_ROWS, DeviceModel
from bgpt_fast.generation.persistent import MOST_ROWS
from bgpt_fast.generation.sampling import Sampling
from bgpt_fast.generation.writing import DecodeRequest

SAMPLINGS = {"greedy": Sampling(), "sampled": Sampling(temperature=0.9, top_k=40, top_p=0.95, seed=7)}
SMALL = BGPTConfig(patch_length=8, hidden_size=64, patch_num_layers=1, byte_num_layers=2, num_heads=1, byte_num_heads=4)


class OtherBytesError(RuntimeError):
    """An engine wrote other bytes than the CPU's, or than itself in another batch."""


def engines_of(model: DeviceModel) -> dict[str, Any]:
    """The engines, by name."""
    found: dict[str, Any] = {"graphed": model.graphed, "invariant": invariant_engine(model)}
    if model.persistent is not None:
        found["persistent"] = model.persistent
    return found


def engines_for(engines: dict[str, Any], count: int) -> dict[str, Any]:
    """Those that can write so many patches at once."""
    return {name: engine for name, engine in engines.items() if name != "persistent" or count <= MOST_ROWS}


def invariant_engine(model: DeviceModel) -> GraphedByteDecoder:
    """The batch-invariant engine over the same weights."""
    return GraphedByteDecoder(model.bytes, model.record, batch_invariant=True)


def patches_to_write(config: BGPTConfig, count: int, seed: int) -> tuple[torch.Tensor, DecodeRequest]:
    """Features float32 [N, D] on the CPU, and patches of which some bytes are given and some rows are cut."""
    stream = torch.Generator().manual_seed(seed)
    S = config.patch_size
    room = torch.randint(1, S + 1, (count,), generator=stream)
    given = torch.randint(0, 256, (count, S), generator=stream, dtype=torch.int16)
    known = torch.randint(0, S // 2 + 1, (count, 1), generator=stream)
    given = given.masked_fill(torch.arange(S) >= known, -1)
    features = torch.randn(count, config.hidden_size, generator=stream)
    return features, DecodeRequest(given, room, None, None, list(range(count)), [16 * n for n in range(count)])


def check_bytes(device: torch.device, record: Any = None) -> dict[str, Any]:
    """Greedy and sampled bytes of the engines, in float32 on a small model, against the CPU's; in batches of several
    sizes, where a row must not depend on its company.

    Raises:
        OtherBytesError: they differ. With other seeds a near tie may fall within rounding; with these none does.
    """
    model = decided_model()
    cpu = CpuDecoder(PackedModel(model, "float32"), 1, 8)
    on_device = DeviceModel(model.to(device), "float32", record)
    engines = engines_of(on_device)
    checked = 0
    with torch.inference_mode():
        for count in (1, 2, 3, 9, 33, 70):
            features, writing = patches_to_write(SMALL, count, count)
            for how, sampling in SAMPLINGS.items():
                expected = cpu.write(features, writing, sampling)
                for name, engine in engines_for(engines, count).items():
                    if engine.write(features.to(device), writing, sampling) != expected:
                        raise OtherBytesError(f"{name}, {how}, {count} patches: other bytes than the CPU's")
                    checked += count
    return {"engines": sorted(engines), "patches": checked}


def decided_model() -> BGPT:
    """A small random model whose probabilities depend on all that it sees."""
    torch.manual_seed(0)
    model = BGPT(SMALL).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3).add_(0.05 * torch.randn_like(parameter))
    return model


def check_bits(device: torch.device, record: Any = None) -> dict[str, int]:
    """`check_alone` in each precision that promises it on the device: attention over bfloat16 is a GPU's."""
    precisions = ("float32", "bfloat16") if device.type == "cuda" else ("float32",)
    return {precision: check_alone(device, precision, record) for precision in precisions}


@torch.inference_mode()
def check_alone(device: torch.device, precision: str, record: Any = None, *, batch_invariant: bool = True) -> int:
    """The logits' bits and the bytes of 128 patches at once, and of the first of them in batches of 1, 2, 3, 7 and 64;
    gives how many were compared.

    Raises:
        OtherBytesError: a patch's are not the same in all of them.
    """
    engine = GraphedByteDecoder(
        DeviceModel(decided_model().to(device), precision).bytes, record, batch_invariant=batch_invariant
    )
    features, writing = patches_to_write(SMALL, 128, 5)
    features = features.to(device)
    tokens = writing.given.clamp(min=0).to(device)
    together = engine.write(features, writing, SAMPLINGS["sampled"]), logits_of(engine, features, tokens)
    compared = 0
    for size in (1, 2, 3, 7, 64):
        for first in range(0, min(3 * size, 128), size):
            part = slice(first, first + size)
            compared += size
            written = engine.write(features[part], part_of(writing, part), SAMPLINGS["sampled"])
            if written.tokens != together[0].tokens[part] or written.counts != together[0].counts[part]:
                raise OtherBytesError(f"{precision}, patches {first}…: other bytes in a batch of {size} than of 128")
            if not torch.equal(logits_of(engine, features[part], tokens[part]), together[1][part]):
                raise OtherBytesError(f"{precision}, patches {first}…: other bits in a batch of {size} than of 128")
    return compared


def part_of(writing: DecodeRequest, part: slice) -> DecodeRequest:
    """Some of the patches to write."""
    return DecodeRequest(
        writing.given[part], writing.room[part], None, None, list(writing.indices)[part], list(writing.starts)[part]
    )


def logits_of(engine: GraphedByteDecoder, features: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """[N, S, V]: of all bytes of the patches, each given those before it."""
    cache, weights = engine.new_cache(len(features)), engine.weights
    found = []
    for s in range(weights.patch_size):
        inputs = features if s == 0 else weights.wte[tokens[:, s - 1].long()]
        found.append(engine.logits(inputs + weights.wpe[s], *cache, s))
    return torch.stack(found, 1)


def measure_engines(
    config: BGPTConfig, count: int, device: torch.device, precision: str, seconds: float, record: Any = None
) -> dict[str, Any]:
    """Bytes a second of each engine, by name, at `count` patches side by side, all bytes of which are written.

    `batch_invariant_cost` is how many times as long the batch-invariant engine takes as the one that `Generator` would.
    """
    torch.manual_seed(0)
    model = DeviceModel(BGPT(config).eval().to(device), precision, record)
    features = torch.randn(count, config.hidden_size, device=device)
    # Nothing given and the model's end refused by no one: random weights end one patch in 16 or so, which costs nothing
    # either engine waits for.
    writing = DecodeRequest(
        torch.full((count, config.patch_size), -1, dtype=torch.int16),
        torch.full((count,), config.patch_size),
        None,
        None,
        list(range(count)),
        [0] * count,
    )
    engines = engines_for(engines_of(model), count)
    with torch.inference_mode():
        for engine in engines.values():
            engine.write(features, writing, SAMPLINGS["sampled"])
        found: dict[str, Any] = {"persistent_rows": PERSISTENT_ROWS, "precision": precision}
        for name, engine in engines.items():
            timing = measure(
                [lambda engine=engine: engine.write(features, writing, SAMPLINGS["sampled"])], device, seconds=seconds
            )
            found[name] = {**timing._asdict(), "bytes_per_s": count * config.patch_size / timing.median}
    usual = "persistent" if count <= PERSISTENT_ROWS and "persistent" in found else "graphed"
    found["batch_invariant_cost"] = found["invariant"]["median"] / found[usual]["median"]
    return found
