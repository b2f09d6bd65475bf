"""A lock that gives one process exclusive use of a folder; released when the process ends."""

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
    """Another process is using the folder."""


class FolderLock:
    """An exclusive lock on a folder, held until it is released or this process ends, even if it is killed.

    It is a kernel lock (flock) on FOLDER/.lock: a killed process leaves the file behind, but unlocked, so it blocks
    nobody. On NFS (Linux 2.6.12 and later), CephFS, GPFS and Lustre mounted with `flock` it is exclusive across
    machines too; a machine that is disconnected loses the lock when the server's lease expires. On a file system
    without locks it warns and locks nothing. A child of a plain fork shares its parent's lock until both have ended.

    Args:
        folder: created if missing.
        of: what the folder is, for the error message.

    Raises:
        FolderInUseError: another process, or this one, holds the lock; names the process.
        OSError: the lock file cannot be created.
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
            os.close(descriptor)  # another process removed the file on release after it was opened here
        # Garbage collection only closes the file: unlocking it in a forked child would release the parent's lock.
        self._finalizer = weakref.finalize(self, os.close, descriptor)
        self._finalizer.atexit = False
        self._descriptor = descriptor
        with contextlib.suppress(OSError):  # content is only for error messages; a full disk does not matter
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)

    @property
    def is_held(self) -> bool:
        """Whether the lock has not been released."""
        return self._finalizer.alive

    def release(self) -> None:
        """Releases the lock; idempotent."""
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
