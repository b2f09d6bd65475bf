"""The pieces of gpu_check that compute; each runs in its own process, its items one after the other.

    python -m tools.gpu_check.pieces ops --items layer_norm bias_gelu --part part.json

After each item the part file is rewritten with all results so far, so that a crash loses at most one item.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.generation import endless_model, generate_with, prompts_of
from benchmarks.names import OURS, RELEASED
from benchmarks.op_cases import PAPER, SMALL, case_of
from benchmarks.op_measure import check
from benchmarks.peak import copy, matrix_product
from benchmarks.timing import measure, summarise
from bgpt_fast import BGPTConfig
from bgpt_fast.files import write_json
from tools.gpu_check import contact
from tools.gpu_check.byte_decode import check_bits, check_bytes, measure_engines
from tools.gpu_check.items import ITEMS
from tools.gpu_check.launches import printed_launches
from tools.gpu_check.ops import check_graph, check_side_stream, measure_case, small_runs
from tools.gpu_check.setting import TINY, NoGPUError, Setting, unrecorded
from tools.gpu_check.states import check_states
from tools.gpu_check.training import losses_agree, measure_step

NO_GPU = "no GPU"
STICKY = ("CUDA error", "illegal memory access", "device-side assert", "unspecified launch failure")
TRACEBACK_CHARACTERS = 8192
NOT_TIMED = ("extension", "values", "first", "correctness")
"""Pieces whose launches are printed with their arguments."""


def peak(item: str, setting: Setting) -> dict[str, Any]:
    """The peak rates of a large matrix product and of a large copy (reads plus writes)."""
    seconds = 0.01 if setting.quick else 0.5
    if item == "matmul":
        dtype = torch.bfloat16 if setting.on_gpu else torch.float32
        return matrix_product(setting.device, dtype, 256 if setting.quick else 8192, seconds)
    return copy(setting.device, 1 << 16 if setting.quick else 1 << 32, seconds)


def op(item: str, setting: Setting) -> dict[str, Any]:
    """Checks one op at the paper's size, then times it and its baselines."""
    sizes, seconds = (SMALL, 0.01) if setting.quick else (PAPER, 0.15)
    dtype = torch.bfloat16 if setting.on_gpu else torch.float32
    return measure_case(case_of(item), sizes, dtype, setting.device, peak=setting.peak, seconds=seconds)


def graph(item: str, setting: Setting) -> dict[str, Any]:
    """One op in a CUDA graph and on a side stream (R22)."""
    setting.require_gpu()
    case, replays = case_of(item), 5 if setting.quick else 100
    dtypes = (torch.bfloat16, torch.float32) if case.own_kernel else (torch.bfloat16,)
    for dtype in dtypes:
        check_graph(case, SMALL, dtype, setting.device, replays)
        check_side_stream(case, SMALL, dtype, setting.device)
    return {"replays": replays, "dtypes": [str(dtype)[6:] for dtype in dtypes]}


def exercise(item: str, setting: Setting) -> dict[str, Any]:
    """Runs one op at a small size in all dtypes, or the byte decoder's engines, under a sanitizer."""
    if item == "byte_decode":
        # Not as a graph: the sanitizer runs without the allocator that recording needs.
        return check_bytes(setting.device, unrecorded)
    runs = small_runs(case_of(item), SMALL, setting.device)
    if setting.on_gpu:
        torch.cuda.synchronize()
    return {"runs": runs}


def correctness(item: str, setting: Setting) -> dict[str, Any]:
    """One op at the paper's size against its reference in float64, in the dtypes that are not timed."""
    sizes = SMALL if setting.quick else PAPER
    dtypes = (torch.float16, torch.float32) if setting.on_gpu else (torch.bfloat16,)
    return {str(dtype)[6:]: check(case_of(item), sizes, dtype, setting.device) for dtype in dtypes}


def training(item: str, setting: Setting) -> dict[str, Any]:
    """The whole training step of one implementation."""
    config = TINY if setting.quick else BGPTConfig()
    if item == "losses":
        return losses_agree(config, setting.device)
    documents = 2
    if not setting.quick:
        # As many documents as also fit for the released method and the reference.
        documents = 64 if torch.cuda.get_device_properties(setting.device).total_memory > 100e9 else 32
    return measure_step(item, config, documents, setting.device, seconds=0.02 if setting.quick else 3.0)


def generation(item: str, setting: Setting) -> dict[str, Any]:
    """Bytes per second of the Generator at one batch size, or of the released method."""
    config, context, rounds = (TINY, 3, 3) if setting.quick else (BGPTConfig(), 64, 6)
    is_released = item == RELEASED
    files, rounds = (1, min(rounds, 4)) if is_released else (int(item), rounds)
    precision = None if is_released else "bfloat16" if setting.on_gpu else "float32"
    model = endless_model(config).to(setting.device)
    generate = generate_with(RELEASED if is_released else OURS, model, files, precision)
    spans, _ = generate(prompts_of(config, context, files), rounds)
    round_s = summarise(spans[1:]).median
    rates = {"first_round_s": spans[0], "round_s": round_s, "bytes_per_s": files * config.patch_size / round_s}
    return {**rates, "context": context, "precision": precision or "float32"}


