"""Checkpoints written beside training: from copies, by a thread, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from bgpt_fast.training.parallel import is_dtensor


class AsyncSaver:
    """Runs one save at a time in a thread of its own; what fails there is kept for whoever waits."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._last: Future[None] | None = None

    @property
    def failed(self) -> bool:
        """Whether the last save failed; False while it runs."""
        return self._last is not None and self._last.done() and self._last.exception() is not None

    def start(self, save: Callable[[], None]) -> None:
        """Waits for the save before, then starts this one.

        Raises:
            BaseException: what the save before raised.
        """
        self.wait()
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, "bgpt-save")
        self._last = self._pool.submit(save)

    def wait(self) -> None:
        """Waits until no save runs.

        Raises:
            BaseException: what it raised, once.
        """
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def close(self) -> None:
        """Waits until no save runs, and ends the thread."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


@torch.no_grad()
def snapshot(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU that no update changes; tied tensors stay tied, and a rank's parts where they are."""
    copies: dict[object, Tensor] = {}
    found = {}
    for name, tensor in tensors.items():
        if is_dtensor(tensor):
            found[name] = tensor.clone()
            continue
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.device) if tensor.numel() else name
        if key not in copies:
            copies[key] = tensor.detach().to("cpu", copy=True)
        found[name] = copies[key]
    return found
