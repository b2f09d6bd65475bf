"""What keeps a file from being used: damage, or a package that is not installed."""

from __future__ import annotations

import importlib
from types import ModuleType


class MediaError(ValueError):
    """A file that is of no known kind, or damaged.

    Args:
        reason: a few words that are the same for all files with this fault, so that they can be counted.
        detail: what is particular to this file, such as the decoder's own words; may be empty.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[MediaError], tuple[str, str]]:
        return type(self), (self.reason, self.detail)


def optional(name: str, extra: str, what: str) -> ModuleType:
    """Imports an optional package, or says which extra brings it.

    Raises:
        ImportError: it is missing.
    """
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:  # soundfile raises OSError where libsndfile is missing
        module = name.partition(".")[0]
        package = {"PIL": "Pillow", "sklearn": "scikit-learn"}.get(module, module)
        raise ImportError(f'{what} needs {package}; install it with `pip install "bgpt-fast[{extra}]"`') from error
