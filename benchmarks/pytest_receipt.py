"""A pytest plugin that appends each test's start and end to a file at once, so that a run that hangs loses nothing.

pytest -p pytest_receipt --receipt tests.jsonl tests
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--receipt", type=Path, help="file that takes a line of JSON for each event")


class Receipt:
    """Writes the events; the file is opened for each, so that a killed process leaves whole lines."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def _add(self, **event: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(event) + "\n")

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._add(started=nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:
            self._add(test=report.nodeid, outcome=report.outcome, line=first_line(report))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._add(test=report.nodeid, outcome="failed", line=first_line(report))


def first_line(report: pytest.TestReport | pytest.CollectReport) -> str:
    """The first line of what went wrong."""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash is not None else report.longreprtext
    lines = [line for line in text.strip().splitlines() if line.strip()]
    if crash is None and lines:
        return lines[-1][:300]  # an error of collection ends with what was raised
    return lines[0][:300] if lines else ""


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--receipt")
    if path is not None:
        config.pluginmanager.register(Receipt(path), "bgpt_fast_receipt")
