"""`pytest benchmarks/` collects the bench_*.py files; the scripts among them have no tests and are only imported."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("python_files", "bench_*.py")
