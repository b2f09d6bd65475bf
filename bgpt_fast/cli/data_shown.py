"""What the kinds of `bgpt-fast data` share: a bar that counts, and what was skipped."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bgpt_fast.cli.common import console

_SHOWN = 8


@contextlib.contextmanager
def counting_progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error; call it with what is done and what there is."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True)
    with bar:
        task = bar.add_task(what, total=None)

        def update(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield update


def print_skipped(by_reason: Mapping[str, int], first: Sequence[str], what: str = "skipped") -> None:
    """How many for each reason, and the first few by name; nothing if there is none."""
    if not by_reason:
        return
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in by_reason.items())
    console.print(f"{what}: {reasons}", markup=False, soft_wrap=True)
    for line in first[:_SHOWN]:
        # Names can be of any bytes.
        printable = line.encode("ascii", "backslashreplace").decode() if not line.isprintable() else line
        console.print(f"  {printable}", markup=False, soft_wrap=True)
