"""The first contact on the null GPU with faults: a kernel that is refused, one that hangs, a build that fails."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from support.paths import TESTS

from tools.gpu_check import items, plan
from tools.gpu_check.jobs import Results, execute

OPS = ("layer_norm", "bias_gelu", "byte_embed")


@pytest.fixture(autouse=True)
def few_ops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "OPS", OPS)


def contact(folder: Path, *faults: str, pieces: tuple[str, ...]) -> dict[str, Any]:
    """The items' results by piece."""
    words = [word for fault in faults for word in ("--fault", fault)]
    results = Results({}, lambda content: None)
    checks = plan.Plan(
        command="contact",
        device="cuda",
        quick=True,
        pieces=pieces,
        seconds=800.0,
        output=folder,
        folder=folder,
        results=results,
        parallel=2,
        item_seconds=60.0,
        worker=(sys.executable, "-X", "faulthandler", str(TESTS / "support/faulty_pieces.py"), *words, "--"),
        build=(sys.executable, "-c", "print('nvcc fatal   : no such architecture'); raise SystemExit(2)"),
    )
    execute(checks.stages(), results, threading.Event())
    return {piece: entry["items"] for piece, entry in results.pieces.items()}


@pytest.mark.timeout(900)
def test_a_kernel_that_is_refused_and_one_that_hangs_hide_nothing(tmp_path: Path) -> None:
    results = contact(tmp_path, "refused", "hang", pieces=("build", "values"))
    assert results["build"]["extension"]["status"] == "ok"
    values = results["values"]
    assert set(values) == {name for op in OPS for name in items.value_items(op)}
    for name in items.value_items("bias_gelu"):
        refused = values[name]
        assert refused["status"] == "failed"
        assert "invalid configuration" in refused["reason"]
        assert "triton_kernels.py" in refused["traceback"]
        assert "launch _bias_gelu_fwd_kernel, grid" in refused["log"]
    hanging = values["layer_norm float16 gradients"]
    assert hanging["status"] == "timed out"
    launches = [line for line in hanging["log"].splitlines() if line.startswith("launch ")]
    assert launches[-1].startswith("launch _layer_norm_bwd_kernel, grid")
    assert "faulty_pieces.py" in hanging["log"]
    rest = [item for name, item in values.items() if "bias_gelu" not in name and item is not hanging]
    # No kernel has run, so that values are what the memory had before.
    assert all(item["status"] == "ok" or "WrongResultError" in item["reason"] for item in rest)
    assert all(item["mismatches"][0]["arguments"] for item in rest if item["status"] == "failed")
    launched = values["layer_norm float32 forward"]["kernels"]["_layer_norm_fwd_kernel"]
    assert launched["registers"] is not None
    assert launched["shared"] is not None


def test_a_build_that_fails_stops_the_contact(tmp_path: Path) -> None:
    results = contact(tmp_path, "no CUDA", pieces=("build", "values", "peak"))
    built = results["build"]["extension"]
    assert built["status"] == "failed"
    assert "nvcc fatal" in built["log"]
    assert built["before"]["reason"] == "RuntimeError: _C.so was built without CUDA"
    assert {item["status"] for piece in ("values", "peak") for item in results[piece].values()} == {"not run"}
