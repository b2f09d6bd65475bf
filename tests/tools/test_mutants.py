"""The mutation check: its table fits the source, and it tells killed mutants from survivors and from mistakes."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support.paths import ROOT

from tools.mutants.mutant import Mutant, MutantError
from tools.mutants.run import outcomes, run_tests
from tools.mutants.table import LAYERS, MUTANTS

SOURCE = "def double(x):\n    return 2 * x\n"
TEST = "from source import double\n\n\ndef test_double():\n    assert double({}) == {}\n"


def mutant(before: str = "2 * x", after: str = "3 * x", test: str = "test_source.py::test_double") -> Mutant:
    return Mutant("tools", "source.py", before, after, test)


def run(folder: Path, tests: Sequence[str]) -> int:
    """As `run_tests`, at once."""
    scope: dict[str, Any] = {}
    try:
        exec((folder / "source.py").read_text(), scope)
        for test in tests:
            path, _, name = test.partition("::")
            exec((folder / path).read_text().partition("\n")[2], scope)
            scope[name]()
    except AssertionError:
        return 1
    except (KeyError, NameError):
        return 4
    return 0


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    (tmp_path / "source.py").write_text(SOURCE)
    (tmp_path / "test_source.py").write_text(TEST.format(2, 4))
    return tmp_path


@pytest.mark.parametrize("planted", MUTANTS, ids=lambda planted: planted.name)
def test_each_mutant_fits_the_source_and_names_a_test(tmp_path: Path, planted: Mutant) -> None:
    target = tmp_path / planted.file
    target.parent.mkdir(parents=True)
    shutil.copy(ROOT / planted.file, target)
    planted.apply(tmp_path)
    path, _, name = planted.test.partition("::")
    text = (ROOT / path).read_text()
    if name:
        assert re.search(rf"^\s*def {name.partition('[')[0].rpartition('::')[2]}\(", text, re.MULTILINE), planted.test


def test_at_least_forty_mutants_break_every_layer() -> None:
    assert len(MUTANTS) >= 40
    assert {planted.layer for planted in MUTANTS} == set(LAYERS)
    assert len({(planted.file, planted.before) for planted in MUTANTS}) == len(MUTANTS)


def test_killed_and_surviving_mutants(copy: Path) -> None:
    # A test with 0 does not notice a factor.
    (copy / "test_weak.py").write_text(TEST.format(0, 0))
    tried = list(outcomes(copy, [mutant(), mutant(test="test_weak.py::test_double")], run))
    assert [outcome.result for outcome in tried] == ["killed", "survived"]
    assert tried[0].to_dict()["test"] == "test_source.py::test_double"
    assert (copy / "source.py").read_text() == SOURCE, "restored"


def test_what_cannot_be_tried_is_an_error(copy: Path) -> None:
    def fails(planted: Mutant, message: str) -> None:
        with pytest.raises(MutantError, match=message):
            list(outcomes(copy, [planted], run))
        assert (copy / "source.py").read_text() == SOURCE

    fails(mutant(before="2 * y"), "occurs once in source.py, got 0 occurrences")
    fails(mutant(before="x"), "got 2 occurrences")
    fails(mutant(after="2 * * x"), "expected Python after the change")
    fails(mutant(test="test_source.py::test_triple"), "exit code 0 without the mutant, got 4")
    (copy / "test_red.py").write_text(TEST.format(2, 5))
    fails(mutant(test="test_red.py::test_double"), "exit code 0 without the mutant, got 1")
    # A module that cannot be imported is not what a mutant should be: any test would notice.
    fails(mutant(before="def double(x):", after="def triple(x):"), "exit code 0 or 1 with the mutant, got 4")


def test_the_extension_is_built_where_a_mutant_needs_it(copy: Path) -> None:
    calls: list[str] = []

    def run_recorded(folder: Path, tests: Sequence[str]) -> int:
        calls.append(" ".join(tests))
        return int("3 * x" in (folder / "csrc/x.cpp").read_text())

    (copy / "csrc").mkdir()
    (copy / "csrc/x.cpp").write_text(SOURCE)
    planted = [Mutant("csrc", "csrc/x.cpp", "2 * x", "3 * x", test) for test in ("a", "b", "tests/csrc/c.py::c")]
    tried = list(outcomes(copy, planted, run_recorded, lambda folder: calls.append("build")))
    assert [outcome.result for outcome in tried] == ["killed"] * 3
    assert calls == ["a b tests/csrc/c.py::c", "tests/csrc/c.py::c", "build", "a", "build", "b"]


def test_tests_that_pass_alone_only_are_an_error(copy: Path) -> None:
    planted = [mutant(), mutant(test="test_weak.py::test_double")]
    with pytest.raises(MutantError, match="exit code 0 of all tests together as of each alone, got 1"):
        list(outcomes(copy, planted, lambda folder, tests: int(len(tests) > 1)))


def test_tests_run_in_the_copy(copy: Path) -> None:
    assert run_tests(copy, ["test_source.py"]) == 0
    mutant().apply(copy)
    assert run_tests(copy, ["test_source.py"]) == 1
