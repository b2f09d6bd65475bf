"""Python imports this module first in processes on the null GPU: `bgpt_fast._C` is then the extension with CUDA.

The checkout's own extension stays as it is; it belongs to the ordinary environment.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType


class _ExtensionFinder:
    """Finds `bgpt_fast._C` at one path, before the package's folder is searched."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "bgpt_fast._C":
            return None
        return importlib.util.spec_from_file_location(name, os.environ["BGPT_FAST_EXTENSION"])


if "BGPT_FAST_EXTENSION" in os.environ:
    sys.meta_path.insert(0, _ExtensionFinder)
