"""One process at a time in a folder, by a lock that dies with its process."""

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
    """Another process works in the folder."""


class FolderLock:
    """Keeps others out of a folder until it is released or this process ends, however it ends.

    The lock is the kernel's (flock) on FOLDER/.lock: a process that was killed leaves a file without one, which stops
    nobody. On NFS (Linux 2.6.12 and later), CephFS, GPFS and Lustre mounted with `flock` it keeps out other machines
    too; one that was cut off gives its lock back when the server's lease on it ends. On a file system without locks a
    warning says that nobody is kept out. A child made by a bare fork holds its parent's lock until both have ended.

    Args:
        folder: made if it is missing.
        of: what the folder is, for the error.

    Raises:
        FolderInUseError: another process, or this one, holds the lock; names it.
        OSError: the lock's file cannot be made.
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
            os.close(descriptor)  # the holder removed the file between our opening it and its letting go
        # Only closed where this is forgotten: a forked child that forgets it must not unlock its parent's.
        self._closing = weakref.finalize(self, os.close, descriptor)
        self._closing.atexit = False
        self._descriptor = descriptor
        with contextlib.suppress(OSError):  # who holds it is told for the error alone, a full disk is no matter
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)

    @property
    def held(self) -> bool:
        """Whether it has not been released."""
        return self._closing.alive

    def release(self) -> None:
        """Lets others in; a second time, does nothing."""
        if not self.held:
            return
        with contextlib.suppress(OSError):
            self._path.unlink()
        with contextlib.suppress(OSError):
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        self._closing()

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
                f"{self.folder}: its file system has no locks ({error.strerror}): nothing keeps a second process out "
                "of it",
                stacklevel=4,
            )


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _holder(descriptor: int) -> str:
    try:
        told = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {int(told['pid'])} on {told['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
