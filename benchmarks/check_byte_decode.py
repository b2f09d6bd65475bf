"""The two engines of the byte decoder on a GPU: that they write what the CPU writes, and which is faster where.

On a CPU the graphs' functions run one by one, and the persistent kernel, which is a GPU's, is left out.
"""

from __future__ import annotations

from typing import Any

import torch
from timing import measure

from bgpt_fast import BGPT, BGPTConfig
from bgpt_fast.generation.fused import FusedDecoder, PackedModel
from bgpt_fast.generation.on_device import PERSISTENT_ROWS, DeviceModel
from bgpt_fast.generation.persistent import MOST_ROWS
from bgpt_fast.generation.sampling import Sampling
from bgpt_fast.generation.writing import Writing

SAMPLINGS = {"greedy": Sampling(), "sampled": Sampling(temperature=0.9, top_k=40, top_p=0.95, seed=7)}
SMALL = BGPTConfig(patch_length=8, hidden_size=64, patch_num_layers=1, byte_num_layers=2, num_heads=1, byte_num_heads=4)


class OtherBytesError(RuntimeError):
    """An engine wrote other bytes than the CPU's."""


def engines_of(model: DeviceModel, count: int) -> dict[str, Any]:
    """The engines that can write so many patches at once, by name."""
    found: dict[str, Any] = {"graphed": model.graphed}
    if model.persistent is not None and count <= MOST_ROWS:
        found["persistent"] = model.persistent
    return found


def patches_to_write(config: BGPTConfig, count: int, seed: int) -> tuple[torch.Tensor, Writing]:
    """Features float32 [N, D] on the CPU, and patches of which some bytes are given and some rows are cut."""
    stream = torch.Generator().manual_seed(seed)
    S = config.patch_size
    room = torch.randint(1, S + 1, (count,), generator=stream)
    given = torch.randint(0, 256, (count, S), generator=stream, dtype=torch.int16)
    known = torch.randint(0, S // 2 + 1, (count, 1), generator=stream)
    given = given.masked_fill(torch.arange(S) >= known, -1)
    features = torch.randn(count, config.hidden_size, generator=stream)
    return features, Writing(given, room, None, None, list(range(count)), [16 * n for n in range(count)])


def check_bytes(device: torch.device, record: Any = None) -> dict[str, Any]:
    """Greedy and sampled bytes of both engines, in float32 on a small model, against the CPU's; in batches of several
    sizes, where a row must not depend on its company.

    Raises:
        OtherBytesError: they differ. With other seeds a near tie may fall within rounding; with these none does.
    """
    torch.manual_seed(0)
    model = BGPT(SMALL).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3).add_(0.05 * torch.randn_like(parameter))
    cpu = FusedDecoder(PackedModel(model, "float32"), 1, 8)
    on_device = DeviceModel(model.to(device), "float32", record)
    checked = 0
    with torch.inference_mode():
        for count in (1, 2, 3, 9, 33, 70):
            features, writing = patches_to_write(SMALL, count, count)
            for how, sampling in SAMPLINGS.items():
                expected = cpu.write(features, writing, sampling)
                for name, engine in engines_of(on_device, count).items():
                    if engine.write(features.to(device), writing, sampling) != expected:
                        raise OtherBytesError(f"{name}, {how}, {count} patches: other bytes than the CPU's")
                    checked += count
    return {"engines": sorted(engines_of(on_device, 1)), "patches": checked}


def measure_engines(
    config: BGPTConfig, count: int, device: torch.device, precision: str, seconds: float, record: Any = None
) -> dict[str, Any]:
    """Bytes a second of each engine, by name, at `count` patches side by side, all bytes of which are written."""
    torch.manual_seed(0)
    model = DeviceModel(BGPT(config).eval().to(device), precision, record)
    features = torch.randn(count, config.hidden_size, device=device)
    # Nothing given and the model's end refused by no one: random weights end one patch in 16 or so, which costs nothing
    # either engine waits for.
    writing = Writing(
        torch.full((count, config.patch_size), -1, dtype=torch.int16),
        torch.full((count,), config.patch_size),
        None,
        None,
        list(range(count)),
        [0] * count,
    )
    names = engines_of(model, count)
    with torch.inference_mode():
        for engine in names.values():
            engine.write(features, writing, SAMPLINGS["sampled"])
        found: dict[str, Any] = {"persistent_rows": PERSISTENT_ROWS, "precision": precision}
        for name, engine in names.items():
            timing = measure(
                [lambda engine=engine: engine.write(features, writing, SAMPLINGS["sampled"])], device, seconds=seconds
            )
            found[name] = {**timing._asdict(), "bytes_per_s": count * config.patch_size / timing.median}
    return found
