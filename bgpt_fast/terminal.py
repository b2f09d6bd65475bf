"""Text on the terminal: printed as it is, whatever characters it has, in whatever encoding the output has.

Only this module creates consoles and text columns of rich, which it tells not to interpret markup such as "[red]" or
":smile:" in paths and messages (`tests/test_terminal.py`).
"""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import TextIO

from rich.console import Console
from rich.progress import TextColumn
from rich.table import Table

_PLAIN = str.maketrans(
    {"…": "...", "–": "-", "—": "-", "−": "-", "·": "-", "│": "|", "×": "x", "→": "->", "≤": "<=", "≥": ">="}
    | {"≠": "!=", "≈": "~", "±": "+-", "µ": "u", "²": "^2", "³": "^3"}
)
_ERRORS = "bgpt_fast.plain"


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Raises BrokenPipeError, as `print` does; rich's own ends the process with exit code 1."""
        raise  # it is handled while this is called


def new_console(*, stderr: bool = False) -> Console:
    """Returns a console on standard output, or standard error, that prints text without interpreting it."""
    return _Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def text_column(template: str) -> TextColumn:
    """Returns a column of a progress bar, such as "{task.description}", whose text is not interpreted."""
    return TextColumn(template, markup=False)


def printable(text: str) -> str:
    """Returns a text in one line, with its control characters and lone surrogates as escapes such as `\\x1b`."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def printable_lines(text: str) -> str:
    """Returns a text whose lines are each `printable`."""
    return "\n".join(map(printable, text.split("\n")))


def print_text(text: str) -> None:
    """Prints `printable_lines` of a text on standard output; long lines are not broken.

    Raises:
        OSError: it could not be written; names standard output.
    """
    with _writing():
        print(printable_lines(text), flush=True)


def print_table(table: Table) -> None:
    """Prints a table on standard output; raises as `print_text`."""
    with _writing():
        new_console().print(table)


def print_error(text: str) -> None:
    """Prints `printable_lines` of a text on standard error; long lines are not broken; a failure is ignored."""
    if sys.stderr is None:
        return
    try:
        print(printable_lines(text), file=sys.stderr, flush=True)
    except OSError:
        _discard(sys.stderr)


def stderr_is_terminal() -> bool:
    """Whether standard error is a terminal; False if it is closed."""
    return sys.stderr is not None and sys.stderr.isatty()


def accept_all_text() -> None:
    """Makes standard output and error replace characters that their encoding lacks, instead of raising an exception.

    "…" and the like become ASCII, other characters escapes such as `\\u4e2d`. A closed stream discards its text.
    """
    codecs.register_error(_ERRORS, _replacement)
    # The lowest free descriptor is that of the closed stream, which thus no other file gets.
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (open as long as the process)
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ERRORS)


def flush_output() -> None:
    """Writes what was printed; raises as `print_text`."""
    with _writing():
        sys.stdout.flush()


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    """Adds the name of standard output to an OSError."""
    try:
        yield
    except OSError as error:
        error.filename = "standard output"
        _discard(sys.stdout)
        raise


def _discard(stream: TextIO) -> None:
    """Discards what is still to be written to a stream, which would fail at exit, too."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _replacement(error: UnicodeError) -> tuple[str, int]:
    """Replaces what could not be encoded; a codec's error handler."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(_PLAIN)
    return text.encode("ascii", "backslashreplace").decode(), error.end
