"""`bgpt-fast env`: what this machine and this build have."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bgpt_fast import _C, __version__
from bgpt_fast.cli.common import console, read_options, table

_PACKAGES = ("torch", "triton", "numpy", "safetensors", "huggingface-hub", "rich", "tyro", "pyarrow", "matplotlib")


@dataclass(frozen=True)
class Env:
    """Says what this machine and this build have.

    Args:
        json: print JSON instead of a table.
    """

    json: bool = False


def describe() -> dict[str, Any]:
    """The machine, the build and the versions, JSON-ready."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "bgpt_fast": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "vector_instructions": ("portable", "AVX2", "AVX-512")[_C.best_isa()],
        "extension_has_cuda": _C.with_cuda,
        "gpus": gpus or "none",
        "packages": versions,
    }


def run(words: Sequence[str]) -> int:
    options = read_options(Env, "env", words)
    found = describe()
    if options.json:
        print(json.dumps(found, indent=2))
        return 0
    rows = [[name, str(value)] for name, value in found.items() if name != "packages"]
    rows += [[name, value] for name, value in found["packages"].items()]
    console.print(table("bgpt_fast on this machine", ["what", "value"], rows))
    return 0
