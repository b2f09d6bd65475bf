"""`make gpu-check` without a GPU: its pieces at tiny sizes, its receipt, and what a bad piece does to the others."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import check_byte_decode
import check_items
import check_pieces
import check_plan
import check_report
import pytest
import torch
from check_jobs import Ended, Job, Limit, Receipt, Report, Stage, execute, run_command, run_items
from op_cases import CASES, SMALL, Maker, OpCase, Work, case_of
from op_measure import WrongResultError, check, figures, run, speed_ups
from support.paths import ROOT
from timing import Timing, measure, summarise

CPU = torch.device("cpu")
NAMES = [case.name for case in CASES]
STATUSES = {"ok", "failed", "timed out", "not run"}

# A worker as check_pieces.py is one; what its items do is in their names.
WORKER = """
import argparse, json, os, signal, sys, time
parser = argparse.ArgumentParser()
parser.add_argument("--items", nargs="+")
parser.add_argument("--part")
arguments = parser.parse_args()
found = {}
for item in arguments.items:
    if "crash" in item:
        os.kill(os.getpid(), signal.SIGSEGV)
    if "hang" in item:
        time.sleep(60)
    found[item] = {"status": "ok", "by": os.getpid()}
    if "sticky" in item:
        found[item] = {"status": "failed", "reason": "CUDA error"}
    with open(arguments.part + "~", "w") as file:
        json.dump(found, file)
    os.replace(arguments.part + "~", arguments.part)
    if "sticky" in item:
        sys.exit(1)
