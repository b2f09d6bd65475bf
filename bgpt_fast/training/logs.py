"""A run's log, and a dump of the batches of a step with a non-finite loss or gradient."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from bgpt_fast.checkpoint.save import safetensors_parts
from bgpt_fast.files import atomic_write, naming


class RunLog:
    """log.jsonl: one JSON object per line, in step order; non-finite figures are written as null.

    Args:
        path: the file; created by `open_at`.
        enabled: False writes nothing, for ranks that do not log.
    """

    def __init__(self, path: Path, *, enabled: bool = True) -> None:
        self.path = path
        self._enabled = enabled
        self._file: IO[str] | None = None

    def open_at(self, step: int, evaluated_step: int) -> None:
        """Opens the file to append after `step`; removes incomplete lines and those that a resumed run writes again."""
        if not self._enabled:
            return
        if self.path.exists():
            lines = self.path.read_bytes().splitlines(keepends=True)
            remaining = [line for line in lines if _is_before(line, step, evaluated_step)]
            if remaining != lines:
                with atomic_write(self.path) as file:
                    file.writelines(remaining)
        self._file = self.path.open("a", encoding="utf-8")

    def write(self, figures: dict[str, Any]) -> None:
        """Appends one line."""
        if not self._enabled:
            return
        assert self._file is not None
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in figures.items()}
        with naming(self.path):
            self._file.write(json.dumps(finite, allow_nan=False) + "\n")
            self._file.flush()

    def sync(self) -> None:
        """Flushes the lines to disk."""
        if self._file is not None:
            with naming(self.path):
                os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            with naming(self.path):
                self._file.close()
            self._file = None


def _is_before(line: bytes, step: int, evaluated_step: int) -> bool:
    try:
        figures = json.loads(line)
        return line.endswith(b"\n") and figures["step"] <= (evaluated_step if figures["kind"] == "eval" else step)
    except (ValueError, KeyError, TypeError):
        return False


def write_batches(path: Path, batches: Sequence[Mapping[str, Tensor]], metadata: dict[str, Any]) -> None:
    """Writes batches to a safetensors file; batch N's tensors are named `N.name`, N from 0; stores `metadata` too."""
    tensors = {
        f"{index}.{name}": torch.as_tensor(tensor, device="cpu")
        for index, batch in enumerate(batches)
        for name, tensor in batch.items()
    }
    with atomic_write(path) as file:
        file.writelines(safetensors_parts(tensors, {name: str(value) for name, value in metadata.items()}))
