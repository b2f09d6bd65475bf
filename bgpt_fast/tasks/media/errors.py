"""Errors for unusable media files and for missing packages."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import NoReturn

from bgpt_fast.memory import is_out_of_memory


class MediaError(ValueError):
    """A file of an unknown format, or a damaged one.

    Args:
        reason: the same text for all files with this fault, so that they can be counted.
        detail: specific to this file, such as the decoder's message; may be empty.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[MediaError], tuple[str, str]]:
        return type(self), (self.reason, self.detail)


def raise_damage(reason: str, error: Exception) -> NoReturn:
    """Raises `MediaError` for a decoder's error; one that is it already, or says that memory ran out, as it is."""
    if isinstance(error, MediaError) or is_out_of_memory(error):
        raise error
    raise MediaError(reason, str(error)) from error


def optional(name: str, extra: str, what: str) -> ModuleType:
    """Imports an optional package; the error names the extra that installs it.

    Raises:
        ImportError: it is missing.
    """
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:  # soundfile raises OSError where libsndfile is missing
        module = name.partition(".")[0]
        package = {"PIL": "Pillow", "sklearn": "scikit-learn"}.get(module, module)
        raise ImportError(
            f'{what} needs {package}; install it with `pip install ".[{extra}]"` in the repository'
        ) from error
