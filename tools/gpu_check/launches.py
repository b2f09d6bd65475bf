"""Prints every Triton launch of a block with its arguments, so that the log of a hanging process names the kernel."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any
from unittest import mock

from benchmarks.op_measure import described_argument

Kernels = dict[str, dict[str, int | None]]
"""Registers, spilled bytes and shared memory by kernel."""


@contextlib.contextmanager
def printed_launches() -> Iterator[Kernels]:
    """Prints each launch to the standard error before it runs; the kernels that have run are added to the result.

    Without Triton, nothing is printed.
    """
    kernels: Kernels = {}
    try:
        import triton
    except ImportError:
        yield kernels
        return
    run = triton.JITFunction.run

    def printed(function: Any, *arguments: Any, grid: Any, **named: Any) -> Any:
        values = dict(zip(function.arg_names, arguments, strict=False)) | named
        name = function.fn.__name__
        described = ", ".join(f"{key}={described_argument(value)}" for key, value in values.items())
        print(f"launch {name}, grid {grid}: {described}", file=sys.stderr, flush=True)
        compiled = run(function, *arguments, grid=grid, **named)
        metadata = getattr(compiled, "metadata", None)
        kernels[name] = {
            "registers": getattr(compiled, "n_regs", None),
            "spills": getattr(compiled, "n_spills", None),
            "shared": getattr(metadata, "shared", None),
        }
        return compiled

    with mock.patch.object(triton.JITFunction, "run", printed):
        yield kernels
