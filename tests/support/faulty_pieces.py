"""`tools.gpu_check.pieces` with faults: a kernel that CUDA refuses, one that hangs, an extension that has no CUDA.

python faulty_pieces.py [--fault NAME …] -- PIECE …
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from tools.gpu_check.pieces import main


def _replace_launch(kernel: str, replacement: Callable[..., Any]) -> None:
    """Calls `replacement` with the usual launch and its arguments in place of the launch of one Triton kernel."""
    import triton

    run = triton.JITFunction.run

    def launch(function: Any, *arguments: Any, **named: Any) -> Any:
        if function.fn.__name__ != kernel:
            return run(function, *arguments, **named)
        return replacement(lambda **others: run(function, *arguments, **named | others), arguments)

    triton.JITFunction.run = launch


def _too_large(launch: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    return launch(grid=(1, 70_000))


def _hang_in_float16(launch: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    if any(getattr(argument, "dtype", None) is torch.float16 for argument in arguments):
        time.sleep(600)
    return launch()


def _no_cuda() -> None:
    import bgpt_fast

    bgpt_fast._C = SimpleNamespace(with_cuda=False, __file__="_C.so")


FAULTS: dict[str, Callable[[], None]] = {
    "refused": lambda: _replace_launch("_bias_gelu_fwd_kernel", _too_large),
    "hang": lambda: _replace_launch("_layer_norm_bwd_kernel", _hang_in_float16),
    "no CUDA": _no_cuda,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--fault", action="append", choices=FAULTS, default=[])
    parser.add_argument("words", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    for name in arguments.fault:
        FAULTS[name]()
    sys.exit(main(arguments.words[1:]))
