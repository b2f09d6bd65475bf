"""The README quotes measured figures, the performance page follows the result files, instructions do not increase."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from support.paths import ROOT

from benchmarks import count_instructions, docs
from benchmarks.quotes import RESULTS, Quote, measured_figures, quotes, suite_results, unsupported

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_quotes_measured_figures() -> None:
    of_zen5 = unsupported(README, RESULTS / "amd-zen5")
    missing = [quote for quote in unsupported(README, RESULTS / "amd-zen4") if quote in of_zen5]
    assert not missing, "\n".join(f"no result has {quote.digits!r} of: {quote.line}" for quote in missing)


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("| training | 9.87 × | 1.23 × | `x` |", ["ratio", "ratio"]),
        ("it makes 9,876,000 instances of the stream a second", ["instances"]),
        ("it writes 98.7 KB/s, and 9.87 MB/s in batches", ["kilobytes", "megabytes"]),
        ("98,700 patches/s", ["rate"]),
        ("a product of 8192 × 8192, and 110 M parameters in 49 minutes", []),
    ],
)
def test_figures_in_a_text_are_recognised_and_these_have_no_result(text: str, kinds: list[str]) -> None:
    assert [quote.kind for quote in quotes(text)] == kinds
    assert len(unsupported(text, RESULTS / "amd-zen4")) >= min(len(kinds), 1)


@pytest.mark.parametrize(
    ("figure", "exact", "is_it"),
    [
        ("1.46", 1.4565, True),
        ("1.46", 1.466, False),
        ("47", 47.499, True),
        ("47", 46.4, False),
        ("346,000", 346_438.0, True),
        ("346,000", 347_000.0, False),
        ("6.6", 6.61, True),
    ],
)
def test_rounding(figure: str, exact: float, is_it: bool) -> None:
    assert Quote("ratio", figure, "").is_rounded_from(exact) == is_it


def test_result_files_have_figures() -> None:
    figures = measured_figures(RESULTS / "amd-zen4")
    assert figures["ratio"]
    assert figures["instances"]


def test_suite_results_say_where_they_were_measured() -> None:
    for folder in (path for path in RESULTS.iterdir() if path.is_dir()):
        for path, results in suite_results(folder).items():
            assert results.head["commit"]["sources_sha256"], path
            assert results.head["command"], path
            assert results.head["machine"]["packages"]["torch"], path
            assert results.head["size"] != "tiny", path


def test_the_performance_page_is_that_of_the_result_files() -> None:
    assert docs.PAGE.read_text(encoding="utf-8") == docs.page(), "run: bgpt-fast bench docs"


def test_the_page_says_what_no_gpu_has_run() -> None:
    page = docs.page()
    assert "no result of a GPU yet" in page or '"device": "cuda"' in "".join(
        path.read_text() for path in RESULTS.glob("*/*.json")
    )
    # A command is that of any checkout: it names no place of one machine.
    assert not re.search(r"\| command \|[^|]* /\w", page)


def test_more_instructions_are_a_regression_only_by_the_same_tools() -> None:
    before = json.loads(count_instructions.RESULT.read_text())
    now = json.loads(json.dumps(before))
    assert count_instructions.regressions(before, now) == {}
    now["instructions"]["patch_embed"] *= 1.05
    assert count_instructions.regressions(before, now) == {"patch_embed": pytest.approx(1.05)}
    now["compiler"] = "another"
    assert count_instructions.regressions(before, now) == {}


@pytest.mark.skipif(count_instructions.missing() is not None, reason=f"{count_instructions.missing()}")
def test_instructions_of_the_hot_paths(tmp_path: Path) -> None:
    before = json.loads(count_instructions.RESULT.read_text())
    now = count_instructions.counted(tmp_path)
    assert set(now["instructions"]) == set(before["instructions"])
    assert count_instructions.regressions(before, now) == {}
    path = "patch_embed"
    assert count_instructions.count(tmp_path / "hot_paths", path) == pytest.approx(now["instructions"][path], rel=1e-3)


def test_training_is_side_by_side_only_where_there_are_several_processors(tmp_path: Path) -> None:
    one = RESULTS / "amd-zen4"
    assert docs._side_by_side([one]) == []
    other = tmp_path / "other"
    other.mkdir()
    content = json.loads((one / "training.json").read_text(encoding="utf-8"))
    for entry in content["benchmarks"]:
        if entry["extra_info"]["implementation"] == "bgpt_fast":
            entry["extra_info"]["units_per_s"] *= 2
    (other / "training.json").write_text(json.dumps(content), encoding="utf-8")
    lines = docs._side_by_side([one, other])
    assert "| what | dtype | threads | beside | amd-zen4 | other |" in lines
    assert "| training step, documents of mixed length | bfloat16 | 2 | released method | 1.21 × | 2.43 × |" in lines
