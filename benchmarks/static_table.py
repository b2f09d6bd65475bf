"""The receipt of static_check.py as the table of docs/kernels.md, and what tells whether either is out of date."""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from check_items import OPS
from check_report import is_red, items_of, red_rooms

from bgpt_fast.files import atomic_write

ROOT = Path(__file__).resolve().parent.parent
RECEIPT = ROOT / "benchmarks/results/static.json"
DOCS = ROOT / "docs/kernels.md"
BEGIN, END = "<!-- static.json: begin -->", "<!-- static.json: end -->"
SHOWN = "sm_90"
_HEAD = ("op", "kernel", "case", "sm", "registers", "shared", "instructions", "matrix instructions", "run on a GPU?")


def jit_functions(text: str) -> list[ast.FunctionDef]:
    """The functions of a Python source that `@triton.jit` decorates."""
    return [
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef)
        and any(ast.unparse(decorator).split("(")[0] in ("triton.jit", "jit") for decorator in node.decorator_list)
    ]


def triton_sources() -> list[str]:
    """The files below kernels/ that define a Triton function, below the project's root."""
    files = sorted(ROOT.glob("kernels/*/*.py"))
    return [str(file.relative_to(ROOT)) for file in files if jit_functions(file.read_text())]


def cuda_sources() -> list[str]:
    return [str(file.relative_to(ROOT)) for file in sorted(ROOT.glob("csrc/**/*.cu"))]


def digest(file: str) -> str:
    """Of what a file's kernels compute: neither comments and docstrings nor the host code around them count."""
    if file.endswith(".py"):
        parts = []
        for function in jit_functions((ROOT / file).read_text()):
            if ast.get_docstring(function) is not None:
                function.body = function.body[1:]
            parts.append(ast.dump(function))
        text = "\n".join(parts)
    else:
        text = "\n".join(_without_comments(name) for name in _with_headers(file))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _without_comments(file: str) -> str:
    text = (ROOT / file).read_text()
    return " ".join(re.sub(r"//[^\n]*|/\*.*?\*/", " ", text, flags=re.DOTALL).split())


def _with_headers(file: str) -> list[str]:
    """A file of csrc/ and all that it includes from there."""
    found = [file]
    for name in found:
        included = re.findall(r'^#include "(.*?)"', (ROOT / name).read_text(), re.MULTILINE)
        found += [header for header in (f"csrc/{path}" for path in included) if header not in found]
    return found


def digests() -> dict[str, str]:
    """Of every source of kernels that the project has now."""
    return {file: digest(file) for file in (*triton_sources(), *cuda_sources())}


def chosen(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One case of each kernel and dtype of an op: that of the paper's size (width 768, heads of 64 channels)."""

    def rank(row: dict[str, Any]) -> tuple[bool, bool]:
        words = set(row["case"].lower().split())
        return not words & {"d768", "f3072"}, "d64" not in words

    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in rows:
        key = (row["op"], row["kernel"], row["dtype"])
        if key not in found or rank(row) < rank(found[key]):
            found[key] = row
    return list(found.values())


def gpu_runs() -> dict[str, str]:
    """The GPU, and the commit, with which each op was right in a receipt of gpu_check.py in benchmarks/results/."""
    found = {}
    for path in sorted((ROOT / "benchmarks/results").glob("**/*gpu*.json")):
        receipt = json.loads(path.read_text())
        gpu = receipt.get("machine", {}).get("gpu")
        if receipt.get("device") != "cuda" or not gpu:
            continue
        right = {*items_of(receipt, "correctness")} | ({"cpu_states"} if items_of(receipt, "cpu_states") else set())
        right |= {"byte_decode"} if "bytes" in items_of(receipt, "byte_decode") else set()
        red = red_rooms(receipt)
        source = (receipt["commit"]["id"] or receipt["commit"]["sources_sha256"])[:7]
        found |= {op: f"{gpu['name']} ({source})" for op in right if not is_red(op, red)}
    return found


def _run_of(row: dict[str, Any], runs: dict[str, str]) -> str:
    """By the op that a kernel is named after, which may be another one of its room; else by its room's."""
    ops = [op for op in OPS if row["kernel"].startswith(f"_{op}_")]
    return runs.get(max(ops, key=len, default=row["op"]), "not yet")


def table(receipt: dict[str, Any]) -> str:
    """The docs' table: one row a kernel and dtype."""
    runs = gpu_runs()
    lines = [_line(_HEAD), _line(["---"] * len(_HEAD))]
    for row in sorted(chosen(receipt["kernels"]), key=lambda row: row["op"]):
        figures = row["targets"].get(SHOWN)
        if figures is None:
            continue
        matrix = ", ".join(f"{count} {kind}" for kind, count in figures["matrix"].items()) or "–"
        shared = f"{figures['shared'] / 1024:.1f} KB" if figures["shared"] else "–"
        cells = (row["op"], f"`{row['kernel']}`", row["case"], SHOWN.removeprefix("sm_"), figures["registers"], shared)
        lines.append(_line((*cells, figures["instructions"], matrix, _run_of(row, runs))))
    versions = ", ".join(f"{name} {version}" for name, version in receipt["versions"].items())
    cases = sum(len(row["targets"]) for row in receipt["kernels"])
    lines += ["", f"{cases} compilations, none with stack or spills. {versions}."]
    return "\n".join(lines)


def _line(cells: Sequence[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def update_docs() -> None:
    """Puts the receipt's table between the two markers of docs/kernels.md."""
    text = DOCS.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise SystemExit(f"{DOCS.name}: expected the markers {BEGIN} and {END}, once each")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    new = f"{before}{BEGIN}\n{table(json.loads(RECEIPT.read_text()))}\n{END}{after}"
    if new != text:
        with atomic_write(DOCS) as file:
            file.write(new.encode())