"""


def endless_limit(seconds: float = 60.0) -> Limit:
    return Limit(seconds, threading.Event())


def worked(
    tmp_path: Path, items: list[str], limit: Limit, item_seconds: float = 60.0, code: str = WORKER
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    where = {"cwd": tmp_path, "env": dict(os.environ), "folder": tmp_path}
    run_items([sys.executable, "-c", code], items, limit, found.update, item_seconds=item_seconds, **where)
    return found


def test_the_ops_are_those_of_the_cases() -> None:
    assert tuple(case.name for case in CASES if case.on_gpu) == check_items.OPS
    assert set(check_pieces.PIECES) == set(check_items.ITEMS)
    assert set(check_plan.PIECES) - set(check_items.ITEMS) == {"build", "tests", "sanitizer"}
    rooms = {path.parent.name for path in (ROOT / "kernels").glob("*/op.py")}
    benchmarks = {path.stem.removeprefix("bench_") for path in (ROOT / "benchmarks").glob("bench_*.py")}
    # bench_generation.py measures byte_decode, within generation.
    assert rooms <= benchmarks | {"byte_decode"}
    assert {case.room for case in CASES} <= rooms


@pytest.mark.parametrize("name", NAMES)
def test_a_case_is_right_and_its_peers_compute_the_same(name: str) -> None:
    case = case_of(name)
    for dtype in case.dtypes:
        check(case, SMALL, dtype, CPU)
    arguments = case.inputs(Maker(SMALL, torch.float32, CPU, seed=3))
    expected = run(case.reference, arguments)
    for peer in case.peers.values():
        for got, want in zip(run(peer, arguments), expected, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    forward, backward = case.work(SMALL, 2)
    assert forward.bytes > 0
    assert (backward.bytes > 0) == case.differentiable


@pytest.mark.parametrize(
    "spoil",
    [
        lambda y: y * (1 + 1e-3),
        lambda y: torch.cat([y[:-1], y[-1:] + 1e-2]),
        lambda y: torch.where(torch.arange(y.shape[1]) == 5, torch.nan, y),
        lambda y: y + 1e-6 * random.random(),
    ],
    ids=["all wrong", "one row wrong", "a NaN", "never the same"],
)
def test_a_wrong_op_is_not_timed(spoil: Any) -> None:
    good = case_of("bias_gelu")
    fields = {name: getattr(good, name) for name in good.__dataclass_fields__}
    bad = OpCase(**fields | {"op": lambda x, bias: spoil(good.op(x, bias))})
    with pytest.raises(WrongResultError):
        check(bad, SMALL, torch.float32, CPU)


def test_every_piece_gives_a_result_for_every_item(monkeypatch: pytest.MonkeyPatch) -> None:
    place = check_pieces.Place(CPU, True, {"matmul_flops": 1e12, "copy_bytes_per_s": 1e10})
    for piece, items in check_items.ITEMS.items():
        for item in items:
            result, goes_on = check_pieces.run_item(check_pieces.PIECES[piece], item, place)
            assert goes_on
            expected = "not run" if piece in ("graphs", "cpu_states") else "ok"
            assert result["status"] == expected, (piece, item, result)
            json.dumps(result, allow_nan=False)


def test_a_failing_item_is_reported_and_a_broken_gpu_ends_the_process() -> None:
    def fail(error: Exception) -> tuple[dict[str, Any], bool]:
        def run(item: str, place: check_pieces.Place) -> dict[str, Any]:
            raise error

        return check_pieces.run_item(run, "x", check_pieces.Place(CPU, True, {}))

    assert fail(ValueError("no")) == ({"status": "failed", "reason": "ValueError: no"}, True)
    assert fail(RuntimeError("CUDA error: an illegal memory access was encountered"))[1] is False
    result, _ = check_pieces.run_item(lambda *_: {"a": {"b": float("nan")}}, "x", check_pieces.Place(CPU, True, {}))
    assert result["status"] == "failed"


def test_the_next_items_run_after_a_crash_a_hang_and_a_broken_context(tmp_path: Path) -> None:
    items = ["a", "crash", "b", "hang", "c", "sticky", "d"]
    found = worked(tmp_path, items, endless_limit(), item_seconds=3)
    assert list(found) == items
    assert {item for item in items if found[item]["status"] == "ok"} == {"a", "b", "c", "d"}
    assert found["crash"] == found["crash"] | {"status": "failed"}
    assert "signal 11" in found["crash"]["reason"]
    assert found["hang"]["status"] == "timed out"
    assert found["sticky"]["reason"] == "CUDA error"
    assert len({found[item]["by"] for item in "abcd"}) == 4  # a process is not used again after any of these


def test_the_limit_of_a_piece_names_what_did_not_run(tmp_path: Path) -> None:
    began = time.monotonic()
    found = worked(tmp_path, ["a", "hang", "b", "c"], endless_limit(3))
    assert time.monotonic() - began < 40
    assert [found[item]["status"] for item in ("a", "hang", "b", "c")] == ["ok", "timed out", "not run", "not run"]
    assert found["b"]["reason"] == "out of time"


def test_a_worker_that_cannot_start_fails_all_items_once(tmp_path: Path) -> None:
    found = worked(tmp_path, ["a", "b"], endless_limit(), code="import nothing_of_that_name")
    assert {item["status"] for item in found.values()} == {"failed"}
    assert "nothing_of_that_name" in found["a"]["reason"]


def test_what_a_killed_process_started_ends_with_it(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time; p = subprocess.Popen(['sleep', '61']); print(p.pid, flush=True); time.sleep(60)"
    )
    ended = run_command(
        [sys.executable, "-c", code], endless_limit(2), cwd=tmp_path, env=dict(os.environ), log=tmp_path / "log"
    )
    assert ended.code is None
    child = int(ended.last_line)
    for _ in range(100):
        state = Path(f"/proc/{child}/stat")
        if not state.exists() or ") Z" in state.read_text():
            return
        time.sleep(0.05)
    raise AssertionError("the child still runs")


def fine(limit: Limit, report: Report) -> None:
    report({"x": {"status": "ok"}})


def broken(limit: Limit, report: Report) -> None:
    report({"first": {"status": "ok"}})
    raise OSError("no such thing")


def slow(limit: Limit, report: Report) -> None:
    while not limit.is_over:
        time.sleep(0.01)
    report({"x": {"status": "timed out", "reason": f"{limit.seconds:.1f}"}})


def executed(stages: list[Stage], stop: threading.Event | None = None) -> tuple[dict[str, Any], list[str]]:
    """The pieces of the last receipt, and every receipt that was written, as text."""
    written: list[str] = []
    receipt = Receipt({"schema": 1}, lambda whole: written.append(json.dumps(whole)))
    execute(stages, receipt, stop or threading.Event())
    return receipt.whole()["pieces"], written


def test_a_failing_or_hanging_job_does_not_lose_the_others() -> None:
    jobs = (
        Job("good", ("x",), fine, 5),
        Job("broken", ("first", "second"), broken, 5),
        Job("slow", ("x",), slow, 0.2),
        Job("late", ("x",), fine, 5),
    )
    for parallel in (1, 4):
        pieces, written = executed([Stage(jobs, parallel, 60)])
        statuses = {name: piece["status"] for name, piece in pieces.items()}
        assert statuses == {"good": "ok", "broken": "failed", "slow": "timed out", "late": "ok"}
        assert pieces["broken"]["items"]["first"] == {"status": "ok"}
        assert "no such thing" in pieces["broken"]["items"]["second"]["reason"]
        assert len(written) == 5  # after each result, whole and readable
        assert all(json.loads(text)["pieces"] for text in written)


def test_no_stage_outlasts_the_whole_and_a_stop_ends_it() -> None:
    began = time.monotonic()
    pieces, _ = executed(
        [Stage((Job("slow", ("x",), slow, 60),), 1, 0.3), Stage((Job("late", ("x",), fine, 5),), 1, 0.3)]
    )
    assert time.monotonic() - began < 40
    assert pieces["late"]["items"]["x"] == {"status": "not run", "reason": "out of time"}
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()
    pieces, _ = executed(
        [Stage((Job("slow", ("x",), slow, 60),), 1, 60), Stage((Job("late", ("x",), fine, 5),), 1, 60)], stop
    )
    assert time.monotonic() - began < 80
    assert pieces["late"]["status"] == "not run"


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
    command = [sys.executable, "-m", "pytest", "-q", "-p", "pytest_receipt", "--receipt", str(events), "test_x.py"]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "benchmarks")}
    ended = run_command(command, limit, cwd=tmp_path, env=env, log=tmp_path / "log")
    result = check_plan.test_result(ended, limit, events)
    assert result["status"] == "timed out"
    assert (result["passed"], result["failed"], result["skipped"]) == (1, 1, 1)
    assert "AssertionError: seen" in result["failures"]["test_x.py::test_bad"]
    assert result["reason"].endswith("in test_x.py::test_hangs")


def test_results_of_the_sanitizer(tmp_path: Path) -> None:
    log = "========= Invalid __global__ write of size 4 bytes\n========= ERROR SUMMARY: 3 errors\n"
    found = check_plan.sanitizer_result(Ended(86, 1.0, log), endless_limit(), tmp_path / "none.json")
    assert found["status"] == "failed"
    assert "3 errors" in found["reason"]
    assert "Invalid __global__ write" in found["reason"]
    clean = check_plan.sanitizer_result(
        Ended(0, 1.0, "========= ERROR SUMMARY: 0 errors\n"), endless_limit(), tmp_path / "x"
    )
    assert clean["status"] == "ok"
    (tmp_path / "part.json").write_text('{"layer_norm": {"status": "failed", "reason": "bad"}}')
    assert check_plan.sanitizer_result(Ended(0, 1.0, ""), endless_limit(), tmp_path / "part.json")["status"] == "failed"


def gpu_receipt() -> dict[str, Any]:
    """A receipt as a GPU would give it, with round figures."""
    direction = {"p20": 1e-4, "median": 1e-4, "p80": 1e-4, "calls": 9, "gb_per_s": 4000.0, "of_ceiling": 0.9}
    op = {"status": "ok", "timed": {"op": {"forward": direction, "backward": direction}}, "speed_up": {"SDPA": 2.0}}
    ours = {"status": "ok", "patches_per_s": 2e5, "patches": 9, "mfu": 0.56, "peak_memory": 9e9, "memory_target": 1e10}
    items = {
        "tests": {"tests/kernels/test_layer_norm_triton.py": {"status": "ok", "passed": 5}},
        "ceilings": {name: {"status": "ok", "rate": 4e12, "dtype": "bfloat16"} for name in ("matmul", "copy")},
        "ops": dict.fromkeys(check_items.OPS, op),
        "training": {
            "losses": {"status": "ok"},
            check_items.OURS: ours,
            check_items.COMPILED: {**ours, "patches_per_s": 1e5},
            check_items.RELEASED: {**ours, "patches_per_s": 1e5},
        },
        "byte_decode": {
            "bytes": {"status": "ok", "patches": 9},
            **{
                batch: {
                    "status": "ok",
                    "persistent_rows": 24,
                    "persistent": {"bytes_per_s": 5e4},
                    "graphed": {"bytes_per_s": 2e4 * int(batch)},
                }
                for batch in ("1", "2", "4")
            },
            "4096": {
                "status": "ok",
                "persistent_rows": 24,
                "graphed": {"bytes_per_s": 2e6},
                "batch_invariant_cost": 2.5,
            },
        },
        "generation": {
            "1": {"status": "ok", "bytes_per_s": 80.0},
            "released way": {"status": "ok", "bytes_per_s": 8.0},
        },
    }
    pieces = {name: {"status": "ok", "items": entries} for name, entries in items.items()}
    return {
        "quick": False,
        "commit": {"id": "abc"},
        "machine": {"gpu": {"name": "H200"}},
        "seconds": 1.0,
        "pieces": pieces,
    }


def test_bits_of_patches_alone() -> None:
    assert check_byte_decode.check_bits(CPU, lambda step: step) == {"float32": 3 * (1 + 2 + 3 + 7) + 128}
    with pytest.raises(check_byte_decode.OtherBytesError, match="in a batch of 1 than of 128"):
        check_byte_decode.check_alone(CPU, "float32", lambda step: step, batch_invariant=False)


def test_the_table_and_the_targets() -> None:
    receipt = gpu_receipt()
    receipt["summary"] = short = check_report.summary(receipt)
    assert short["targets"] == {"compiled": True, "released": False, "mfu": True, "memory": True}
    assert short["generation_times_released"] == {"1": 10.0}
    assert short["byte_decode_switch"] == {"expected": 24, "persistent_faster_up_to": 2}
    text = check_report.table(receipt)
    assert "faster up to 2 patches; PERSISTENT_ROWS is 24" in text
    assert "4096 patches: 2000000 B/s graphed; batch-invariant in 2.50 × the time" in text
    for piece in ("layer_norm", "2.00 × SDPA", "MFU 56.0 %", "released MISSED", "10.0 × the released way", "90 %"):
        assert piece in text
    assert max(map(len, text.splitlines())) < 200


def test_no_speed_up_is_reported_on_red() -> None:
    receipt = gpu_receipt()
    receipt["pieces"]["tests"]["items"]["tests/kernels/test_layer_norm_triton.py"]["status"] = "failed"
    receipt["summary"] = short = check_report.summary(receipt)
    assert short["speed_up_withheld"] == ["add_layer_norm", "layer_norm"]
    assert not short["targets"]
    rows = [line for line in check_report.table(receipt).splitlines() if "layer_norm  " in line]
    assert len(rows) == 2
    assert all("no speed-up" in row for row in rows)


def test_timing() -> None:
    assert summarise([3.0, 1.0, 2.0, 5.0, 4.0]) == Timing(2.0, 3.0, 5.0, 5)
    seen: list[str] = []
    timing = measure([lambda: seen.append("a"), lambda: seen.append("b")], CPU, seconds=0.001)
    assert seen[:6] == ["a", "b"] * 3
    assert timing.p20 <= timing.median <= timing.p80
    found = figures(Timing(1.0, 2.0, 3.0, 4), Work(4_000_000_000, 0), {"copy_bytes_per_s": 4e9, "matmul_flops": 1.0})
    assert (found["gb_per_s"], found["bound"], found["of_ceiling"]) == (2.0, "copy", 0.5)
    rows = {"op": {"forward": found}, "peer": {"forward": {"median": 6.0}}, "gone": {"failed": "no"}}
    assert speed_ups(rows) == {"peer": 3.0}


def command(tmp_path: Path, *words: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    output = tmp_path / "receipt.json"
    line = [sys.executable, str(ROOT / "benchmarks" / "gpu_check.py"), "--device", "cpu", "--quick", *words]
    ended = subprocess.run([*line, "--output", str(output)], capture_output=True, text=True, cwd=tmp_path, timeout=280)
    return ended, json.loads(output.read_text())


def check_schema(receipt: dict[str, Any]) -> None:
    assert receipt["schema"] == 1
    assert receipt["complete"] is True
    assert set(receipt) >= {"command", "started", "seconds", "commit", "machine", "device", "quick", "summary"}
    assert len(receipt["commit"]["sources_sha256"]) == 64
    assert receipt["machine"]["packages"]["torch"] == torch.__version__.split("+")[0] or torch.__version__
    for piece in receipt["pieces"].values():
        assert piece["status"] in STATUSES
        for item in piece["items"].values():
            assert item["status"] in STATUSES
            assert item["status"] == "ok" or item["reason"]


def test_the_command_writes_a_receipt(tmp_path: Path) -> None:
    ended, receipt = command(tmp_path, "--pieces", "ceilings", "sanitizer")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    check_schema(receipt)
    assert {name: piece["status"] for name, piece in receipt["pieces"].items()} == {
        "ceilings": "ok",
        "sanitizer": "not run",
    }
    assert ended.stdout.splitlines()[-1] == f"receipt: {tmp_path / 'receipt.json'}"


def test_the_command_out_of_time(tmp_path: Path) -> None:
    ended, receipt = command(tmp_path, "--pieces", "ceilings", "ops", "--time-limit", "0")
    assert ended.returncode == 1
    check_schema(receipt)
    items = [item for piece in receipt["pieces"].values() for item in piece["items"].values()]
    assert len(items) == 2 + len(check_items.OPS)
    assert {item["reason"] for item in items} == {"out of time"}


@pytest.mark.slow
def test_the_whole_command_but_the_build(tmp_path: Path) -> None:
    pieces = [piece for piece in check_plan.PIECES if piece != "build"]  # others use the extension at this moment
    ended, receipt = command(tmp_path, "--pieces", *pieces)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    check_schema(receipt)
    assert list(receipt["pieces"]) != []
    assert set(receipt["pieces"]) == set(pieces)
    no_gpu = {"graphs", "sanitizer", "cpu_states"}
    assert {name for name, piece in receipt["pieces"].items() if piece["status"] == "not run"} == no_gpu
