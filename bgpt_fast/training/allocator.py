"""Memory that a training step frees stays with the process: the next step of about the same sizes uses it again."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_NEVER = 2**31 - 1
_LARGEST = 2**30
_LARGEST_OF_OLD_VERSIONS = 2**25


def keep_freed_memory() -> bool:
    """Lets the C library keep freed memory, instead of returning it to the system and faulting it in page by page.

    By default glibc maps each large tensor anew, and the kernel fills it with zeros: a tenth of a training step on a
    CPU. The process then keeps its peak memory until it ends.

    Returns:
        Whether the C library has the setting; only glibc has.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    # Older versions refuse thresholds above 32 MiB.
    is_set = mallopt(_M_MMAP_THRESHOLD, _LARGEST) or mallopt(_M_MMAP_THRESHOLD, _LARGEST_OF_OLD_VERSIONS)
    return bool(is_set and mallopt(_M_TRIM_THRESHOLD, _NEVER))
