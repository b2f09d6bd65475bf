"""The commit and machine of a measurement. Imports nothing from bgpt_fast, which may not be built yet.

`python -m benchmarks.environment` prints the machine as JSON.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("bgpt_fast", "kernels", "csrc")
INSTRUCTIONS = {"avx2", "avx512f", "avx512_bf16", "amx_bf16"}
"""Instruction sets that matter here; virtual machines often do not name the processor exactly."""
PACKAGES = ("torch", "triton", "numpy", "transformers", "pytest", "pytest-benchmark")


def commit() -> dict[str, Any]:
    """The commit's `id`, whether the sources are `changed` since (both None without git), and a hash of the sources."""

    def git(*words: str) -> str | None:
        ended = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
        return ended.stdout.strip() if ended.returncode == 0 else None

    digest = hashlib.sha256()
    for folder in SOURCES:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".cpp", ".cu", ".cuh", ".h"):
                digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    changes = commit_id = None
    if shutil.which("git"):
        changes, commit_id = git("status", "--porcelain", "--", *SOURCES), git("rev-parse", "HEAD")
    changed = None if changes is None else bool(changes)
    return {"id": commit_id, "changed": changed, "sources_sha256": digest.hexdigest()}


def _line(command: list[str], mark: str = "") -> str | None:
    """The last line of a command's output that contains `mark`; None if the command is not installed."""
    if shutil.which(command[0]) is None:
        return None
    printed = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False).stdout.splitlines()
    return next((line.strip() for line in reversed(printed) if mark in line), None)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def machine() -> dict[str, Any]:
    """Processor, GPU, driver and versions, JSON-ready; `gpu` is None without one."""
    import torch

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    core = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    description: dict[str, Any] = {
        "gpu": None,
        "processor": core.get("model name", "unknown"),
        "processor_model": f"family {core.get('cpu family')}, model {core.get('model')}",
        "instructions": sorted(set(core.get("flags", "").split()) & INSTRUCTIONS),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "cuda": torch.version.cuda,
        "nvcc": _line(["nvcc", "--version"], "release"),
        "packages": {package: _version(package) for package in PACKAGES},
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        description["gpu"] = {
            "name": properties.name,
            "memory": properties.total_memory,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "l2": properties.L2_cache_size,
            "driver": _line(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]),
        }
    return description


if __name__ == "__main__":
    print(json.dumps(machine()))
