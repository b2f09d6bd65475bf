"""An op is a room: one name for folder, schema and tests, and no op falls back silently on a GPU."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
import torch
from support.paths import ROOT

ROOMS = sorted(room.name for room in (ROOT / "kernels").iterdir() if room.name != "common" and list(room.glob("*.py")))
_SHORT = "patch_attention's path for short documents on the CPU; on a GPU FlashAttention or SDPA take its place"
CPU_ONLY = {
    "short_documents_attention": _SHORT,
    "short_documents_attention_backward": _SHORT,
}
"""Ops that have no CUDA implementation, and why."""


def missing_files(root: Path, room: str) -> list[str]:
    names = [f"kernels/{room}/reference.py", f"kernels/{room}/op.py"]
    names.append(f"tests/kernels/test_{room}.py")
    if (root / f"kernels/{room}/triton_kernels.py").exists():
        names.append(f"tests/kernels/test_{room}_triton.py")
    return [name for name in names if not (root / name).is_file()]


def schemas(room: str) -> list[str]:
    """The ops that a room registers."""
    module = importlib.import_module(f"bgpt_fast.kernels.{room}.op")
    if hasattr(module, "OPS"):
        return [op.name for op in module.OPS]
    text = (ROOT / f"kernels/{room}/op.py").read_text()
    return re.findall(r"_library\.define\(\s*\"(\w+)\(", text)


def without_cuda(ops: list[str]) -> list[str]:
    return [op for op in ops if not torch._C._dispatch_has_kernel_for_dispatch_key(f"bgpt_fast::{op}", "CUDA")]


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_is_complete(room: str) -> None:
    assert missing_files(ROOT, room) == []


@pytest.mark.parametrize("room", ROOMS)
def test_its_op_has_its_name(room: str) -> None:
    module = importlib.import_module(f"bgpt_fast.kernels.{room}.op")
    assert callable(getattr(module, room))
    ops = schemas(room)
    assert ops
    if room == "patch_attention":  # a seam before other libraries' ops
        assert all(CPU_ONLY[op] == _SHORT for op in ops)
        return
    assert room in ops
    for op in ops:
        assert room in op, f"{room} registers {op}"


def test_every_op_has_a_cuda_implementation_or_a_reason() -> None:
    for room in ROOMS:
        importlib.import_module(f"bgpt_fast.kernels.{room}.op")
    ops = [op for room in ROOMS for op in schemas(room)]
    registered = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("bgpt_fast::")}
    assert sorted(f"bgpt_fast::{op}" for op in ops) == sorted(registered)
    # Both ways: what has got one comes off the list.
    assert sorted(without_cuda(ops)) == sorted(CPU_ONLY)


def test_a_missing_file_and_a_missing_implementation_are_seen(tmp_path: Path) -> None:
    (tmp_path / "kernels/x").mkdir(parents=True)
    (tmp_path / "kernels/x/op.py").touch()
    (tmp_path / "kernels/x/triton_kernels.py").touch()
    assert missing_files(tmp_path, "x") == [
        "kernels/x/reference.py",
        "tests/kernels/test_x.py",
        "tests/kernels/test_x_triton.py",
    ]
    importlib.import_module("bgpt_fast.kernels.patch_attention.op")
    assert without_cuda(["short_documents_attention"]) == ["short_documents_attention"]
