"""`bgpt-fast bench`: the whole suite at tiny sizes, its report and comparison, and what it says where it cannot run."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.paths import ROOT

from benchmarks import baselines, compare, profiling, report
from benchmarks.model_work import decoding_work, prefill_work, scoring_work, training_work, weights
from benchmarks.op_cases import CASES
from benchmarks.peak import measured_peak
from benchmarks.scales import QUICK, TINY, scale_of
from benchmarks.suite import tensor_peak
from bgpt_fast import BGPT
from bgpt_fast.cli import bench
from bgpt_fast.cli.main import main
from bgpt_fast.flops import forward_flops

CPU = torch.device("cpu")


def command(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    # Not as a worker of pytest-xdist, which would switch pytest-benchmark off.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "passive"}
    return subprocess.run(
        [sys.executable, "-m", "bgpt_fast.cli.main", "bench", *words],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_workers_of_xdist_are_refused() -> None:
    """They would run every benchmark and measure none (ionelmc/pytest-benchmark#293)."""
    pytest.importorskip("xdist")
    words = [sys.executable, "-m", "pytest", "-n", "1", "-p", "no:cacheprovider", "benchmarks", "--collect-only"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "expected no -n" in done.stderr


def test_the_whole_suite_at_tiny_sizes(tmp_path: Path) -> None:
    done = command("--size", "tiny", "--device", "cpu", "--threads", "1", "--json", "out/a.json", cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.json"]
    whole = json.loads((tmp_path / "out" / "a.json").read_text())
    head = whole["bgpt_fast"]
    assert head["commit"]["sources_sha256"]
    assert head["command"][0] == "pytest"
    assert head["threads"] == 1
    assert head["peak"]["float32"]["matmul_flops"] > 0
    assert head["baselines"]["flash-attn"].startswith("missing: ")
    items = [entry["extra_info"] for entry in whole["benchmarks"]]
    kinds = {item["kind"] for item in items}
    assert kinds == {
        "op",
        "training",
        "phases",
        "generation",
        "scoring",
        "data",
        "checkpoint",
        "cpu states",
        "curve",
        "host",
        "notagen",
    }
    assert {case.name for case in CASES} <= {item["what"].rsplit(" ", 1)[0] for item in items}
    implementations = {item["implementation"] for item in items if item["kind"] in ("training", "generation")}
    assert {"bgpt_fast", "released method", "KV-cached torch", "plain torch"} <= implementations
    assert all(item["median"] > 0 for item in items)
    assert all(item["of_peak"] > 0 for item in items if item["bytes"])

    path = tmp_path / "out" / "a.json"
    assert report.main([str(path)]) == 0
    assert "figures mean nothing" in (tmp_path / "out" / "a_report" / "report.html").read_text()
    assert compare.main([str(path), str(path)]) == 0


def test_without_a_checkout_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bench.checkout_of(ROOT / "bgpt_fast") == ROOT
    with pytest.raises(FileNotFoundError, match="clone the repository"):
        bench.checkout_of(tmp_path / "site-packages" / "bgpt_fast")


def test_wrong_words(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--runs", "0"]) == 2
    assert "--runs: expected at least 1, got 0" in capfd.readouterr().err
    assert main(["bench", "compare", "none.json", "none.json"]) == 2
    assert "none.json" in capfd.readouterr().err


@pytest.mark.parametrize("what", ["train", "generate"])
def test_a_profile_has_its_phases(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "trace.json.gz"
    words = [what, "--size", "tiny", "--device", "cpu", "--output", str(path)]
    assert profiling.main(words) == 0
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    names = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    for phase in profiling.PHASES[what]:
        assert names.count(phase) >= 4
    output = capsys.readouterr().out
    assert "4 steps" in output
    assert "in no op of torch for" in output
    assert "top ops on the CPU" in output


def test_phases_and_the_share_outside(tmp_path: Path) -> None:
    def event(category: str, name: str, start: float, duration: float) -> dict[str, Any]:
        return {"ph": "X", "cat": category, "name": name, "ts": start, "dur": duration}

    events = [
        event("user_annotation", "ProfilerStep#3", 0, 100),
        event("user_annotation", "forward", 10, 20),
        event("cpu_op", "aten::mm", 25, 15),
        event("cpu_op", "aten::mm", 90, 50),
    ]
    path = tmp_path / "trace.json"
    path.write_text(json.dumps({"traceEvents": events}))
    assert profiling.coverage(path, ("forward",)) == ({"forward": 20e-6}, pytest.approx(0.6))


def test_the_peak_of_tensors() -> None:
    def act() -> None:
        first = torch.empty(1000, dtype=torch.float32)
        for _ in range(3):
            torch.empty(500, dtype=torch.float32).fill_(first.numel())

    assert 6000 <= tensor_peak(act, CPU) < 6200


def test_peak_rates_are_of_the_dtypes() -> None:
    peak = measured_peak(CPU, (torch.float32, torch.bfloat16), 32, 0.0)
    assert set(peak) == {"float32", "bfloat16"}
    assert all(rate > 0 for rates in peak.values() for rate in rates.values())


def test_missing_baselines_have_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    status = baselines.status(CPU)
    assert status["MEGABYTE-pytorch"] == "missing: not installed: pip install MEGABYTE-pytorch"
    assert status["FlexAttention"] == "missing: needs a GPU"
    assert status["reference"].startswith("torch ")


def test_weights_are_the_models() -> None:
    for config in (TINY.model, QUICK.model):
        model = BGPT(config)
        assert sum(weights(config).values()) == model.num_parameters()
    assert scale_of("full", "cuda") != scale_of("full", "cpu")


def test_work_of_whole_passes() -> None:
    config = QUICK.model
    one, two = (decoding_work(config, files, 64, 4) for files in (1, 2))
    assert two.flops == 2 * one.flops
    cache = 4 * 2 * config.hidden_size * 64 * config.patch_num_layers
    assert two.bytes - one.bytes == cache
    assert decoding_work(config, 1, 64, 1).bytes - cache == (one.bytes - cache) / 4
    assert training_work(config, [9], 4).flops == 3 * scoring_work(config, [9], 4).flops
    # A prompt of L patches and a patch after it cost what the same document does, teacher-forced, in its last patch.
    parts = forward_flops(config, [65], 1)
    attention = 4 * config.hidden_size * 65 * config.patch_num_layers
    last = parts["patch linears"] // 65
    assert prefill_work(config, 1, 64, 4).flops == sum(parts.values()) - last - attention
