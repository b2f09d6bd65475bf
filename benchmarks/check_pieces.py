"""The pieces of `gpu_check.py` that compute, run one after the other in a process of their own.

    python benchmarks/check_pieces.py ops --items layer_norm bias_gelu --part part.json

After each item the part file is rewritten with all results so far, so that a crash loses one item at most.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from check_byte_decode import check_bits, check_bytes, measure_engines
from check_items import ITEMS
from check_plan import ON_CPU
from limits import copy, matrix_product
from op_cases import PAPER, SMALL, case_of
from op_graphs import check_graph, check_side_stream
from op_measure import check, measure_case, small_runs, speed_ups
from timing import measure

from bgpt_fast import BGPTConfig
from bgpt_fast.device import Replay
from bgpt_fast.files import write_json

NO_GPU = "no GPU"
TINY = BGPTConfig(patch_size=4, patch_length=8, hidden_size=32, patch_num_layers=1, byte_num_layers=1, num_heads=4)
STICKY = ("CUDA error", "illegal memory access", "device-side assert", "unspecified launch failure")


class NoGPUError(RuntimeError):
    """An item that has nothing to do without a GPU."""


class Place(NamedTuple):
    """Where and how large: `quick` means tiny sizes; `ceilings` as measured before, empty if not."""

    device: torch.device
    quick: bool
    ceilings: dict[str, float]

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def demand_gpu(self) -> None:
        if not self.on_gpu:
            raise NoGPUError(ON_CPU)


def ceiling(item: str, place: Place) -> dict[str, Any]:
    """The rates that bound everything else: a large matrix product, a large copy counted both ways."""
    seconds = 0.01 if place.quick else 0.5
    if item == "matmul":
        dtype = torch.bfloat16 if place.on_gpu else torch.float32
        return matrix_product(place.device, dtype, 256 if place.quick else 8192, seconds)
    return copy(place.device, 1 << 16 if place.quick else 1 << 32, seconds)


def op(item: str, place: Place) -> dict[str, Any]:
    """One op at the paper's size, checked and then timed beside its peers."""
    found = measure_case(
        case_of(item),
        SMALL if place.quick else PAPER,
        torch.bfloat16 if place.on_gpu else torch.float32,
        place.device,
        ceilings=place.ceilings,
        compiled=place.on_gpu,
        seconds=0.01 if place.quick else 0.15,
    )
    return found | {"speed_up": speed_ups(found["timed"])}


def graph(item: str, place: Place) -> dict[str, Any]:
    """One op in a CUDA graph and on a side stream (R22)."""
    place.demand_gpu()
    case, replays = case_of(item), 5 if place.quick else 100
    dtypes = (torch.bfloat16, torch.float32) if case.own_kernel else (torch.bfloat16,)
    for dtype in dtypes:
        check_graph(case, SMALL, dtype, place.device, replays)
        check_side_stream(case, SMALL, dtype, place.device)
    return {"replays": replays, "dtypes": [str(dtype)[6:] for dtype in dtypes]}


def exercise(item: str, place: Place) -> dict[str, Any]:
    """One op at a small size in all dtypes, or the byte decoder's engines: what a sanitizer watches."""
    if item == "byte_decode":
        # Not as a graph: the sanitizer runs without the allocator that recording needs.
        return check_bytes(place.device, _unrecorded)
    runs = small_runs(case_of(item), SMALL, place.device)
    if place.on_gpu:
        torch.cuda.synchronize()
    return {"runs": runs}


def correctness(item: str, place: Place) -> dict[str, Any]:
    """One op at the paper's size against its reference in float64, in the dtypes that are not timed."""
    sizes = SMALL if place.quick else PAPER
    dtypes = (torch.float16, torch.float32) if place.on_gpu else (torch.bfloat16,)
    return {str(dtype)[6:]: check(case_of(item), sizes, dtype, place.device) for dtype in dtypes}


def training(item: str, place: Place) -> dict[str, Any]:
    """The whole training step of one contender."""
    from training_step import losses_agree, measure_step  # transformers, which takes seconds to import

    config = TINY if place.quick else BGPTConfig()
    if item == "losses":
        return losses_agree(config, place.device)
    documents = 2
    if not place.quick:
        # As many as the released way and the reference can hold too.
        documents = 64 if torch.cuda.get_device_properties(place.device).total_memory > 100e9 else 32
    return measure_step(item, config, documents, place.device, seconds=0.02 if place.quick else 3.0)


