"""Named errors for memory that runs out, on the CPU and on a GPU."""

from __future__ import annotations

import contextlib
import errno
import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

_TEXTS = (
    *("can't allocate memory", "not enough memory", "out of memory", "std::bad_alloc", "unable to allocate"),
    *("malloc () failed", "allocation error", "can't start new thread"),
)
"""What torch, the C++ library, CUDA, numpy, Pillow, libsndfile, zstd and Python say, in lower case."""
_ONE_DNN = re.compile(r"could not (create a (primitive|memory object)|execute a primitive)\s*$")
"""oneDNN's words; what it does not support is "could not create a primitive descriptor …"."""
_LIBRARIES = ("zstandard",)
"""Those whose errors for it are neither MemoryError nor RuntimeError nor an OSError without a number."""
_SHORTAGES = (errno.ENOMEM, errno.EMFILE, errno.ENFILE)
_REQUEST = re.compile(r"allocate (\d[\d.]* (?:bytes|[KMGT]i?B))")


class OutOfMemoryError(MemoryError):
    """There was not enough memory for a computation. It has released what it had, so that a smaller one works.

    Args:
        what: what was computed, with its sizes.
        reason: how much memory could not be had, as far as known.
        lower: names of the settings that make it smaller.
        advice: what else helps; may be empty.
    """

    def __init__(self, what: str, reason: str, lower: tuple[str, ...], advice: str = "") -> None:
        self.what, self.reason, self.lower, self.advice = what, reason, lower, advice
        super().__init__(self.text())

    def text(self, names: Mapping[str, str] | None = None) -> str:
        """The message; `names` replaces names of settings, e.g. by a command's options."""
        settings = " or ".join((names or {}).get(name, name) for name in self.lower)
        parts = [f"lower {settings}" if settings else "", self.advice]
        return f"not enough memory for {self.what}: {self.reason}; {', or '.join(part for part in parts if part)}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory could not be allocated; torch's on the CPU is a plain RuntimeError."""
    if isinstance(error, MemoryError):
        return True
    is_of_library = (
        isinstance(error, RuntimeError)
        or (isinstance(error, OSError) and error.errno is None)
        or type(error).__module__.partition(".")[0] in _LIBRARIES
    )
    text = str(error).lower()
    return is_of_library and (any(one in text for one in _TEXTS) or _ONE_DNN.search(text) is not None)


def is_shortage(error: BaseException) -> bool:
    """Whether an exception says that memory or file descriptors ran out, which is no fault of a file that is read."""
    return is_out_of_memory(error) or (isinstance(error, OSError) and error.errno in _SHORTAGES)


@contextlib.contextmanager
def named_out_of_memory(what: Callable[[], str], *lower: str, advice: str = "") -> Iterator[None]:
    """Within the block, a failing allocation raises `OutOfMemoryError`, and the tensors of the failed calls are freed.

    Args:
        what: returns what is computed, with its sizes; called after a failure only.
        lower: names of the settings that make it smaller.
        advice: what else helps.

    Raises:
        OutOfMemoryError: one that a block within this one raised passes through unchanged.
    """
    try:
        yield
    except OutOfMemoryError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        # The traceback would keep the local variables of all calls, and with them their tensors.
        traceback.clear_frames(error.__traceback__)
        raise OutOfMemoryError(what(), _reason(error), lower, advice) from error


def _reason(error: BaseException) -> str:
    request = _REQUEST.search(str(error))
    resident = _resident_bytes()
    parts = [f"{request[1]} more could not be allocated" if request else "an allocation failed"]
    parts += [f"the process has {resident / 1e6:,.0f} MB in use"] if resident else []
    return ", ".join(parts)


def _resident_bytes() -> int | None:
    """Bytes of memory that the process uses; None where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text("ascii", "replace").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))
    except (OSError, StopIteration, ValueError):
        return None
