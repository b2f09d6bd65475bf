"""Memory that a training step frees stays with the process, for the next step of about the same sizes."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator

# Parameters of mallopt, from malloc.h, and the values that glibc's own rule ends at: the largest mapping that it puts
# into the heap once one of this size was freed, and twice that.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_DEFAULTS = {_MMAP_MAX: 65536, _MMAP_THRESHOLD: 2**25, _TRIM_THRESHOLD: 2**26}
_NEVER_TRIM = -1
_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_")


@contextlib.contextmanager
def reused_memory() -> Iterator[bool]:
    """Within the block, the C library keeps freed memory; after it, freed memory goes back to the system.

    By default glibc maps each large tensor anew, and the system fills it with zeros page by page: a tenth of a training
    step on a CPU. Does nothing with another C library, or where the environment sets glibc's thresholds.

    Yields:
        Whether the setting applies.
    """
    is_set = any(name in os.environ for name in _VARIABLES) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    library = ctypes.CDLL(None) if sys.platform == "linux" and not is_set else None
    if not hasattr(library, "mallopt") or not hasattr(library, "malloc_trim"):
        yield False
        return
    assert library is not None
    library.mallopt(_MMAP_MAX, 0)
    library.mallopt(_TRIM_THRESHOLD, _NEVER_TRIM)
    try:
        yield True
    finally:
        for parameter, value in _DEFAULTS.items():
            library.mallopt(parameter, value)
        library.malloc_trim(ctypes.c_size_t(0))
