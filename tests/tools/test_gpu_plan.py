"""What gpu_check runs and leaves out, rehearsed with workers that fail on purpose: no GPU and no torch take part."""

from __future__ import annotations

import json
import sys
import tarfile
import threading
from pathlib import Path
from typing import Any

import pytest

from tools.gpu_check import items, plan, programs
from tools.gpu_check.archive import LOG_BYTES, write_archive
from tools.gpu_check.jobs import Results, execute
from tools.gpu_check.plan import COMMANDS, ON_CPU, Plan

# In place of pieces.py: items are ok, but those that are named in the first argument raise, hang or have no CUDA.
WORKER = """
import json, os, sys, time
faults, piece = json.loads(sys.argv[1]), sys.argv[2]
names = sys.argv[sys.argv.index("--items") + 1 : sys.argv.index("--part")]
part = sys.argv[-1]
results = {}

def write():
    with open(part + "~", "w") as file:
        json.dump(results, file)
    os.replace(part + "~", part)

write()
for name in names:
    fault = next((fault for mark, fault in faults.items() if mark in piece + " " + name), None)
    if fault == "hang":
        print("launch _hanging_kernel, grid (7,)", flush=True)
        time.sleep(300)
    results[name] = {"status": "ok", "rate": 1.0} if fault is None else {"status": "failed", "reason": fault}
    write()
"""


def rehearse(
    folder: Path,
    faults: dict[str, str],
    command: str = "contact",
    build: str = "print('built')",
    **fields: Any,
) -> dict[str, Any]:
    """The items' results by piece, of a command whose workers have these faults."""
    folder.mkdir(exist_ok=True)
    results = Results({}, lambda content: None)
    settings: dict[str, Any] = {
        "device": "cuda",
        "quick": True,
        "pieces": COMMANDS[command],
        "seconds": 200.0,
        "parallel": 4,
        "item_seconds": 10.0,
        "worker": (sys.executable, "-X", "faulthandler", "-c", WORKER, json.dumps(faults)),
        "build": (sys.executable, "-c", build),
        **fields,
    }
    checks = Plan(command=command, output=folder, folder=folder, results=results, **settings)
    execute(checks.stages(), results, threading.Event())
    return {piece: entry["items"] for piece, entry in results.pieces.items()}


def statuses(results: dict[str, Any], piece: str) -> set[str]:
    return {item["status"] for item in results[piece].values()}


def test_on_a_slow_machine_the_limits_of_items_grow_too(tmp_path: Path) -> None:
    faults = {"layer_norm float16 forward": "hang"}
    for patience, limit in ((1.0, "1 s"), (3.0, "3 s")):
        results = rehearse(tmp_path / limit, faults, pieces=("values",), item_seconds=1.0, patience=patience)
        assert results["values"]["layer_norm float16 forward"]["reason"] == f"over its limit of {limit}"


def test_the_contact_runs_everything_past_a_kernel_that_raises_and_one_that_hangs(tmp_path: Path) -> None:
    results = rehearse(tmp_path, {"layer_norm float16 forward": "RuntimeError: wrong", "bias_gelu bfloat16 fo": "hang"})
    assert set(results) == set(COMMANDS["contact"])
    for piece in ("values", "first", "peak", "products", "steps"):
        assert set(results[piece]) == set(items.ITEMS[piece])
    bad = {name: item for piece in results.values() for name, item in piece.items() if item["status"] != "ok"}
    names = {"layer_norm float16 forward", "add_layer_norm float16 forward", "bias_gelu bfloat16 forward"}
    assert set(bad) == names
    hanging = bad["bias_gelu bfloat16 forward"]
    assert hanging["status"] == "timed out"
    assert "_hanging_kernel" in hanging["log"]
    assert 'File "<string>", line' in hanging["log"]  # by faulthandler


def test_steps_are_not_timed_if_the_first_one_is_wrong(tmp_path: Path) -> None:
    results = rehearse(tmp_path, {"step bfloat16": "wrong"})
    assert statuses(results, "steps") == {"not run"}
    assert results["steps"]["timed"]["reason"] == "the contact's step bfloat16: failed"
    assert statuses(results, "peak") == statuses(results, "products") == {"ok"}


def test_an_extension_that_runs_is_not_built(tmp_path: Path) -> None:
    (result,) = rehearse(tmp_path, {}, pieces=("build",), build="raise SystemExit('built')")["build"].values()
    assert (result["status"], result["built"]) == ("ok", False)


def test_a_build_that_fails_stops_at_once_with_its_output(tmp_path: Path) -> None:
    build = "import sys; print('ptxas error   : too much shared data'); sys.exit(3)"
    results = rehearse(tmp_path, {"extension": "ImportError: no module"}, build=build)
    built = results.pop("build")["extension"]
    assert built["status"] == "failed"
    assert "ptxas error" in built["log"]
    assert built["before"]["reason"] == "ImportError: no module"
    assert {item["status"] for piece in results.values() for item in piece.values()} == {"not run"}
    assert results["values"]["layer_norm float32 forward"]["reason"] == "the extension: failed"


