"""What several commands share: reading options, loading models, progress and tables."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import tyro
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from bgpt_fast.device import resolve_device
from bgpt_fast.model import BGPT
from bgpt_fast.report.plots import new_figure

Options = TypeVar("Options")
GenerationProgress = Callable[[int, int, int], None]
LINE_SECONDS = 30.0

console = Console(stderr=False, highlight=False)


def read_options(kind: type[Options], command: str, words: Sequence[str], default: Options | None = None) -> Options:
    """Options of `bgpt-fast COMMAND` from its words; `default` replaces the class's own defaults."""
    prog, args = f"bgpt-fast {command}", list(words)
    return (
        tyro.cli(kind, prog=prog, args=args)
        if default is None
        else tyro.cli(kind, prog=prog, args=args, default=default)
    )


def load_model(checkpoint: Path, device: str) -> BGPT:
    """A model for inference, in float32; `device` "auto" takes the GPU where there is one."""
    return BGPT.from_pretrained(str(checkpoint), device=resolve_device(device), dtype=torch.float32)


def new_folder(path: Path, of: str) -> Path:
    """Makes an output folder before anything is computed.

    Raises:
        FileExistsError: it holds something.
        OSError: it cannot be made.
    """
    if path.is_dir() and any(path.iterdir()):
        raise FileExistsError(f"{path}: expected a new or empty folder for {of}; choose another --output or remove it")
    path.mkdir(parents=True, exist_ok=True)
    return path


def plots_folder(path: Path) -> Path:
    """Makes a folder for plots before anything is computed that they would be drawn of.

    Raises:
        ImportError: matplotlib is missing.
        FileExistsError, OSError: as `new_folder`.
    """
    new_figure(1, 1)
    return new_folder(path, "plots")


@contextlib.contextmanager
def generation_progress(what: str) -> Iterator[GenerationProgress]:
    """How far a `Generator.generate` is: files done, new bytes a second, time left.

    A bar where standard error is a terminal, and otherwise a line there every half minute.
    """
    columns = (
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[left]}"),
    )
    is_terminal = sys.stderr.isatty()
    bar = Progress(*columns, console=Console(stderr=True), disable=not is_terminal, transient=True)
    started = told = time.monotonic()
    there = last = last_bytes = 0
    with bar:
        task = bar.add_task(what, total=None, rate="", left="")

        def update(done: int, total: int, new_bytes: int) -> None:
            nonlocal started, told, there, last, last_bytes
            now = time.monotonic()
            if new_bytes == last_bytes:
                there += done - last  # files that an earlier run had made say nothing about how long the others take
                started = now if new_bytes == 0 else started
            last, last_bytes = done, new_bytes
            seconds = max(now - started, 1e-9)
            rate = f"{new_bytes / seconds:,.0f} B/s"
            remaining = seconds * (total - done) / (done - there) if done > there else None
            left = "" if remaining is None else f"{datetime.timedelta(seconds=round(remaining))} left"
            bar.update(task, completed=done, total=total, rate=rate, left=left)
            if not is_terminal and now - told >= LINE_SECONDS:
                told = now
                print(f"{what}: {done:,} of {total:,}, {rate}{left and ', ' + left}", file=sys.stderr, flush=True)

        yield update


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table whose first column is text and whose others are numbers."""
    made = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        made.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        made.add_row(*row)
    return made


def shown_name(name: str) -> str:
    """A file's name as a terminal can take it: no control characters, no lone surrogates, no markup."""
    return escape("".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in name))


def as_json(options: Any) -> Mapping[str, Any]:
    """A dataclass of options as a JSON-ready dict, paths as text."""

    def plain(value: Any) -> Any:
        if isinstance(value, Path):
            return str(value)
        if isinstance(value, dict):
            return {name: plain(item) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return value

    return plain(dataclasses.asdict(options))
