"""What is read from a run's JSON: comparisons, curves, charts, pages, and which changes are more than noise."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from benchmarks import compare, report
from benchmarks.charts import charts
from benchmarks.results import Results, digits, duration, exponent, rate, read, share_of_peak, size, work_rate


def entry(what: str, implementation: str, median: float, **info: Any) -> dict[str, Any]:
    """An item as the suite writes it."""
    default = {
        "what": what,
        "implementation": implementation,
        "dtype": "float32",
        "device": "cpu",
        "median": median,
        "p20": median,
        "p80": median,
        "bytes": 1000,
        "flops": 4000,
        "peak_bytes": 2_000_000,
        "gb_per_s": 1.5,
        "tflop_per_s": 0.02,
        "bound": "matmul",
        "of_peak": 0.25,
        "kind": "op",
    }
    return {"fullname": f"{what}[{implementation}]", "extra_info": {**default, **info}}


def run_of(*entries: dict[str, Any], **head: Any) -> dict[str, Any]:
    """A run as the suite writes it."""
    packages = {"torch": "2.13", "triton": None}
    return {
        "benchmarks": list(entries),
        "bgpt_fast": {
            "command": ["pytest", "benchmarks"],
            "commit": {"id": "abc", "changed": False, "sources_sha256": "0"},
            "machine": {"gpu": None, "cores": 2, "processor": "CPU <X> & co", "packages": packages},
            "load_at_start": 0.1,
            "size": "full",
            "device": "cpu",
            "threads": 2,
            "python": "3.11",
            "openmp_wait_policy": None,
            "peak": {"float32": {"matmul_flops": 1e11, "copy_bytes_per_s": 1e10}},
            "baselines": {"released method": "transformers 5", "flash-attn": "missing: runs on a GPU alone"},
            **head,
        },
    }


def full_run() -> dict[str, Any]:
    curve = [
        entry(f"curve: training step against {name}", "bgpt_fast", 0.1 * x, kind="curve", against=name, value=x)
        for name in ("patches", "width")
        for x in (1, 2, 4)
    ]
    for number, item in enumerate(curve):
        item["fullname"] += str(number)
    return run_of(
        entry("layer_norm forward", "F.layer_norm", 3e-3),
        entry("layer_norm forward", "bgpt_fast", 1.5e-3),
        entry("training step, equal", "bgpt_fast", 2.0, kind="training", units=100, unit="patches", units_per_s=50.0),
        entry("training step, equal", "released method", 3.0, kind="training", units_per_s=25.0, unit="patches"),
        entry("training step by phase", "bgpt_fast", 2.0, kind="phases", phases={"forward": 0.5, "backward": 1.5}),
        entry("generation, 2 files", "bgpt_fast", 1.0, kind="generation", units_per_s=32.0, unit="bytes"),
        entry("generation, 2 files", "bgpt_fast, int8", 0.5, kind="generation", units_per_s=64.0, unit="bytes"),
        entry("generation, 2 files", "released method", 1.0, kind="generation", units_per_s=16.0, unit="bytes"),
        *curve,
    )


def save(tmp_path: Path, run: dict[str, Any], name: str = "a.json") -> Path:
    path = tmp_path / name
    path.write_text(json.dumps(run))
    return path


def load(tmp_path: Path, run: dict[str, Any]) -> Results:
    return read(save(tmp_path, run))


def test_comparisons(tmp_path: Path) -> None:
    results = load(tmp_path, full_run())
    by_what = {comparison.what: comparison for comparison in results.comparisons()}
    norm = by_what["layer_norm forward"]
    assert [item.implementation for item in norm.items] == ["bgpt_fast", "F.layer_norm"]
    assert norm.ours is norm.items[0]
    assert [norm.times_faster(item) for item in norm.items] == [None, 2.0]
    generation = by_what["generation, 2 files"]
    # By rate: a file each against two at once.
    assert [generation.times_faster(item) for item in generation.items] == [None, 0.5, 2.0]
    assert generation.variants_times_faster() == [4.0]
    assert not any(comparison.what.startswith("curve") for comparison in by_what.values())
    assert set(results.curves()) == {"training step against patches", "training step against width"}


def test_exponents() -> None:
    assert exponent([(x, 3 * x**1.7) for x in (1, 2, 8, 64)]) == (pytest.approx(1.7), pytest.approx(3))
    assert math.isnan(exponent([(4, 1.0)])[0])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.2345, "1.23"),
        (12.345, "12.3"),
        (254_519_106, "255,000,000"),
        (0.012345, "0.0123"),
        (999.6, "1,000"),
        (0, "0"),
    ],
)
def test_digits(value: float, text: str) -> None:
    assert digits(value) == text


def test_units(tmp_path: Path) -> None:
    assert [duration(x) for x in (2, 0.002, 2e-6, 2e-9)] == ["2.00 s", "2.00 ms", "2.00 µs", "2.00 ns"]
    assert [size(x) for x in (5, 5e3, 5e6, 5e9)] == ["5.00 B", "5.00 KB", "5.00 MB", "5.00 GB"]
    item = load(tmp_path, full_run()).comparisons("generation")[0].items[0]
    assert rate(item) == "32.0 B/s"
    assert share_of_peak(item) == "25 % of matrix product"
    assert work_rate(item) == "20.0 GFLOP/s, 1.50 GB/s"


def test_the_page_has_everything_in_it(tmp_path: Path) -> None:
    results = load(tmp_path, full_run())
    names = set(charts(results))
    for axes in charts(results)["scaling"].axes:
        assert len(axes.get_lines()) >= 2
        assert "^{1.00}" in axes.get_title()
    assert names == {"roofline-float32", "ops", "training", "generation", "scaling", "phases", "memory"}
    paths = report.write(results, tmp_path / "report")
    assert {path.name for path in paths} == {f"{name}.png" for name in names} | {"report.html", "tables.md"}
    page = (tmp_path / "report" / "report.html").read_text()
    assert page.count("<svg") == len(names)
    assert "CPU &lt;X&gt; &amp; co" in page
    assert "flash-attn (runs on a GPU alone)" in page
    assert "2 ×" in page
    for outside in ("http-equiv", "<script", "<link", "<img", "@import"):
        assert outside not in page
    assert (tmp_path / "report" / "training.png").read_bytes().startswith(b"\x89PNG")


def test_a_page_of_little(tmp_path: Path) -> None:
    entries = [entry("loading", "bgpt_fast", 1.0, bytes=0, flops=0, kind="data", peak_bytes=None)]
    for name in ("gb_per_s", "tflop_per_s", "bound", "of_peak"):
        del entries[0]["extra_info"][name]
    results = load(tmp_path, run_of(*entries, load_at_start=2.0))
    assert charts(results) == {}
    assert "busy" in report.page(results)


@pytest.mark.parametrize("text", ["{", "[]", '{"benchmarks": []}', json.dumps(run_of())])
def test_other_files_are_refused(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"other\.json"):
        read(path)
    assert report.main([str(path)]) == 1
    assert "other.json" in capsys.readouterr().err


def run_compare(tmp_path: Path, before: dict[str, Any], after: dict[str, Any], *words: str) -> int:
    paths = [str(save(tmp_path, run, name)) for run, name in ((before, "a.json"), (after, "b.json"))]
    return compare.main([*paths, *words])


@pytest.mark.parametrize(
    ("before", "after", "code", "verdict"),
    [
        ([1.0, 1.02], [1.2, 1.21], 1, "slower"),
        ([1.2, 1.21], [1.0, 1.02], 0, "faster"),
        ([1.0, 1.3], [1.2, 1.21], 0, "same"),
        ([1.0, 1.0], [1.02, 1.02], 0, "same"),
    ],
)
def test_only_more_than_the_noise_is_a_change(
    before: list[float],
    after: list[float],
    code: int,
    verdict: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    runs = [run_of(entry("x", "bgpt_fast", medians[0], medians=medians)) for medians in (before, after)]
    assert run_compare(tmp_path, *runs, "--all") == code
    output = capsys.readouterr().out
    assert output.startswith(verdict)
    assert "beware" not in output


def test_runs_of_the_same_code_rarely_differ(tmp_path: Path) -> None:
    stream = random.Random(0)

    def run() -> dict[str, Any]:
        items = []
        for number in range(200):
            medians = [stream.lognormvariate(0, 0.01) for _ in range(2)]
            items.append(entry(f"x{number}", "bgpt_fast", medians[0], medians=medians))
        return run_of(*items)

    before, after = run(), run()
    results = [load(tmp_path, part) for part in (before, after)]
    changes = compare.changes(results[0].items, results[1].items)
    assert sum(change.verdict != "same" for change in changes) <= 4
    slow = entry("x7", "bgpt_fast", 1.2, medians=[1.2, 1.19])
    after["benchmarks"][7] = slow
    assert run_compare(tmp_path, before, after) == 1


def test_other_differences_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    item = entry("x", "bgpt_fast", 1.0)
    fast = {"float32": {"matmul_flops": 2e11, "copy_bytes_per_s": 1e10}}
    assert run_compare(tmp_path, run_of(item), run_of(item, threads=1, peak=fast)) == 0
    output = capsys.readouterr().out
    assert "threads: 2 before, 1 after" in output
    assert "2.00 times its rate before" in output
    assert "--runs 2" in output
    assert run_compare(tmp_path, run_of(item), run_of(entry("y", "bgpt_fast", 1.0))) == 2


def test_results_of_version_0_1_load(tmp_path: Path) -> None:
    run = run_of(entry("x", "bgpt_fast", 1.0))
    run["bgpt_fast"]["baselines"] = {"released way": "transformers 5", "flash-attn": "missing: runs on a GPU alone"}
    run["bgpt_fast"] |= {"limits": run["bgpt_fast"].pop("peak"), "peers": run["bgpt_fast"].pop("baselines")}
    info = run["benchmarks"][0]["extra_info"]
    info["of_ceiling"] = info.pop("of_peak")
    assert load(tmp_path, run) == load(tmp_path, run_of(entry("x", "bgpt_fast", 1.0)))


def test_merged_runs_have_every_median() -> None:
    runs = [run_of(entry("x", "bgpt_fast", median)) for median in (1.0, 1.1, 0.9)]
    [item] = compare.merge(runs)["benchmarks"]
    assert item["extra_info"]["medians"] == [1.0, 1.1, 0.9]
    assert item["extra_info"]["median"] == 1.0