def test_a_build_without_cuda_is_not_ok(tmp_path: Path) -> None:
    results = rehearse(tmp_path, {"extension": "RuntimeError: _C.so was built without CUDA"}, pieces=("build",))
    (result,) = results["build"].values()
    assert (result["status"], result["built"]) == ("failed", True)
    assert "without CUDA" in result["reason"]
    assert "built" in result["log"]


def contact_with(*bad: str) -> dict[str, Any]:
    """A contact's result by piece, in which these items have failed."""
    return {
        piece: {"items": {name: {"status": "failed" if name in bad else "ok"} for name in items.ITEMS[piece]}}
        for piece in ("values", "first")
    }


def test_the_check_runs_what_is_ok_in_the_contact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "test_files", lambda quick: [(f"tests/kernels/test_{op}.py", []) for op in items.OPS])
    monkeypatch.setattr(Plan, "_test", lambda self, name, selection: self._job("tests", (name,), report_ok, 9))
    contact = contact_with("layer_norm float16 gradients", "bytes persistent")
    results = rehearse(tmp_path, {}, "check", contact=contact)
    for piece in ("ops", "correctness", "graphs"):
        assert results[piece]["layer_norm"]["reason"] == "the contact's layer_norm float16 gradients: failed"
        assert {name for name, item in results[piece].items() if item["status"] != "ok"} == {"layer_norm"}
    assert statuses(results, "byte_decode") == statuses(results, "generation") == {"not run"}
    assert statuses(results, "training") == statuses(results, "cpu_states") == statuses(results, "peak") == {"ok"}
    assert results["tests"]["tests/kernels/test_layer_norm.py"]["status"] == "not run"
    assert results["tests"]["tests/kernels/test_bias_gelu.py"]["status"] == "ok"
    # Timings come first.
    assert list(results).index("cpu_states") < list(results).index("tests") < list(results).index("sanitizer")


def report_ok(names: Any, limit: Any, report: Any) -> None:
    report({name: {"status": "ok"} for name in names})


@pytest.mark.parametrize(
    ("item", "needed"),
    [
        ("tests/kernels/test_layer_norm.py", items.value_items("layer_norm") + items.value_items("add_layer_norm")),
        ("tests/kernels/test_interpreter.py", ()),
        ("tests/kernels/test_byte_decode.py", items.BYTES),
        ("tests/generation/test_cuda_decoder.py", items.BYTES),
        ("tests/training/test_resume.py", items.STEPS),
        ("tests/tasks/cpu_states/test_gpu_source.py", ("CPU states",)),
        ("tests/test_patches.py", ()),
    ],
)
def test_a_test_file_needs_what_it_tests(item: str, needed: tuple[str, ...]) -> None:
    assert items.needs("tests", item)[1] == needed


def test_every_needed_item_exists() -> None:
    for piece, names in items.ITEMS.items():
        for name in names:
            needed, others = items.needs(piece, name)
            assert set(others) <= set(items.ITEMS[needed])


def test_a_missing_sanitizer_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tools.gpu_check.__main__ import is_accepted

    monkeypatch.setattr("shutil.which", lambda name: None)
    results = rehearse(tmp_path, {}, "check", contact=contact_with(), pieces=("build", "sanitizer"))
    assert results["sanitizer"]["memcheck"]["reason"] == "compute-sanitizer was not found"
    assert not any(map(is_accepted, results["sanitizer"].values()))
    assert is_accepted({"status": "not run", "reason": ON_CPU})


def test_the_check_without_a_contact_says_so(tmp_path: Path) -> None:
    from tools.gpu_check.__main__ import main

    with pytest.raises(SystemExit, match="run `make gpu-contact` first"):
        main(["check", "--output", str(tmp_path)])


def test_the_ops_tests_are_among_those_for_a_gpu() -> None:
    files = dict(programs.test_files(quick=False))
    assert all(f"tests/kernels/test_{items.FOLDERS.get(op, op)}.py" in files for op in items.OPS)
    assert files["tests/tasks/cpu_states/test_gpu_source.py"] == ["-m", "gpu"]


def test_the_archive_has_the_end_of_each_log(tmp_path: Path) -> None:
    (tmp_path / "logs/values").mkdir(parents=True)
    (tmp_path / "logs/values/0.log").write_bytes(b"a" * LOG_BYTES + b"end")
    (tmp_path / "logs/other.bin").touch()
    write_archive(tmp_path / "logs", tmp_path / "logs.tar.gz")
    with tarfile.open(tmp_path / "logs.tar.gz") as archive:
        (name,) = archive.getnames()
        content = archive.extractfile(name)
        assert content is not None
        assert (name, content.read()[-5:]) == ("values/0.log", b"aaend")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["logs.tar.gz"]
