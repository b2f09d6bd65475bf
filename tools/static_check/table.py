"""static.json and the table of docs/kernels.md, and the digests that tell whether they are out of date."""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Iterable
from typing import Any

from benchmarks.environment import ROOT
from bgpt_fast.files import atomic_write
from tools.gpu_check.items import OPS
from tools.gpu_check.report import failed_ops, items_of
from tools.static_check.round_trips import KERNEL

RESULT = ROOT / "benchmarks/results/static.json"
DOCS = ROOT / "docs/kernels.md"
BEGIN, END = "<!-- static.json: begin -->", "<!-- static.json: end -->"
SHOWN = "sm_90"
_HEAD = ("op", "kernel", "case", "sm", "registers", "shared", "instructions", "matrix instructions", "run on a GPU?")


def jit_functions(text: str) -> list[ast.FunctionDef]:
    """The functions in a Python source that are decorated with `@triton.jit`."""
    return [
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef)
        and any(ast.unparse(decorator).split("(")[0] in ("triton.jit", "jit") for decorator in node.decorator_list)
    ]


def triton_sources() -> list[str]:
    """Paths, relative to the project's root, of the files in kernels/ that define a Triton function."""
    files = sorted(ROOT.glob("kernels/*/*.py"))
    return [str(file.relative_to(ROOT)) for file in files if jit_functions(file.read_text())]


def cuda_sources() -> list[str]:
    return [str(file.relative_to(ROOT)) for file in sorted(ROOT.glob("csrc/**/*.cu"))]


def digest(file: str) -> str:
    """A hash of a file's kernels, excluding comments, docstrings and host code."""
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
    """A file in csrc/ and all files in csrc/ that it includes."""
    files = [file]
    for name in files:
        included = re.findall(r'^#include "(.*?)"', (ROOT / name).read_text(), re.MULTILINE)
        files += [header for header in (f"csrc/{path}" for path in included) if header not in files]
    return files


def digests() -> dict[str, str]:
    """The digest of every kernel source, by file."""
    return {file: digest(file) for file in (*triton_sources(), *cuda_sources())}


def chosen(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One case per kernel and dtype of an op: bGPT's symbols, and the paper's width 768 and heads of 64, if any."""

    def rank(row: dict[str, Any]) -> tuple[bool, bool, bool]:
        words = set(row["case"].lower().split())
        return "v128" in words, not words & {"d768", "f3072"}, "d64" not in words

    cases: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in rows:
        key = (row["op"], row["kernel"], row["dtype"])
        if key not in cases or rank(row) < rank(cases[key]):
            cases[key] = row
    return list(cases.values())


def gpu_runs() -> dict[str, str]:
    """The GPU and commit on which each op passed its check, from the results of gpu_check in benchmarks/results/."""
    runs = {}
    for path in sorted((ROOT / "benchmarks/results").glob("**/*gpu*.json")):
        result = json.loads(path.read_text())
        gpu = result.get("machine", {}).get("gpu")
        if result.get("device") != "cuda" or not gpu:
            continue
        right = {*items_of(result, "correctness")} | ({"cpu_states"} if items_of(result, "cpu_states") else set())
        right |= {"byte_decode"} if "bytes" in items_of(result, "byte_decode") else set()
        source = (result["commit"]["id"] or result["commit"]["sources_sha256"])[:7]
        runs |= dict.fromkeys(right - failed_ops(result), f"{gpu['name']} ({source})")
    return runs


def _run_of(row: dict[str, Any], runs: dict[str, str]) -> str:
    """The run of the op that a kernel is named after (a folder may have several ops), otherwise that of its folder."""
    ops = [op for op in OPS if row["kernel"].startswith(f"_{op}_")]
    return runs.get(max(ops, key=len, default=row["op"]), "not yet")


def table(result: dict[str, Any]) -> str:
    """The table for the docs: one row per kernel and dtype."""
    runs = gpu_runs()
    rows = []
    for row in sorted(chosen(result["kernels"]), key=lambda row: row["op"]):
        figures = row["targets"].get(SHOWN)
        if figures is None:
            continue
        matrix = ", ".join(f"{count} {kind}" for kind, count in figures["matrix"].items()) or "–"
        shared = f"{figures['shared'] / 1024:.1f} KB" if figures["shared"] else "–"
        cells = (row["op"], f"`{row['kernel']}`", row["case"], SHOWN.removeprefix("sm_"), figures["registers"], shared)
        rows.append((*cells, figures["instructions"], matrix, _run_of(row, runs)))
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    cases = sum(len(row["targets"]) for row in result["kernels"])
    lines = [f"| {' | '.join(map(str, cells))} |" for cells in (_HEAD, ["---"] * len(_HEAD), *rows)]
    trips = [
        f"{row['targets'][SHOWN]['round_trips']} round trips in {row['dtype']}"
        for row in result["kernels"]
        if "round_trips" in row["targets"].get(SHOWN, {})
    ]
    summary = f"{cases} compilations, none with stack or spills. {versions}."
    if trips:
        summary += f" Longest chain of loads of a byte in `{KERNEL}`, by its machine code: {', '.join(trips)}."
    return "\n".join([*lines, "", summary])


def write_result(result: dict[str, Any]) -> None:
    """Writes static.json, one line per compilation."""
    rows = []
    for row in result["kernels"]:
        before, after = json.dumps({**row, "targets": None}, ensure_ascii=False).rsplit("null", 1)
        targets = [f"{json.dumps(name)}: {json.dumps(figures)}" for name, figures in row["targets"].items()]
        rows.append(f"    {before}{{" + ",\n      ".join(targets) + f"}}{after}")
    head = json.dumps({**result, "kernels": []}, indent=2).removesuffix("[]\n}")
    with atomic_write(RESULT) as file:
        file.write((head + "[\n" + ",\n".join(rows) + "\n  ]\n}\n").encode())


def update_docs() -> None:
    """Writes the table between the two markers of docs/kernels.md."""
    text = DOCS.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise SystemExit(f"{DOCS.name}: expected the markers {BEGIN} and {END}, once each")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    new = f"{before}{BEGIN}\n{table(json.loads(RESULT.read_text()))}\n{END}{after}"
    if new != text:
        with atomic_write(DOCS) as file:
            file.write(new.encode())