def byte_decode(item: str, setting: Setting) -> dict[str, Any]:
    """The byte decoder's engines: compares their bytes with the CPU's and, if batch-invariant, their bits with those in
    other batches; or measures their speed at one batch size."""
    record = None if setting.on_gpu else unrecorded
    if item == "bytes":
        return {**check_bytes(setting.device, record), "patches_alone": check_bits(setting.device, record)}
    config, count = (TINY, min(int(item), 9)) if setting.quick else (BGPTConfig(), int(item))
    precision = "bfloat16" if setting.on_gpu else "float32"
    return measure_engines(config, count, setting.device, precision, 0.01 if setting.quick else 0.5, record)


def cpu_states(item: str, setting: Setting) -> dict[str, Any]:
    """CPU-state instances per second, made on the GPU, after a comparison with the CPU's."""
    setting.require_gpu()
    from bgpt_fast.tasks.cpu_states import StreamOptions, generate_on_gpu

    check_states(1000, setting.device)
    options, count = StreamOptions(), 10_000 if setting.quick else 2_000_000
    timing = measure(
        lambda: generate_on_gpu(count, options=options, seed=1, device=setting.device), setting.device, seconds=0.5
    )
    return {**timing._asdict(), "instances": count, "instances_per_s": count / timing.median}


PIECES: dict[str, Callable[[str, Setting], dict[str, Any]]] = {
    "extension": contact.extension,
    "values": contact.values,
    "first": contact.first,
    "products": contact.products,
    "steps": contact.steps,
    "peak": peak,
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
    """Whether a result contains a NaN or an infinity."""
    if isinstance(value, dict):
        return any(map(non_finite, value.values()))
    return isinstance(value, float) and not math.isfinite(value)


def run_item(run: Callable[[str, Setting], dict[str, Any]], item: str, setting: Setting) -> tuple[dict[str, Any], bool]:
    """An item's result, and whether the process can continue after it."""
    began, cpu_began = time.perf_counter(), time.process_time()
    result, goes_on = _outcome(run, item, setting)
    times = {"item_seconds": time.perf_counter() - began, "item_cpu_seconds": time.process_time() - cpu_began}
    return {**result, **times}, goes_on


def _outcome(run: Callable[[str, Setting], dict[str, Any]], item: str, setting: Setting) -> tuple[dict[str, Any], bool]:
    try:
        result = run(item, setting)
        if non_finite(result):
            return {"status": "failed", "reason": "a figure is not finite", "result": repr(result)}, True
        return {"status": "ok", **result}, True
    except NoGPUError as error:
        return {"status": "not run", "reason": str(error)}, True
    except Exception as error:
        text = f"{type(error).__name__}: {str(error).strip() or '(no message)'}"
        result = {"status": "failed", "reason": text[:500]}
        result["traceback"] = "".join(traceback.format_exception(error))[-TRACEBACK_CHARACTERS:]
        if mismatches := getattr(error, "mismatches", None):
            result["mismatches"] = mismatches
        return result, not any(mark in text for mark in STICKY)


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("piece", choices=sorted(PIECES))
    parser.add_argument("--items", nargs="+", help="some of the piece's items; all unless given")
    parser.add_argument("--part", type=Path, required=True, help="JSON file that takes the results, item by item")
    parser.add_argument("--output", type=Path, help="folder for a trace (default: that of the part file)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument("--peak", type=json.loads, default={}, help="JSON of the measured peak rates")
    arguments = parser.parse_args(words)
    results: dict[str, Any] = {}
    write_json(arguments.part, results)
    missing = arguments.device == "cuda" and not torch.cuda.is_available()
    for item in arguments.items or ITEMS[arguments.piece]:
        if missing:
            results[item], goes_on = {"status": "not run", "reason": NO_GPU}, True
        else:
            device, output = torch.device(arguments.device), arguments.output or arguments.part.parent
            setting = Setting(device, arguments.quick, arguments.peak, output)
            with contextlib.ExitStack() as stack:
                kernels = stack.enter_context(printed_launches()) if arguments.piece in NOT_TIMED else {}
                results[item], goes_on = run_item(PIECES[arguments.piece], item, setting)
            results[item] |= {"kernels": kernels} if kernels else {}
        write_json(arguments.part, results)
        if not goes_on:
            return 1  # the error would fail every later item; the caller starts a new process for the rest
    return 0


if __name__ == "__main__":
    sys.exit(main())
