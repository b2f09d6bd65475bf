"""Which module may import which: layers point one way, no cycles, no command imports another command."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter

import pytest
from support.paths import ROOT

from bgpt_fast.cli.data import KINDS
from bgpt_fast.cli.main import COMMANDS

LAYERS = [
    {"checks", "config", "device", "files", "folder_lock", "deprecation", "memory", "version", "_C"},
    {"reference", "documents", "flops", "environment", "parsing", "terminal"},
    {"patches", "checkpoint", "metrics", "journal"},
    {"kernels"},
    {"layers"},
    {"patch_decoder", "byte_decoder"},
    {"model"},
    {"classifier", "export_program"},
    {"data"},
    {"generation", "training", "report"},
    {"tasks", "hf", "models"},
    {"cli"},
]
"""config ← patches ← kernels ← layers ← decoders ← model ← {generation, training} ← tasks ← cli, and helpers beside."""
COMMAND_MODULES = {f"cli.{name.replace('-', '_')}" for name in COMMANDS} | {
    f"cli.data_{name.replace('-', '_')}" for name in KINDS
}


def layer(module: str) -> int:
    return next(number for number, names in enumerate(LAYERS) if module in names)


def modules() -> dict[str, str]:
    """Source texts by dotted name below `bgpt_fast`; a package's `__init__` has the package's name."""
    files = {path: path.relative_to(ROOT / "bgpt_fast") for path in (ROOT / "bgpt_fast").rglob("*.py")}
    files |= {path: path.relative_to(ROOT) for path in (ROOT / "kernels").rglob("*.py")}
    return {
        ".".join(relative.with_suffix("").parts).removesuffix("__init__").rstrip("."): path.read_text()
        for path, relative in files.items()
    }


def imports(source: str) -> list[tuple[str, str]]:
    """All imports of a file, wherever they stand: module and name, which is empty for `import module`."""
    pairs = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            pairs += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import of {node.module}"
            pairs += [(node.module or "", alias.name) for alias in node.names]
    return pairs


def import_graph(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """The modules below `bgpt_fast` that each module imports; "" is `bgpt_fast/__init__` itself."""
    graph: dict[str, set[str]] = {}
    for module, source in sources.items():
        targets = graph.setdefault(module, set())
        for name, attribute in imports(source):
            if name.split(".")[0] != "bgpt_fast":
                continue
            base = name.removeprefix("bgpt_fast").lstrip(".")
            full = f"{base}.{attribute}".strip(".")
            targets.add(full if full in sources or full == "_C" else base)
    return graph


def violations(graph: Mapping[str, set[str]]) -> list[str]:
    """What breaks the rules, a line each."""
    lines = []
    for module, targets in graph.items():
        parts = module.split(".")
        for target in targets if module else ():
            other = target.split(".")
            if target == "":
                lines.append(f"{module} imports bgpt_fast/__init__; import from the module that defines the name")
            elif other[0] != parts[0] and layer(other[0]) >= layer(parts[0]):
                lines.append(f"{module} imports {target}, which is not in a lower layer")
            elif parts[0] == other[0] == "kernels" and other[1] not in (parts[1], "common"):
                lines.append(f"{module} imports another op, {target}")
            elif module in COMMAND_MODULES and target in COMMAND_MODULES:
                lines.append(f"{module} imports another command, {target}")
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        lines.append("import cycle: " + " -> ".join(error.args[1]))
    return lines


def test_imports_follow_the_rules() -> None:
    sources = modules()
    assert len(sources) > 100
    assert sources.keys() >= COMMAND_MODULES
    graph = import_graph(sources)
    assert not violations(graph)


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ({"model": "import bgpt_fast.tasks.a", "tasks.a": ""}, "not in a lower layer"),
        ({"layers": "from bgpt_fast.model import BGPT", "model": ""}, "not in a lower layer"),
        ({"kernels.a.op": "from bgpt_fast.kernels.b.op import f", "kernels.b.op": ""}, "another op"),
        ({"cli.evaluate": "from bgpt_fast.cli import simulate", "cli.simulate": ""}, "another command"),
        ({"data.a": "from bgpt_fast import BGPT"}, "bgpt_fast/__init__"),
        ({"data.a": "def f():\n    import bgpt_fast"}, "bgpt_fast/__init__"),
        (
            {
                "data.a": "from bgpt_fast.data.b import f",
                "data.b": "if TYPE_CHECKING:\n    from bgpt_fast.data import a",
            },
            "import cycle",
        ),
    ],
)
def test_each_rule_catches_a_violation(sources: dict[str, str], message: str) -> None:
    [line] = violations(import_graph(sources))
    assert message in line


def test_the_extension_may_be_imported_from_the_package() -> None:
    assert not violations(import_graph({"data.a": "from bgpt_fast import _C"}))


def test_reference_imports_torch_and_config_alone() -> None:
    assert import_graph(modules())["reference"] == {"config"}


def test_nothing_imports_tests_or_benchmarks_and_tyro_stays_in_the_cli() -> None:
    for module, source in modules().items():
        for name, _ in imports(source):
            assert name.split(".")[0] not in ("tests", "benchmarks", "tools"), module
            assert name.split(".")[0] != "tyro" or module.startswith("cli."), module
