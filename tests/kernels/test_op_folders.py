"""An op has one name for folder, schema, test and benchmark, and none falls back silently to slow code on a GPU."""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path

import pytest
import torch
from support.ops import DrawnTests, OpTests
from support.paths import ROOT

FOLDERS = sorted({path.parent.name for path in ROOT.glob("kernels/*/*.py")} - {"common"})
_OF_CPU = "patch_attention's paths on the CPU; on a GPU FlashAttention or SDPA take their place"
CPU_ONLY = {
    "short_documents_attention": _OF_CPU,
    "short_documents_attention_backward": _OF_CPU,
    "documents_attention": _OF_CPU,
    "documents_attention_backward": _OF_CPU,
    "matrix_product": "for processors on which torch's products are slow; on a GPU they are torch's",
}
"""Ops that have no CUDA implementation, and why."""
OF_TORCH = {"flash_documents_attention", "flash_documents_attention_backward"}
"""Ops that call torch's FlashAttention on a GPU and have no other implementation; the null GPU's tests launch them."""


def missing_files(root: Path, op: str) -> list[str]:
    names = [f"kernels/{op}/reference.py", f"kernels/{op}/op.py", f"tests/kernels/test_{op}.py"]
    return [name for name in names if not (root / name).is_file()]


def schemas(folder: str) -> list[str]:
    """The ops that a folder registers."""
    module = importlib.import_module(f"bgpt_fast.kernels.{folder}.op")
    if hasattr(module, "OPS"):
        return [op.name for op in module.OPS]
    text = (ROOT / f"kernels/{folder}/op.py").read_text()
    return re.findall(r"_library\.define\(\s*\"(\w+)\(", text)


def without_cuda(ops: list[str]) -> list[str]:
    return [op for op in ops if not torch._C._dispatch_has_kernel_for_dispatch_key(f"bgpt_fast::{op}", "CUDA")]


def drawn_ops(folder: str) -> set[str]:
    """The ops of a folder whose tests draw shapes and repeat runs."""
    path = ROOT / f"tests/kernels/test_{folder}.py"
    spec = importlib.util.spec_from_file_location(f"ops_of_{folder}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    classes = [value for name, value in vars(module).items() if name.startswith("Test") and isinstance(value, type)]
    return {one.NAME for one in classes if issubclass(one, OpTests | DrawnTests)}


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_op_is_compared_on_drawn_shapes_and_run_repeatedly(folder: str) -> None:
    """RELIABILITY R2 and R4; a backward op is tested with the op whose gradient it is."""
    ops = {op for op in schemas(folder) if not op.endswith("_backward")} - OF_TORCH
    assert ops
    assert ops <= drawn_ops(folder)


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_is_complete_and_its_op_has_its_name(folder: str) -> None:
    assert missing_files(ROOT, folder) == []
    module = importlib.import_module(f"bgpt_fast.kernels.{folder}.op")
    assert callable(getattr(module, folder))
    ops = schemas(folder)
    assert ops
    if folder == "patch_attention":  # which chooses among other libraries' ops
        assert all(op in OF_TORCH or CPU_ONLY[op] == _OF_CPU for op in ops)
        return
    assert folder in ops
    for op in ops:
        assert folder in op, f"{folder} registers {op}"


def test_every_op_has_a_cuda_implementation_or_a_reason() -> None:
    ops = [op for folder in FOLDERS for op in schemas(folder)]
    registered = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("bgpt_fast::")}
    assert sorted(f"bgpt_fast::{op}" for op in ops) == sorted(registered)
    # Both directions: an op that has an implementation leaves the list.
    assert sorted(without_cuda(ops)) == sorted(CPU_ONLY)
    assert not torch._C._dispatch_has_kernel_for_dispatch_key("bgpt_fast::byte_attention", "XPU")


def test_a_missing_file_and_a_missing_implementation_are_noticed(tmp_path: Path) -> None:
    (tmp_path / "kernels/x").mkdir(parents=True)
    (tmp_path / "kernels/x/op.py").touch()
    assert missing_files(tmp_path, "x") == [
        "kernels/x/reference.py",
        "tests/kernels/test_x.py",
    ]
    importlib.import_module("bgpt_fast.kernels.patch_attention.op")
    assert without_cuda(["short_documents_attention"]) == ["short_documents_attention"]
