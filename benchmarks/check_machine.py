"""Prints what this machine is, as JSON: GPU, driver, versions. Imports nothing of bgpt_fast, which may not be built."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from typing import Any

import torch

PACKAGES = ("torch", "triton", "numpy", "transformers", "pytest", "pytest-benchmark")


def _line(command: list[str], mark: str = "") -> str | None:
    """The last line with `mark` that a command prints; None where there is no such command."""
    if shutil.which(command[0]) is None:
        return None
    printed = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False).stdout.splitlines()
    return next((line.strip() for line in reversed(printed) if mark in line), None)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def describe() -> dict[str, Any]:
    """The machine, JSON-ready."""
    found: dict[str, Any] = {
        "gpu": None,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "cuda": torch.version.cuda,
        "nvcc": _line(["nvcc", "--version"], "release"),
        "packages": {package: _version(package) for package in PACKAGES},
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found["gpu"] = {
            "name": properties.name,
            "memory": properties.total_memory,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "l2": properties.L2_cache_size,
            "driver": _line(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]),
        }
    return found


if __name__ == "__main__":
    print(json.dumps(describe()))
