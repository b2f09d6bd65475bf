"""The ranks of a run: their numbers, collectives, and reports of which ranks failed."""

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

_REPORT_SECONDS = 5.0
_COLLECTIVE = re.compile(r"gloo|nccl|connection (closed|reset|refused)|timed out|broken pipe", re.IGNORECASE)


def rank_and_world_size() -> tuple[int, int]:
    """This process's rank and the world size: torch.distributed's, else those set by `torchrun`, else (0, 1).

    Pass them to sources as `rank` and `world_size`.
    """
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


class Ranks:
    """The processes of a run, one or more.

    With several, uses torch's default process group, and creates it if there is none: NCCL for GPUs, gloo for CPUs.
    Everything but gradients goes through a separate gloo group, which does not synchronise with a GPU.

    Args:
        device: a name for `resolve_device`; "auto" and "cuda" mean the GPU with index LOCAL_RANK.
        timeout_seconds: how long a collective waits for the other ranks.
        folder: the run's folder, shared by all ranks; failing ranks write reports there.
    """

    def __init__(self, device: str, timeout_seconds: float, folder: Path) -> None:
        self.rank, self.world_size = rank_and_world_size()
        if self.world_size > 1 and device in ("auto", "cuda") and torch.cuda.is_available():
            device = f"cuda:{int(os.environ.get('LOCAL_RANK', self.rank)) % torch.cuda.device_count()}"
            torch.cuda.set_device(torch.device(device))
        self.device = resolve_device(device)
        self._folder = folder
        self._reports = folder / ".ranks"
        self._control: dist.ProcessGroup | None = None
        self._saving: dist.ProcessGroup | None = None
        if self.world_size > 1:
            timeout = timedelta(seconds=timeout_seconds)
            atexit.register(self._shut_down, not dist.is_initialized())
            if not dist.is_initialized():
                store, rank, world_size = next(dist.rendezvous("env://", timeout=timeout))
                # torchrun starts ranks again on the same store, which still has the addresses of those that died.
                store = dist.PrefixStore(f"restart-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
                backend = "nccl" if self.device.type == "cuda" else "gloo"
                dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
            self._control = dist.new_group(backend="gloo", timeout=timeout)
            self._saving = dist.new_group(backend="gloo", timeout=timeout)
            self._reports = folder / f".ranks-{self.broadcast(secrets.token_hex(8))}"

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that logs and saves."""
        return self.rank == 0

    @property
    def saving(self) -> dist.ProcessGroup | None:
        """A gloo group for the background saving threads; None for a single process."""
        return self._saving

    def all_gather_floats(self, values: Sequence[float]) -> list[list[float]]:
        """The `values` of every rank, returned on all ranks; integers are exact up to 2⁵³."""
        if self._control is None:
            return [[float(value) for value in values]]
        mine = torch.tensor(values, dtype=torch.float64, device="cpu")
        rows = [torch.empty_like(mine) for _ in range(self.world_size)]
        dist.all_gather(rows, mine, group=self._control)
        return [row.tolist() for row in rows]

    def all_gather(self, value: Any) -> list[Any]:
        """The `value` of every rank, returned on all ranks; transferred by pickle."""
        if self._control is None:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self._control)
        return values

    def broadcast(self, value: Any, *, saving: bool = False) -> Any:
        """Rank 0's `value`, transferred by pickle; with `saving`, through the saving threads' group."""
        if self._control is None:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self._saving if saving else self._control)
        return values[0]

    def remove_old_reports(self) -> None:
        """Removes the failure reports of earlier sessions; the caller must hold the lock of the run's folder."""
        for folder in self._folder.glob(".ranks-*"):
            if folder != self._reports:
                shutil.rmtree(folder, ignore_errors=True)

    def _shut_down(self, owns_default_group: bool) -> None:
        """Ends the groups' threads, and the default group if it was created here, before the interpreter shuts down.

        A gloo thread that frees its last tensor acquires the GIL; during interpreter shutdown, that kills the process
        with SIGABRT instead of its own exit code.
        """
        self._control = self._saving = None
        # A group's threads end when its last reference is gone, and trainers hold references in cycles.
        gc.collect()
        if owns_default_group and dist.is_initialized():
            dist.destroy_process_group()

    @contextlib.contextmanager
    def watched(self, raised_by_all: tuple[type[BaseException], ...]) -> Iterator[None]:
        """In this block, a failing rank reports its error, and a failing collective names the ranks that failed.

        Args:
            raised_by_all: exceptions that all ranks raise together, which pass through unchanged.

        Raises:
            RankFailedError: a collective failed; names the ranks that failed, were killed or do not respond.
        """
        if self._control is None:
            yield
            return
        try:
            yield
        except raised_by_all:
            raise
        except BaseException as error:
            if not _is_collective(error):
                self._report(f"{type(error).__name__}: {error}")
                raise
            self._report("")
            raise RankFailedError(self.rank, self._failed_ranks(), str(error)) from error

    def _report(self, text: str) -> None:
        # A failure to write, e.g. on a full disk, must not hide the error that ended this rank.
        with contextlib.suppress(OSError), atomic_write(self._reports / str(self.rank)) as file:
            file.write(text.encode("utf-8", "backslashreplace"))

    def _failed_ranks(self) -> dict[int, str]:
        """The errors of failed ranks; a rank without a report was killed or stopped."""
        deadline = time.monotonic() + _REPORT_SECONDS
        while True:
            reports: dict[int, str] = {}
            for rank in range(self.world_size):
                with contextlib.suppress(OSError):
                    reports[rank] = (self._reports / str(rank)).read_text("utf-8", "replace")
            # Ranks that only noticed another rank's failure eventually report too.
            if len(reports) == self.world_size or time.monotonic() > deadline:
                break
            time.sleep(0.1)
        silent = {rank: "killed or stopped" for rank in range(self.world_size) if rank not in reports}
        return silent | {rank: text for rank, text in reports.items() if text}


def _is_collective(error: BaseException) -> bool:
    """Whether an exception was raised by a collective; gloo's are plain RuntimeErrors."""
    if isinstance(error, dist.DistError):
        return True
    return type(error) is RuntimeError and _COLLECTIVE.search(str(error)) is not None
