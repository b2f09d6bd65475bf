"""A pytest plugin that immediately appends each test's start and end to a file, so that a hang loses no results.

pytest -p tools.gpu_check.pytest_results --results tests.jsonl tests
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

Outcome = pytest.TestReport | pytest.CollectReport


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--results", type=Path, required=True, help="file to which a line of JSON is added for each event")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_Writer(config.getoption("--results")))


class _Writer:
    def __init__(self, path: Path) -> None:
        self.path = path

    def _add(self, **event: Any) -> None:
        # The file is opened for each event, so that a killed process leaves complete lines.
        with self.path.open("a") as file:
            file.write(json.dumps(event) + "\n")

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._add(started=nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:
            self._add(test=report.nodeid, outcome=report.outcome, line=_first_line(report))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._add(test=report.nodeid, outcome="failed", line=_first_line(report))


def _first_line(report: Outcome) -> str:
    """The first line of an error; for a collection error, whose text ends with the exception, the last line."""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = report.longreprtext if crash is None else crash.message
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1 if crash is None else 0][:300] if lines else ""
