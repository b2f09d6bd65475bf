"""The plan of the house: imports point one way only."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from support.paths import ROOT

FLOORS = [
    {"config", "deprecation", "device", "files", "folder_lock", "_C", "__version__"},
    {"reference", "documents", "pth", "flops"},
    {"state_dict"},
    {"patches", "checkpoint", "metrics"},
    {"kernels"},
    {"layers"},
    {"patch_decoder", "byte_decoder"},
    {"model"},
    {"classifier"},
    {"data"},
    {"generation", "training", "report"},
    {"tasks"},
    {"cli"},
]
"""config ← patches ← kernels ← layers ← decoders ← model ← {generation, training} ← tasks ← cli, and helpers beside."""


def floor(module: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if module in rooms)


def imported(path: Path) -> set[str]:
    """Dotted names below `bgpt_fast` that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] == "bgpt_fast"}


def violations(path: Path, module: str, names: set[str]) -> list[str]:
    """Imports of `module` (parts below bgpt_fast, by dots) that point the wrong way."""
    parts = module.split(".")
    bad = []
    for name in names:
        target = name.split(".")[1:]
        if target[0] == parts[0]:
            other_room = parts[0] == "kernels" and target[1] not in (parts[1], "common")
            if other_room:
                bad.append(f"{path}: room {parts[1]} imports room {target[1]}")
        elif floor(target[0]) >= floor(parts[0]):
            bad.append(f"{path}: {parts[0]} imports {target[0]}")
    return bad


def modules() -> dict[Path, str]:
    files = {path: path.relative_to(ROOT / "bgpt_fast") for path in (ROOT / "bgpt_fast").rglob("*.py")}
    files |= {path: path.relative_to(ROOT) for path in (ROOT / "kernels").rglob("*.py")}
    return {path: ".".join(relative.with_suffix("").parts) for path, relative in files.items()}


def test_imports_point_one_way() -> None:
    found = modules()
    assert len(found) > 20
    bad = [
        line
        for path, module in found.items()
        if module != "__init__"
        for line in violations(path, module, imported(path))
    ]
    assert not bad, "\n".join(bad)


def test_reference_imports_torch_and_config_alone() -> None:
    path = ROOT / "bgpt_fast" / "reference.py"
    assert {name.rsplit(".", 1)[0] for name in imported(path)} == {"bgpt_fast.config"}


def test_nothing_imports_tests_or_benchmarks_and_tyro_stays_in_the_cli() -> None:
    for path, module in modules().items():
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.split(".")[0] not in ("tests", "benchmarks"), path
                assert name.split(".")[0] != "tyro" or module.startswith("cli."), path


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("model", "bgpt_fast.tasks.cpu_states"),
        ("layers", "bgpt_fast.model"),
        ("kernels.a.op", "bgpt_fast.kernels.b.op"),
    ],
)
def test_the_rule_catches_a_wrong_import(module: str, name: str) -> None:
    assert violations(Path("x.py"), module, {name})
