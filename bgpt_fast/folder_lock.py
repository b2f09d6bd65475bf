"""A lock that lets one process at a time use a folder; it ends with its process."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import warnings
import weakref
from pathlib import Path

LOCK = ".lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class FolderInUseError(OSError):
    """Another process uses the folder."""


class FolderLock:
    """An exclusive lock of a folder, until it is released or this process ends, even if it is killed.

    The lock is the kernel's (flock) on FOLDER/.lock: a process that was killed leaves the file without a lock, which
    blocks nobody. On NFS (Linux 2.6.12 and later), CephFS, GPFS and Lustre mounted with `flock` it is exclusive over
    machines too; a machine that lost its connection loses the lock when the server's lease ends. On a file system
    without locks there is a warning and no lock. A child process of a bare fork has its parent's lock until both end.

    Args:
        folder: created if it is missing.
        of: what the folder is, for the error.

    Raises:
        FolderInUseError: another process, or this one, has the lock; names it.
        OSError: the lock's file cannot be created.
    """

    def __init__(self, folder: str | os.PathLike[str], of: str) -> None:
        self.folder = Path(folder)
        self._path = self.folder / LOCK
        self.folder.mkdir(parents=True, exist_ok=True)
        while True:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                self._lock(descriptor, of)
                is_ours = _is_at(self._path, descriptor)
            except BaseException:
                os.close(descriptor)
                raise
            if is_ours:
                break
            os.close(descriptor)  # another process removed the file on release, after it was opened here
        # Garbage collection only closes the file: in a forked child it must not unlock the parent's lock.
        self._finalizer = weakref.finalize(self, os.close, descriptor)
        self._finalizer.atexit = False
        self._descriptor = descriptor
        with contextlib.suppress(OSError):  # only read for the error message; a full disk does not matter
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)

    @property
    def is_held(self) -> bool:
        """Whether the lock has not been released."""
        return self._finalizer.alive

    def release(self) -> None:
        """Releases the lock; a second time, does nothing."""
        if not self.is_held:
            return
        with contextlib.suppress(OSError):
            self._path.unlink()
        with contextlib.suppress(OSError):
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        self._finalizer()

    def _lock(self, descriptor: int, of: str) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise FolderInUseError(
                f"{self.folder}: {_holder(descriptor)} is at work here ({of}); wait until it ends, stop it, or choose "
                "another folder"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            warnings.warn(
                f"{self.folder}: its file system has no locks ({error.strerror}): a second process can use it at the "
                "same time",
                stacklevel=4,
            )


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _holder(descriptor: int) -> str:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {int(holder['pid'])} on {holder['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
