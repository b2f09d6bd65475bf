"""gpu_check without a GPU: its pieces at tiny sizes, its results, and that failures do not spread."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from support.paths import ROOT

from benchmarks.names import COMPILED, OURS, RELEASED
from benchmarks.op_cases import CASES
from benchmarks.op_measure import WrongResultError
from tools.gpu_check import byte_decode, items, pieces, plan, programs, report
from tools.gpu_check.jobs import Exit, Job, Limit, Report, Results, Stage, execute, run_command, run_items
from tools.gpu_check.ops import speed_ups

CPU = torch.device("cpu")
STATUSES = {"ok", "failed", "timed out", "not run"}

# A worker like pieces.py, whose items do what their names say.
WORKER = """
import argparse, json, os, signal, sys, time
parser = argparse.ArgumentParser()
parser.add_argument("--items", nargs="+")
parser.add_argument("--part")
arguments = parser.parse_args()
results = {}

def write():
    with open(arguments.part + "~", "w") as file:
        json.dump(results, file)
    os.replace(arguments.part + "~", arguments.part)

write()
for item in arguments.items:
    if "crash" in item:
        os.kill(os.getpid(), signal.SIGSEGV)
    if "hang" in item:
        time.sleep(60)
    results[item] = {"status": "ok", "by": os.getpid()}
    if "sticky" in item:
        results[item] = {"status": "failed", "reason": "CUDA error"}
    write()
    if "sticky" in item:
        sys.exit(1)