def generation(item: str, place: Place) -> dict[str, Any]:
    """Bytes a second of the Generator at one batch size, or of the released way."""
    from bench_generation import endless, ours, prompts_of, released

    config = TINY if place.quick else BGPTConfig()
    model = endless(config).to(place.device)
    context, rounds = (3, 3) if place.quick else (64, 6)
    if item == "released way":
        figures, _ = released(model, prompts_of(config, context, 1)[0], 2 if place.quick else 4)
        return {**figures, "context": context}
    precision = "bfloat16" if place.on_gpu else "float32"
    figures, _ = ours(model, prompts_of(config, context, int(item)), rounds, precision)
    return {**figures, "context": context, "precision": precision}


def byte_decode(item: str, place: Place) -> dict[str, Any]:
    """The byte decoder's engines: their bytes against the CPU's and, batch-invariant, the bits against those in other
    batches; or their speed at one batch size."""
    record = None if place.on_gpu else _unrecorded
    if item == "bytes":
        return {**check_bytes(place.device, record), "patches_alone": check_bits(place.device, record)}
    config, count = (TINY, min(int(item), 9)) if place.quick else (BGPTConfig(), int(item))
    precision = "bfloat16" if place.on_gpu else "float32"
    return measure_engines(config, count, place.device, precision, 0.01 if place.quick else 0.5, record)


def _unrecorded(step: Replay) -> Replay:
    return step


def cpu_states(item: str, place: Place) -> dict[str, Any]:
    """Instances of the CPU-state machine a second, made on the GPU; first compared with those of the CPU."""
    place.demand_gpu()
    from bgpt_fast.tasks.cpu_states import StreamOptions, generate, generate_on_gpu

    options = StreamOptions()
    data, _, _ = generate_on_gpu(1000, options=options, seed=1, device=place.device)
    expected = b"".join(trace.to_bytes() for trace in generate(1000, seed=1, stream="philox"))
    assert bytes(data.cpu().numpy()) == expected, "the GPU's instances are not the CPU's"
    count = 10_000 if place.quick else 2_000_000
    timing = measure(
        [lambda: generate_on_gpu(count, options=options, seed=1, device=place.device)], place.device, seconds=0.5
    )
    return {**timing._asdict(), "instances": count, "instances_per_s": count / timing.median}


PIECES: dict[str, Callable[[str, Place], dict[str, Any]]] = {
    "ceilings": ceiling,
    "ops": op,
    "correctness": correctness,
    "graphs": graph,
    "exercise": exercise,
    "training": training,
    "byte_decode": byte_decode,
    "generation": generation,
    "cpu_states": cpu_states,
}


def non_finite(value: Any) -> bool:
    """Whether there is a NaN or an infinity anywhere in a result."""
    if isinstance(value, dict):
        return any(map(non_finite, value.values()))
    return isinstance(value, float) and not math.isfinite(value)


def run_item(run: Callable[[str, Place], dict[str, Any]], item: str, place: Place) -> tuple[dict[str, Any], bool]:
    """An item's entry in the receipt, and whether the process can go on after it."""
    try:
        result = run(item, place)
        if non_finite(result):
            return {"status": "failed", "reason": "a figure is not finite", "result": repr(result)}, True
        return {"status": "ok", **result}, True
    except NoGPUError as error:
        return {"status": "not run", "reason": str(error)}, True
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).strip()[:500] or '(no message)'}"
        return {"status": "failed", "reason": reason}, not any(mark in str(error) for mark in STICKY)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("piece", choices=sorted(PIECES))
    parser.add_argument("--items", nargs="+", help="some of the piece's items; all unless given")
    parser.add_argument("--part", type=Path, required=True, help="JSON file that takes the results, item by item")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument("--ceilings", type=json.loads, default={}, help="JSON of the measured ceilings")
    arguments = parser.parse_args()
    found: dict[str, Any] = {}
    missing = arguments.device == "cuda" and not torch.cuda.is_available()
    for item in arguments.items or ITEMS[arguments.piece]:
        if missing:
            found[item], goes_on = {"status": "not run", "reason": NO_GPU}, True
        else:
            place = Place(torch.device(arguments.device), arguments.quick, arguments.ceilings)
            found[item], goes_on = run_item(PIECES[arguments.piece], item, place)
        write_json(arguments.part, found)
        if not goes_on:
            return 1  # a sticky error would fail every later item; the caller starts anew with the rest
    return 0


if __name__ == "__main__":
    sys.exit(main())
