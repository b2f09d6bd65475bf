"""invariant_linear beside torch's F.linear on the CPU, with weights that come from memory.

PYTHONPATH=. python benchmarks/bench_invariant_linear.py --threads 1 --output invariant_linear.json
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from bgpt_fast.files import write_json
from bgpt_fast.kernels.invariant_linear.op import invariant_linear

SHAPES = [(768, 3072), (3072, 768), (256, 1024)]
ROWS = [1, 4, 16, 64, 512]
OUT_OF_CACHE = 100 << 20  # bytes of weights that are gone through before one is used again


def quantiles(call: Callable[[Tensor], Tensor], weights: list[Tensor], seconds: float) -> tuple[float, float, float]:
    """p20, median and p80 of the seconds of a call."""
    turn, times, end = itertools.cycle(weights), [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 10:
        weight = next(turn)
        began = time.perf_counter()
        call(weight)
        times.append(time.perf_counter() - began)
    times.sort()
    return times[len(times) // 5], times[len(times) // 2], times[len(times) * 4 // 5]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.3, help="for each figure")
    parser.add_argument("--output", type=Path, help="write the figures there as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    results = []
    for K, N in SHAPES:
        bias = torch.randn(N)
        weights = [torch.randn(K, N) for _ in range(OUT_OF_CACHE // (4 * K * N))]
        for M in ROWS:
            x = torch.randn(M, K)
            calls: dict[str, Callable[[Tensor], Tensor]] = {
                "invariant_linear": lambda weight, x=x, bias=bias: invariant_linear(x, weight, bias),
                "F.linear": lambda weight, x=x, bias=bias: F.linear(x, weight.t(), bias),
            }
            for name, call in calls.items():
                low, middle, high = quantiles(call, weights, arguments.seconds)
                gflops, gbs = 2e-9 * M * K * N / middle, 4e-9 * (K * N + M * (K + N)) / middle
                print(
                    f"{K:5d} → {N:4d}, {M:3d} rows, {name:16s}: {1e6 * middle:8.0f} µs (p20 {1e6 * low:.0f}, "
                    f"p80 {1e6 * high:.0f}), {gflops:6.1f} GFLOP/s, {gbs:5.1f} GB/s",
                    flush=True,
                )
                results.append({"K": K, "N": N, "M": M, "op": name, "p20_s": low, "median_s": middle, "p80_s": high})
    if arguments.output is not None:
        machine = {"cores": os.cpu_count(), "load": os.getloadavg()[0], "torch": torch.__version__}
        write_json(arguments.output, {"threads": arguments.threads, "machine": machine, "results": results})


if __name__ == "__main__":
    main()