"""


def limit_of(seconds: float = 60.0) -> Limit:
    return Limit(seconds, threading.Event())


def run_worker(
    tmp_path: Path, names: list[str], limit: Limit, item_seconds: float = 60.0, code: str = WORKER
) -> dict[str, Any]:
    results: dict[str, Any] = {}
    options = {"item_seconds": item_seconds, "cwd": tmp_path, "env": dict(os.environ), "folder": tmp_path}
    run_items([sys.executable, "-c", code], names, limit, results.update, **options)
    return results


def test_every_op_has_a_case_and_is_checked_on_a_gpu() -> None:
    assert tuple(case.name for case in CASES if case.on_gpu) == items.OPS
    assert {case.name: case.folder for case in CASES if case.name != case.folder} == items.FOLDERS
    assert set(pieces.PIECES) == set(items.ITEMS)
    started = {piece for names in plan.COMMANDS.values() for piece in names}
    assert started - set(items.ITEMS) == {"build", "tests", "sanitizer"}
    assert set(items.ITEMS) - started == {"extension", "exercise"}  # the build and the sanitizer run these
    for case in CASES:
        if case.on_gpu:
            assert {str(dtype)[6:] for dtype in case.dtypes} == set(items.DTYPES)
            assert case.differentiable == (case.name not in items.FORWARD_ONLY)
    folders = {path.parent.name for path in (ROOT / "kernels").glob("*/op.py")}
    # bench_ops.py has a benchmark of its own for the one; the benchmarks of generation measure the other.
    in_suite = {case.folder for case in CASES} | {"invariant_linear", "byte_decode"}
    assert folders == in_suite


def test_every_piece_gives_a_result_for_every_item(tmp_path: Path) -> None:
    setting = pieces.Setting(CPU, True, {"matmul_flops": 1e12, "copy_bytes_per_s": 1e10}, tmp_path)
    for piece, names in items.ITEMS.items():
        for item in names:
            result, goes_on = pieces.run_item(pieces.PIECES[piece], item, setting)
            assert goes_on
            needs_gpu = piece in ("graphs", "cpu_states", "extension")
            needs_gpu |= item in ("graph", "CPU states", "bytes persistent")
            expected = "not run" if needs_gpu else "ok"
            assert result["status"] == expected, (piece, item, result)
            json.dumps(result, allow_nan=False)


def test_a_failing_item_is_reported_and_a_broken_gpu_ends_the_process() -> None:
    def fail(error: Exception) -> tuple[dict[str, Any], bool]:
        def run(item: str, setting: pieces.Setting) -> dict[str, Any]:
            raise error

        return pieces.run_item(run, "x", pieces.Setting(CPU, True, {}))

    result, goes_on = fail(ValueError("no"))
    assert (result["status"], result["reason"], goes_on) == ("failed", "ValueError: no", True)
    assert "in run\n    raise error" in result["traceback"]
    assert fail(RuntimeError("CUDA error: an illegal memory access was encountered"))[1] is False
    result, _ = pieces.run_item(lambda *_: {"a": {"b": float("nan")}}, "x", pieces.Setting(CPU, True, {}))
    assert result["status"] == "failed"


def test_the_next_items_run_after_a_crash_a_hang_and_a_broken_context(tmp_path: Path) -> None:
    names = ["a", "crash", "b", "hang", "c", "sticky", "d"]
    results = run_worker(tmp_path, names, limit_of(), item_seconds=3)
    assert list(results) == names
    assert {item for item in names if results[item]["status"] == "ok"} == {"a", "b", "c", "d"}
    assert results["crash"]["status"] == "failed"
    assert "signal 11" in results["crash"]["reason"]
    assert results["hang"]["status"] == "timed out"
    assert results["sticky"]["reason"] == "CUDA error"
    assert len({results[item]["by"] for item in "abcd"}) == 4  # a process is not used again after any of these


def test_the_limit_of_a_piece_names_what_did_not_run(tmp_path: Path) -> None:
    began = time.monotonic()
    results = run_worker(tmp_path, ["a", "hang", "b", "c"], limit_of(3))
    assert time.monotonic() - began < 40
    assert [results[item]["status"] for item in ("a", "hang", "b", "c")] == ["ok", "timed out", "not run", "not run"]
    assert results["b"]["reason"] == "out of time"


def test_a_failed_item_has_its_log_and_a_hanging_one_says_where(tmp_path: Path) -> None:
    code = "print('launch some_kernel, grid (7,)', flush=True)\n" + WORKER
    python = [sys.executable, "-X", "faulthandler", "-c", code]
    results: dict[str, Any] = {}
    options = {"item_seconds": 8, "cwd": tmp_path, "env": dict(os.environ), "folder": tmp_path}
    run_items(python, ["sticky", "crash", "hang"], limit_of(), results.update, **options)
    assert all("some_kernel" in result["log"] for result in results.values())
    assert "Segmentation fault" in results["crash"]["log"]
    assert 'File "<string>", line 20 in <module>' in results["hang"]["log"]
    assert len(list(tmp_path.glob("*.log"))) == 3


def test_a_worker_that_cannot_start_fails_all_items_once(tmp_path: Path) -> None:
    results = run_worker(tmp_path, ["a", "b"], limit_of(), code="import nothing_of_that_name")
    assert {item["status"] for item in results.values()} == {"failed"}
    assert "nothing_of_that_name" in results["a"]["reason"]


def test_processes_that_a_killed_process_started_end_with_it(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time; p = subprocess.Popen(['sleep', '61']); print(p.pid, flush=True); time.sleep(60)"
    )
    limit, command = limit_of(2), [sys.executable, "-c", code]
    ended = run_command(command, lambda: limit, cwd=tmp_path, env=dict(os.environ), log=tmp_path / "log")
    assert ended.code is None
    state = Path(f"/proc/{int(ended.last_line)}/stat")
    for _ in range(100):
        if not state.exists() or ") Z" in state.read_text():
            return
        time.sleep(0.05)
    raise AssertionError("the child still runs")


def succeed(names: Sequence[str], limit: Limit, report: Report) -> None:
    report({"x": {"status": "ok"}})


def fail_second(names: Sequence[str], limit: Limit, report: Report) -> None:
    report({"first": {"status": "ok"}})
    raise OSError("no such thing")


def take_all_time(names: Sequence[str], limit: Limit, report: Report) -> None:
    while not limit.is_over:
        time.sleep(0.01)
    report({"x": {"status": "timed out", "reason": f"{limit.seconds:.1f}"}})


def run_stages(stages: list[Stage], stop: threading.Event | None = None) -> tuple[dict[str, Any], list[str]]:
    """The pieces of the last result, and every result that was written, as text."""
    texts: list[str] = []
    results = Results({"schema": 2}, lambda content: texts.append(json.dumps(content)))
    execute(stages, results, stop or threading.Event())
    return results.content()["pieces"], texts


@pytest.mark.parametrize("parallel", [1, 4])
def test_a_failing_or_hanging_job_does_not_lose_the_others(parallel: int) -> None:
    jobs = (
        Job("good", ("x",), succeed, 5),
        Job("broken", ("first", "second"), fail_second, 5),
        Job("slow", ("x",), take_all_time, 0.2),
        Job("late", ("x",), succeed, 5),
    )
    results, texts = run_stages([Stage(jobs, parallel, 60)])
    statuses = {name: piece["status"] for name, piece in results.items()}
    assert statuses == {"good": "ok", "broken": "failed", "slow": "timed out", "late": "ok"}
    assert results["broken"]["items"]["first"] == {"status": "ok"}
    assert "no such thing" in results["broken"]["items"]["second"]["reason"]
    assert len(texts) == 5  # after each result, complete and readable
    assert all(json.loads(text)["pieces"] for text in texts)


@pytest.mark.parametrize(("ends", "stop_after"), [(0.3, None), (60, 0.2)])
def test_no_stage_outlasts_the_whole_and_a_stop_ends_it(ends: float, stop_after: float | None) -> None:
    began, stop = time.monotonic(), threading.Event()
    if stop_after:
        threading.Timer(stop_after, stop.set).start()
    slow, late = Job("slow", ("x",), take_all_time, 60), Job("late", ("x",), succeed, 5)
    results, _ = run_stages([Stage((slow,), 1, ends), Stage((late,), 1, ends)], stop)
    assert time.monotonic() - began < 40
    assert results["late"]["items"]["x"] == {"status": "not run", "reason": "out of time"}


def test_results_of_test_files(tmp_path: Path) -> None:
    (tmp_path / "test_x.py").write_text(
        "import pytest, time\n"
        "def test_good(): pass\n"
        "def test_bad(): assert 1 == 2, 'seen'\n"
        "@pytest.mark.skip\ndef test_skipped(): pass\n"
        "def test_hangs(): time.sleep(60)\n"
    )
    events, stop = tmp_path / "events.jsonl", threading.Event()

    def watch() -> None:
        while not (events.exists() and "test_hangs" in events.read_text()):
            time.sleep(0.05)
        stop.set()

    limit = Limit(60, stop)
    threading.Thread(target=watch, daemon=True).start()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tools.gpu_check.pytest_results"]
    command += ["--results", str(events), "test_x.py"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = run_command(command, lambda: limit, cwd=tmp_path, env=env, log=tmp_path / "log")
    result = programs.test_result(ended, limit, events)
    assert result["status"] == "timed out"
    assert (result["passed"], result["failed"], result["skipped"]) == (1, 1, 1)
    assert "AssertionError: seen" in result["failures"]["test_x.py::test_bad"]
    assert result["reason"].endswith("in test_x.py::test_hangs")


def test_the_tests_for_a_gpu_need_no_packages_of_other_tests(tmp_path: Path) -> None:
    absent = ("tyro", "py65", "mido", "music21", "MEGABYTE_pytorch")  # on the GPU machine of reference
    names = [str(ROOT / name) for name, _ in programs.test_files(quick=False)]
    words = ["--collect-only", "-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT), *names]
    code = f"import sys; sys.modules |= dict.fromkeys({absent}); import pytest; sys.exit(pytest.main({words}))"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert ended.returncode == 0, ended.stdout[-3000:]
    assert "test_layer_norm.py::" in ended.stdout


def test_results_of_the_sanitizer(tmp_path: Path) -> None:
    part = tmp_path / "part.json"
    log = "========= Invalid __global__ write of size 4 bytes\n========= ERROR SUMMARY: 3 errors\n"
    failed = programs.sanitizer_result(Exit(86, 1.0, log), limit_of(), part)
    assert failed["status"] == "failed"
    assert "3 errors" in failed["reason"]
    assert "Invalid __global__ write" in failed["reason"]
    clean = Exit(0, 1.0, "========= ERROR SUMMARY: 0 errors\n")
    assert programs.sanitizer_result(clean, limit_of(), part)["status"] == "ok"
    part.write_text('{"layer_norm": {"status": "failed", "reason": "bad"}}')
    wrong = programs.sanitizer_result(clean, limit_of(), part)
    assert (wrong["status"], wrong["reason"]) == ("failed", "layer_norm: bad")


def gpu_result() -> dict[str, Any]:
    """A result as a GPU would give it, with round figures."""
    direction = {"p20": 1e-4, "median": 1e-4, "p80": 1e-4, "calls": 9, "gb_per_s": 4000.0, "of_peak": 0.9}
    op = {"timed": {"op": {"forward": direction, "backward": direction}}, "speed_up": {"SDPA": 2.0}}
    ours = {"patches_per_s": 2e5, "patches": 9, "mfu": 0.56, "peak_memory": 9e9, "memory_target": 1e10}
    slower = {**ours, "patches_per_s": 1e5}
    decoded = {
        batch: {"persistent_rows": 24, "persistent": {"bytes_per_s": 5e4}, "graphed": {"bytes_per_s": 2e4 * int(batch)}}
        for batch in ("1", "2", "4")
    }
    large = {"persistent_rows": 24, "graphed": {"bytes_per_s": 2e6}, "batch_invariant_cost": 2.5}
    results = {
        "tests": {"tests/kernels/test_layer_norm.py": {"passed": 5}},
        "peak": {name: {"rate": 4e12, "dtype": "bfloat16"} for name in ("matmul", "copy")},
        "ops": dict.fromkeys(items.OPS, op),
        "training": {"losses": {}, OURS: ours, COMPILED: slower, RELEASED: slower},
        "byte_decode": {"bytes": {"patches": 9}, **decoded, "4096": large},
        "generation": {"1": {"bytes_per_s": 80.0}, RELEASED: {"bytes_per_s": 8.0}},
    }
    entries = {
        piece: {"status": "ok", "items": {name: {"status": "ok", **item} for name, item in named.items()}}
        for piece, named in results.items()
    }
    head = {"quick": False, "commit": {"id": "abc"}, "machine": {"gpu": {"name": "H200"}}, "seconds": 1.0}
    return {**head, "pieces": entries}


def test_bits_of_patches_alone() -> None:
    assert byte_decode.check_bits(CPU, lambda step: step) == {"float32": 3 * (1 + 2 + 3 + 7) + 128}
    with pytest.raises(WrongResultError, match="in a batch of 1 than of 128"):
        byte_decode.check_alone(CPU, "float32", lambda step: step, batch_invariant=False)


def test_the_table_and_the_targets() -> None:
    result = gpu_result()
    result["summary"] = short = report.summary(result)
    assert short["targets"] == {"compiled": True, "released": False, "mfu": True, "memory": True}
    assert short["generation_times_released"] == {"1": 10.0}
    assert short["byte_decode_switch"] == {"expected": 24, "persistent_faster_up_to": 2}
    text = report.table(result)
    assert "faster up to 2 patches; PERSISTENT_ROWS is 24" in text
    assert "4096 patches: 2000000 B/s graphed; batch-invariant in 2.50 × the time" in text
    for part in ("layer_norm", "2.00 × SDPA", "MFU 56.0 %", "released MISSED", "10.0 × the released method", "90 %"):
        assert part in text
    assert max(map(len, text.splitlines())) < 200


def test_no_speed_up_is_reported_for_failed_ops() -> None:
    result = gpu_result()
    result["pieces"]["tests"]["items"]["tests/kernels/test_layer_norm.py"]["status"] = "failed"
    result["summary"] = short = report.summary(result)
    assert short["speed_up_withheld"] == ["add_layer_norm", "layer_norm"]
    assert not short["targets"]
    rows = [line for line in report.table(result).splitlines() if "layer_norm  " in line]
    assert len(rows) == 2
    assert all("no speed-up" in row for row in rows)


def test_speed_ups_are_of_both_directions_together() -> None:
    ours = {"forward": {"median": 1.0}, "backward": {"median": 1.0}}
    slower = {"forward": {"median": 2.0}, "backward": {"median": 4.0}}
    assert speed_ups({"op": ours, "baseline": slower, "other": {"failed": "no"}}) == {"baseline": 3.0}


def run_program(tmp_path: Path, *words: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """Runs the command at tiny sizes, without its build: other tests use the extension at this moment."""
    output = tmp_path / "results"
    command = [sys.executable, "-m", "tools.gpu_check", *words, "--device", "cpu", "--quick", "--output", str(output)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env, timeout=280)
    result = json.loads((output / f"gpu_{words[0]}.json").read_text())
    assert result["schema"] == 3
    with tarfile.open(output / f"gpu_{words[0]}_logs.tar.gz") as archive:
        has_logs = "--time-limit" not in words and not result["pieces"].keys() <= {"sanitizer", "tests"}
        assert archive.getnames() or not has_logs
    assert result["complete"] is True
    assert set(result) >= {"command", "started", "seconds", "commit", "machine", "device", "quick", "summary"}
    assert len(result["commit"]["sources_sha256"]) == 64
    assert result["machine"]["packages"]["torch"] in (torch.__version__, torch.__version__.split("+")[0])
    for piece in result["pieces"].values():
        assert piece["status"] in STATUSES
        assert all(item["status"] in STATUSES for item in piece["items"].values())
        assert all(item["status"] == "ok" or item["reason"] for item in piece["items"].values())
    return ended, result


def test_the_command_writes_a_result(tmp_path: Path) -> None:
    ended, result = run_program(tmp_path, "check", "--pieces", "peak", "sanitizer")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert {name: piece["status"] for name, piece in result["pieces"].items()} == {"peak": "ok", "sanitizer": "not run"}
    assert ended.stdout.splitlines()[-1] == f"result: {tmp_path / 'results/gpu_check.json'}"


def test_the_command_out_of_time(tmp_path: Path) -> None:
    ended, result = run_program(tmp_path, "check", "--pieces", "peak", "ops", "--time-limit", "0")
    assert ended.returncode == 1
    entries = [item for piece in result["pieces"].values() for item in piece["items"].values()]
    assert len(entries) == 2 + len(items.OPS)
    assert {item["reason"] for item in entries} == {"out of time"}


@pytest.mark.slow
@pytest.mark.parametrize("command", plan.COMMANDS)
def test_a_whole_command_but_the_build(tmp_path: Path, command: str) -> None:
    names = [piece for piece in plan.COMMANDS[command] if piece != "build"]
    ended, result = run_program(tmp_path, command, "--pieces", *names)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert set(result["pieces"]) == set(names)
    skipped = {name for name, piece in result["pieces"].items() if piece["status"] == "not run"}
    assert skipped == ({"graphs", "sanitizer", "cpu_states"} if command == "check" else {"first"})
