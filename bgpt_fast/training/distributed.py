"""The processes of one run: who they are, what they tell each other, and who is missing when one of them is lost."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from bgpt_fast.device import resolve_device
from bgpt_fast.files import atomic_write
from bgpt_fast.training.errors import RankFailedError

_ROLL_CALL_SECONDS = 5.0
_COLLECTIVE = re.compile(r"gloo|nccl|connection (closed|reset|refused)|timed out|broken pipe", re.IGNORECASE)


def rank_and_world_size() -> tuple[int, int]:
    """This process's number and how many there are: torch.distributed's, or else what `torchrun` says, or else (0, 1).

    Sources take them as `rank` and `world_size`.
    """
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


class Ranks:
    """The processes of one run, or the only one.

    With several, joins torch's default process group, made here if there is none: NCCL for GPUs, gloo for CPUs. What
    ranks tell each other besides gradients goes over a gloo group of its own, which waits for no GPU.

    Args:
        device: a name for `resolve_device`; "auto" and "cuda" mean the GPU of this process's own number.
        timeout_seconds: how long a collective waits for the other ranks.
        folder: the run's, shared by all ranks; what ranks leave when they fail lies there.
    """

    def __init__(self, device: str, timeout_seconds: float, folder: Path) -> None:
        self.rank, self.world_size = rank_and_world_size()
        if self.world_size > 1 and device in ("auto", "cuda") and torch.cuda.is_available():
            device = f"cuda:{int(os.environ.get('LOCAL_RANK', self.rank)) % torch.cuda.device_count()}"
            torch.cuda.set_device(torch.device(device))
        self.device = resolve_device(device)
        self._folder = folder
        self._notes = folder / ".ranks"
        self._control: dist.ProcessGroup | None = None
        self._saving: dist.ProcessGroup | None = None
        if self.world_size > 1:
            timeout = timedelta(seconds=timeout_seconds)
            atexit.register(self._leave, not dist.is_initialized())
            if not dist.is_initialized():
                dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo", timeout=timeout)
            self._control = dist.new_group(backend="gloo", timeout=timeout)
            self._saving = dist.new_group(backend="gloo", timeout=timeout)
            self._notes = folder / f".ranks-{self.broadcast(secrets.token_hex(8))}"

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that logs and writes."""
        return self.rank == 0

    @property
    def saving(self) -> dist.ProcessGroup | None:
        """A gloo group for the threads that save beside training; None for a single process."""
        return self._saving

    def table(self, values: Sequence[float]) -> list[list[float]]:
        """Every rank's `values`, the same on all; numbers are exact up to 2⁵³."""
        if self._control is None:
            return [[float(value) for value in values]]
        mine = torch.tensor(values, dtype=torch.float64)
        rows = [torch.empty_like(mine) for _ in range(self.world_size)]
        dist.all_gather(rows, mine, group=self._control)
        return [row.tolist() for row in rows]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's `value`, on all of them."""
        if self._control is None:
            return [value]
        found: list[Any] = [None] * self.world_size
        dist.all_gather_object(found, value, group=self._control)
        return found

    def broadcast(self, value: Any, *, saving: bool = False) -> Any:
        """Rank 0's `value`; with `saving`, among the threads that save."""
        if self._control is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self._saving if saving else self._control)
        return box[0]

    def barrier(self) -> None:
        """Waits until all ranks are here."""
        self.table([])

    def remove_old_notes(self) -> None:
        """Removes what ranks of earlier runs left in the folder; only for one who holds its lock."""
        for left in self._folder.glob(".ranks-*"):
            if left != self._notes:
                shutil.rmtree(left, ignore_errors=True)

    def _leave(self, made: bool) -> None:
        """Ends the groups' threads, and the default group if it was made here, while Python still runs.

        A thread of gloo that lets go of its last tensor takes the interpreter's lock for it: in an interpreter that
        is going away, that ends the process with SIGABRT instead of its own exit code.
        """
        self._control = self._saving = None
        # A group's threads end with its last reference, and trainers, which hold them, are in cycles.
        gc.collect()
        if made and dist.is_initialized():
            dist.destroy_process_group()

    @contextlib.contextmanager
    def watched(self, agreed: tuple[type[BaseException], ...]) -> Iterator[None]:
        """A block in which a rank that fails tells the others why, and a rank that lost others says which.

        Args:
            agreed: exceptions that all ranks raise together, which pass as they are.

        Raises:
            RankFailedError: a collective failed; names the ranks that failed, were killed or do not answer.
        """
        if self._control is None:
            yield
            return
        try:
            yield
        except agreed:
            raise
        except BaseException as error:
            if not _is_collective(error):
                self._leave_note(f"{type(error).__name__}: {error}")
                raise
            self._leave_note("")
            raise RankFailedError(self.rank, self._missing(), str(error)) from error

    def _leave_note(self, text: str) -> None:
        # On a full disk the error that ended this rank matters, not this one.
        with contextlib.suppress(OSError), atomic_write(self._notes / str(self.rank)) as file:
            file.write(text.encode("utf-8", "backslashreplace"))

    def _missing(self) -> dict[int, str]:
        """Ranks that failed by themselves or left no note, and what is known of each."""
        deadline = time.monotonic() + _ROLL_CALL_SECONDS
        while True:
            notes: dict[int, str] = {}
            for rank in range(self.world_size):
                with contextlib.suppress(OSError):
                    notes[rank] = (self._notes / str(rank)).read_text("utf-8", "replace")
            # The ranks that only lost another come here too, sooner or later.
            if len(notes) == self.world_size or time.monotonic() > deadline:
                break
            time.sleep(0.1)
        silent = {rank: "killed or stopped" for rank in range(self.world_size) if rank not in notes}
        return silent | {rank: text for rank, text in notes.items() if text}


def _is_collective(error: BaseException) -> bool:
    """Whether an exception comes from talking to another rank: torch has no class of its own for gloo's."""
    if isinstance(error, dist.DistError):
        return True
    return type(error) is RuntimeError and _COLLECTIVE.search(str(error)) is not None
