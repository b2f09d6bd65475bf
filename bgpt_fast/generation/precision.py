"""Which precision is fastest on this machine, measured in milliseconds: the `--precision auto` of the commands.

Only float32 and bfloat16 are candidates. On the shipped CPU-state model bfloat16 changes the most likely byte at 0.3 %
of the positions, within `MAX_CHANGED_SHARE`; int8 changes more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
from torch.nn import functional as F

from bgpt_fast.config import BGPTConfig
from bgpt_fast.generation.decoders.base import has_engine
from bgpt_fast.kernels.byte_decode.packed import Layer, PackedCache, PackedTransformer

Precision = Literal["auto", "float32", "bfloat16", "int8"]
ScoringPrecision = Literal["auto", "float32", "bfloat16"]

MAX_CHANGED_SHARE = 0.005
"""Share of the positions at which a precision that "auto" may choose changes the most likely byte, on the shipped
model; a test measures it."""
MIN_GAIN = 1.15
"""How many times as fast as float32 bfloat16 must be for "auto" to choose it."""
MIN_WIDTH = 256
"""Width below which "auto" is float32 without a measurement: the products are so small that noise would decide."""
_REPEATS = 3


class PrecisionChoice(NamedTuple):
    """A precision and the reason for it.

    Args:
        precision: "float32", "bfloat16" or "int8".
        reason: a phrase for the output of a command.
    """

    precision: str
    reason: str

    @property
    def text(self) -> str:
        """A line for the terminal."""
        return f"precision: {self.precision} ({self.reason})"


def generation_precision(precision: str, config: BGPTConfig, device: torch.device, files: int) -> PrecisionChoice:
    """The precision of a `Generator`.

    Args:
        precision: "auto" measures a layer of the decoder, in both precisions; others are returned as they are.
        config: the model's sizes.
        device: where it generates.
        files: number of files generated at the same time: a few are bound by reading weights, many by products.

    Returns:
        The choice; "float32" on a device without an engine of its own, where nothing else is offered.
    """
    if precision != "auto":
        return PrecisionChoice(precision, "as --precision says")
    if not has_engine(device):
        return PrecisionChoice("float32", f"the only one on {device}")
    if device.type == "cpu" and config.hidden_size >= MIN_WIDTH:
        return _faster({name: _layer_call(name, config, files) for name in ("float32", "bfloat16")}, device)
    return scoring_precision(precision, config, device)


def scoring_precision(precision: str, config: BGPTConfig, device: torch.device) -> PrecisionChoice:
    """As `generation_precision`, for passes over complete documents, which run by torch: measures a matrix product."""
    if precision != "auto":
        return PrecisionChoice(precision, "as --precision says")
    if config.hidden_size < MIN_WIDTH:
        return PrecisionChoice("float32", f"the model is only {config.hidden_size} wide")

    def product(dtype: torch.dtype) -> Callable[[], object]:
        x = torch.ones(128, config.hidden_size, dtype=dtype, device=device)
        weight = torch.ones(4 * config.hidden_size, config.hidden_size, dtype=dtype, device=device)
        return lambda: F.linear(x, weight)

    return _faster({"float32": product(torch.float32), "bfloat16": product(torch.bfloat16)}, device)


@contextmanager
def scoring_in(precision: str, device: torch.device) -> Iterator[None]:
    """Within the block a float32 model computes its linear layers in bfloat16, unless the precision is "float32"."""
    with torch.autocast(device.type, torch.bfloat16, enabled=precision != "float32"):
        yield


def _layer_call(precision: str, config: BGPTConfig, files: int) -> Callable[[], object]:
    """One decoding step of one layer of the patch decoder's width."""
    D, rows = config.hidden_size, max(1, min(files, 16))
    shapes = ((D,), (D,), (D, 3 * D), (3 * D,), (D, D), (D,), (D,), (D,), (D, 4 * D), (4 * D,), (4 * D, D), (D,))
    layer = Layer(*(torch.full(shape, 0.01, device="cpu") for shape in shapes))
    norm = torch.ones(D, device="cpu"), torch.zeros(D, device="cpu")
    packed = PackedTransformer(
        [layer], norm, torch.zeros(1, D, device="cpu"), heads=config.patch_heads, eps=1e-5, precision=precision
    )
    cache, x = PackedCache(packed, rows, 16), torch.ones(rows, D, device="cpu")
    slots, positions = torch.arange(rows, device="cpu"), torch.zeros(rows, dtype=torch.int64, device="cpu")
    return lambda: packed.features(x, cache, slots, positions)


def _faster(calls: dict[str, Callable[[], object]], device: torch.device) -> PrecisionChoice:
    began = time.perf_counter()
    seconds = dict.fromkeys(calls, float("inf"))
    # In turn, and the fastest of each, so that other processes disturb both alike and little.
    for _ in range(_REPEATS + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    gain = seconds["float32"] / seconds["bfloat16"]
    comparison = (
        f"bfloat16 is {gain:.1f} times as fast as float32 on this {'GPU' if device.type == 'cuda' else 'processor'}"
    )
    milliseconds = 1e3 * (time.perf_counter() - began)
    return PrecisionChoice(
        "bfloat16" if gain >= MIN_GAIN else "float32", f"{comparison}, measured in {milliseconds:.0f} ms"
    )
