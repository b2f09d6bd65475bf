"""Every kernel compiles ahead of time for GPUs that are not here, and static.json and the docs have the figures."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import support.interpreter  # noqa: F401  # before triton, which static_check's cases import
from support.paths import ROOT

from tools.static_check import __main__ as static_check
from tools.static_check import compile, table

RESULT: dict[str, Any] = json.loads(table.RESULT.read_text())
SAMPLES = Path(__file__).parent / "static_samples.py"


def check(tmp_path: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """Runs the program in a process of its own: this one interprets kernels."""
    target = tmp_path / "static.json"
    command = [sys.executable, "-m", "tools.static_check", "--dry-run", "--json", str(target)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TRITON_INTERPRET": "1", "COLUMNS": "200"}
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, env=environment)
    assert target.exists(), done.stderr
    return done, json.loads(target.read_text())


def kernels_in_sources() -> set[str]:
    names = {
        function.name for file in table.triton_sources() for function in table.jit_functions((ROOT / file).read_text())
    }
    for file in table.cuda_sources():
        names |= set(re.findall(r"\b(_\w+_kernel)\(", (ROOT / file).read_text()))
    return {name for name in names if name.endswith("_kernel")}


def test_each_kernel_compiles_for_each_target(tmp_path: Path) -> None:
    done, result = check(tmp_path, "--quick")
    assert done.returncode == 0, done.stderr
    expected = kernels_in_sources()
    if shutil.which("nvcc") is None:
        expected = {row["kernel"] for row in RESULT["kernels"] if row["source"].endswith(".py")}
    assert {row["kernel"] for row in result["kernels"]} == expected
    assert all(set(row["targets"]) == {"sm_80", "sm_90", "sm_100"} for row in result["kernels"])


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_case_compiles_for_each_target(tmp_path: Path) -> None:
    done, result = check(tmp_path)
    assert done.returncode == 0, done.stderr
    if result["versions"] == RESULT["versions"]:
        assert result["kernels"] == RESULT["kernels"]


def test_what_should_not_be_launched_is_refused(tmp_path: Path) -> None:
    done, result = check(tmp_path, "--sm", "90", "--", str(SAMPLES))
    assert done.returncode == 1
    refused = dict(re.findall(r"static_samples\.py: (.+?) sm_90: (.+)", done.stderr))
    assert set(refused) == {"spills bf16", "shared bf16", "no product fp32", "no vector fp32", "argument forgotten"}
    assert "expected 0 bytes of stack, got" in refused["spills bf16"]
    assert "expected at most 232448 bytes of shared memory, got 262144" in refused["shared bf16"]
    assert "expected mma.sync|wgmma|tcgen05.mma in its PTX, found none" in refused["no product fp32"]
    assert "expected .v4 in its PTX, found none" in refused["no vector fp32"]
    assert "argument must be in types or in constexprs" in refused["argument forgotten"]
    [fits] = [row["targets"]["sm_90"] for row in result["kernels"] if row["case"] == "fits bf16"]
    assert fits["stack"] == 0
    assert fits["registers"] > 0
    assert fits["instructions"] > 0
    assert any(kind.startswith("HGMMA") for kind in fits["matrix"])


def test_the_result_lists_every_kernel_and_case() -> None:
    assert {row["kernel"] for row in RESULT["kernels"]} == kernels_in_sources(), "run `make static`"
    rows = [row for row in RESULT["kernels"] if row["source"].endswith(".py")]
    listed = [{key: value for key, value in row.items() if key != "targets"} for row in rows]
    files = [file for file in static_check.kernel_files() if file.endswith(".py")]
    # With block sizes and warps: they are chosen outside the kernels.
    cases = [compile.row_of(file, case) for file in files for case in compile.cases_of(file).values()]
    assert listed == json.loads(json.dumps(cases)), "run `make static`"


def test_the_result_is_of_these_sources() -> None:
    assert RESULT["digests"] == table.digests(), "kernels changed since static.json was written: run `make static`"


def test_the_result_has_no_refused_kernel() -> None:
    for row in RESULT["kernels"]:
        assert set(row["targets"]) == {"sm_80", "sm_90", "sm_100"}
        for target, figures in row["targets"].items():
            assert compile.limits(row["kernel"], figures, int(target.removeprefix("sm_"))) == [], row["case"]
    assert str(ROOT) not in table.RESULT.read_text()


def test_the_result_has_a_line_for_each_compilation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = table.RESULT.read_text()
    compilations = sum(len(row["targets"]) for row in RESULT["kernels"])
    assert compilations < len(text.splitlines()) < compilations + 40
    monkeypatch.setattr(table, "RESULT", tmp_path / "static.json")
    table.write_result(RESULT)
    assert table.RESULT.read_text() == text


@pytest.mark.parametrize(
    ("source", "changed", "text"),
    [
        (
            "x.py",
            "x.py",
            '@triton.jit\ndef _x_kernel(x):\n    """{comment}"""\n    tl.store(x, {value})  # {comment}\n',
        ),
        ("csrc/x/x.cu", "csrc/x/x.h", "int x = {value};  // {comment}"),
    ],
    ids=["Triton", "CUDA"],
)
def test_a_digest_follows_the_code_and_its_headers_alone(
    source: str, changed: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "ROOT", tmp_path)
    (tmp_path / "csrc/x").mkdir(parents=True)
    (tmp_path / "csrc/x/x.cu").write_text('#include "x/x.h"  // one\n')
    digests = []
    for comment, value in (("one", 1), ("two", 1), ("two", 2)):
        (tmp_path / changed).write_text(text.format(comment=comment, value=value))
        digests.append(table.digest(source))
    assert digests[0] == digests[1] != digests[2]


def test_sources_that_change_during_a_run_write_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    digests = iter([{"x.py": "before"}, {"x.py": "after"}])
    monkeypatch.setattr(static_check, "digests", lambda: next(digests))
    monkeypatch.setattr(static_check, "run", lambda tasks, jobs: [])
    monkeypatch.setattr(static_check, "tasks_of", lambda files, capabilities, quick: [])
    monkeypatch.setattr(static_check, "kernel_files", list)
    monkeypatch.setattr(static_check, "write_result", lambda path, value: pytest.fail("written"))
    monkeypatch.setattr(sys, "argv", ["static_check.py"])
    # main() takes it out of the environment for good.
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert static_check.main() == 1


def test_unchanged_sources_are_not_compiled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    files, now, versions = static_check.kernel_files(), table.digests(), RESULT["versions"]
    monkeypatch.setattr(static_check, "versions", lambda: versions)
    rows = static_check.rows_of_unchanged(files)
    assert [row for file in files for row in rows[file]] == RESULT["kernels"]
    for changed in ("csrc/patch_embed/patch_embed.cu", "kernels/layer_norm/triton_kernels.py"):
        monkeypatch.setattr(static_check, "digests", lambda changed=changed: {**now, changed: "other"})
        assert set(files) - set(static_check.rows_of_unchanged(files)) == {changed}
    # What several files' kernels call.
    monkeypatch.setattr(static_check, "digests", lambda: {**now, "kernels/common/one_hot.py": "other"})
    assert all(file.endswith(".cu") for file in static_check.rows_of_unchanged(files))
    monkeypatch.setattr(static_check, "versions", lambda: {**versions, "ptxas": "0.0.0"})
    assert static_check.rows_of_unchanged(files) == {}


def test_the_docs_show_the_result() -> None:
    text = table.DOCS.read_text()
    section = text.split(table.BEGIN)[1].split(table.END)[0].strip()
    assert section == table.table(RESULT), "run `make static`"
    for row in RESULT["kernels"]:
        assert f"`{row['kernel']}`" in section


def test_a_result_of_a_gpu_shows_in_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "benchmarks/results/h200"
    folder.mkdir(parents=True)
    items = {"byte_attention": {"status": "ok"}, "bias_gelu": {"status": "failed"}, "layer_norm": {"status": "ok"}}
    result = {
        "device": "cuda",
        "machine": {"gpu": {"name": "NVIDIA H200"}},
        "commit": {"id": "0123456789", "sources_sha256": "f"},
        "pieces": {"correctness": {"items": items}},
    }
    monkeypatch.setattr(table, "ROOT", tmp_path)
    (folder / "gpu_check.json").write_text(json.dumps(result))
    assert table.gpu_runs() == dict.fromkeys(("byte_attention", "layer_norm"), "NVIDIA H200 (0123456)")
    figures = {"registers": 1, "shared": 0, "instructions": 1, "matrix": {}}
    names = ["_byte_attention_fwd_kernel", "_byte_attention_projected_fwd_kernel"]
    rows = [
        {"op": "byte_attention", "kernel": name, "case": name, "dtype": "bf16", "targets": {"sm_90": figures}}
        for name in names
    ]
    lines = table.table({"kernels": rows, "versions": {}}).splitlines()
    assert lines[2].endswith("| NVIDIA H200 (0123456) |")
    assert lines[3].endswith("| not yet |"), "another op of the folder has not run"
    # A run on a CPU proves nothing of a GPU.
    (folder / "gpu_check.json").write_text(json.dumps({**result, "device": "cpu"}))
    assert table.gpu_runs() == {}
