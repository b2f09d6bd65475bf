"""The machine, the build and the package versions, for the metadata of result files."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

import torch

from bgpt_fast import _C
from bgpt_fast.version import __version__

_PACKAGES = ("torch", "triton", "numpy", "safetensors", "huggingface-hub", "rich", "tyro", "pyarrow", "matplotlib")


def describe_environment() -> dict[str, Any]:
    """Returns the machine, the build and the package versions, JSON-serialisable."""
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
