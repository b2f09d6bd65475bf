"""Helpers of several commands: options and their help, models, output folders, progress bars, tables and JSON."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import torch
import tyro
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table

from bgpt_fast.deprecation import renamed_value
from bgpt_fast.device import resolve_device
from bgpt_fast.files import write_json
from bgpt_fast.model import BGPT
from bgpt_fast.report.plots import new_figure
from bgpt_fast.terminal import (
    new_console,
    print_error,
    print_table,
    print_text,
    printable,
    stderr_is_terminal,
    text_column,
)

Options = TypeVar("Options")
Item = TypeVar("Item")
GenerationProgress = Callable[[int, int, int], None]
LINE_SECONDS = 30.0
_NAMED_FILES = 8


@dataclass(frozen=True)
class HelpLayout:
    """Which options `--help` shows, and how `--help-all` groups them.

    Args:
        basic: names of the options that `--help` shows, dotted for nested ones, such as "training.steps".
        groups: (heading, description, field names) of the options that `--help-all` groups. Nested dataclasses always
            have their own heading.
    """

    basic: tuple[str, ...]
    groups: Mapping[str, tuple[str, tuple[str, ...]]] = field(default_factory=dict)


def read_options(
    kind: type[Options],
    command: str,
    words: Sequence[str],
    default: Options | None = None,
    layout: HelpLayout | None = None,
    renamed: Mapping[object, str] | None = None,
    short: Mapping[str, str] | None = None,
) -> Options:
    """Parses the options of `bgpt-fast COMMAND`.

    Args:
        kind: a dataclass of options.
        command: its name, for the usage line.
        words: the arguments after the command's name.
        default: replaces the defaults of `kind`.
        layout: shortens `--help` and adds `--help-all`; None shows all options in both.
        renamed: old option name → new one; old names work with a DeprecationWarning.
        short: short option name → the full one, such as "--lr" → "--training.learning-rate".

    Raises:
        SystemExit: with code 0 after --help, with 2 for wrong usage.
    """
    prog, shows_all = f"bgpt-fast {command}", "--help-all" in words
    if layout is not None and (shows_all or {"-h", "--help"} & set(words)):
        names = [item.name for item in dataclasses.fields(kind)] if shows_all else layout.basic  # type: ignore[arg-type]
        with contextlib.suppress(SystemExit):
            tyro.cli(_help_schema(kind, default, names, layout.groups if shows_all else {}), prog=prog, args=["--help"])
        shown_options = {"--" + name.replace("_", "-") for name in layout.basic}
        pairs = [f"{name} is {full}" for name, full in (short or {}).items() if shows_all or full in shown_options]
        if pairs:
            print_text(f"short forms: {', '.join(pairs)}")
        if not shows_all:
            print_text(f"{prog} --help-all shows all options.")
        raise SystemExit(0)
    args = ["--help" if word == "--help-all" else word for word in words]
    for place, word in enumerate(args):
        name, separator, value = word.partition("=")
        new = renamed_value("option", name, renamed or {}, stacklevel=1)
        args[place] = f"{(short or {}).get(new, new)}{separator}{value}"
    if default is None:
        options = tyro.cli(kind, prog=prog, args=args)
    else:
        options = tyro.cli(kind, prog=prog, args=args, default=default)
    _check_numbers(options)
    return options


def check_ranges(options: Any, **ranges: tuple[float, float | None]) -> None:
    """Raises ValueError unless each option is None or a number in its range, both ends included; None: no upper end."""
    for name, (least, most) in ranges.items():
        value = getattr(options, name)
        if value is not None and not least <= value <= (math.inf if most is None else most):
            expected = f"at least {least:,}" if most is None else f"{least:,}…{most:,}"
            raise ValueError(f"--{name.replace('_', '-')}: expected {expected}, got {value:,}")


def _check_numbers(options: Any, prefix: str = "--") -> None:
    """Raises ValueError if an option is NaN, or a whole number that 64 bits do not hold."""
    for item in dataclasses.fields(options):
        value, name = getattr(options, item.name), prefix + item.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            _check_numbers(value, f"{name}.")
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and math.isnan(number):
                raise ValueError(f"{name}: expected a number, got {number}")
            if isinstance(number, int) and not -(1 << 63) <= number < 1 << 63:
                digits = len(str(abs(number)))
                raise ValueError(f"{name}: expected a whole number of 64 bits, got one of {digits} digits")


def value_of(words: Sequence[str], option: str) -> str | None:
    """Returns the first value of an option on a command line that is not parsed yet; None if the option is absent."""
    for index, word in enumerate(words):
        if word.startswith(f"{option}="):
            return word.removeprefix(f"{option}=")
        if word == option and index + 1 < len(words):
            return words[index + 1]
    return None


def _help_schema(
    kind: type, default: Any, names: Sequence[str], groups: Mapping[str, tuple[str, tuple[str, ...]]]
) -> type:
    """Returns a dataclass with a selection of the fields of `kind`, partly grouped, from which tyro prints the help."""
    hints = get_type_hints(kind, include_extras=True)
    fields: list[Any] = []
    grouped = {name for _, members in groups.values() for name in members}
    for item in dataclasses.fields(kind):
        nested = [name.partition(".")[2] for name in names if name.split(".")[0] == item.name]
        if not nested or item.name in grouped:
            continue
        # The default MISSING makes a field required in the schema too.
        hint, value = hints[item.name], item.default
        if default is not None:
            value = getattr(default, item.name)
        elif item.default_factory is not dataclasses.MISSING:
            value = item.default_factory()
        if all(nested):
            schema = _help_schema(type(value), value, nested, {})
            hint, value = Annotated[schema, *getattr(hint, "__metadata__", (None,))], schema()
        fields.append((item.name, hint, field(default=value)))
    for title, (description, members) in groups.items():
        group = _help_schema(kind, default, members, {})
        marked: Any = Annotated[group, tyro.conf.OmitArgPrefixes, tyro.conf.arg(help=description)]
        fields.append((title, marked, field(default=group())))
    # tyro reads the help texts of fields from the docstrings of the class and its bases.
    bases = tuple(type(base.__name__, (), {"__doc__": base.__doc__}) for base in kind.__mro__[1:-1])
    schema = dataclasses.make_dataclass(kind.__name__, fields, bases=bases, frozen=True, kw_only=True)
    schema.__doc__ = kind.__doc__
    return schema


def load_model(checkpoint: Path, device: str) -> BGPT:
    """Loads a model for inference, in float32; `device` "auto" means the GPU where there is one."""
    return BGPT.from_pretrained(str(checkpoint), device=resolve_device(device), dtype=torch.float32)


def new_folder(path: Path, of: str) -> Path:
    """Creates an output folder, so that errors are raised before anything is computed.

    Raises:
        FileExistsError: it is not empty.
        OSError: it cannot be created.
    """
    if path.is_dir() and any(path.iterdir()):
        raise FileExistsError(f"{path}: expected a new or empty folder for {of}; choose another --output or remove it")
    path.mkdir(parents=True, exist_ok=True)
    return path


def plots_folder(path: Path) -> Path:
    """Creates a folder for plots, so that errors are raised before the figures are computed.

    Raises:
        ImportError: matplotlib is missing.
        FileExistsError, OSError: as `new_folder`.
    """
    new_figure(1, 1)
    return new_folder(path, "plots")


@contextlib.contextmanager
def drawing(command: str, what: str) -> Iterator[None]:
    """Within the block a picture of results is drawn; a failure is printed and does not end the command."""
    try:
        yield
    except Exception as error:
        print_error(f"bgpt-fast {command}: {what} could not be drawn: {type(error).__name__}: {error}")


@contextlib.contextmanager
def counting_progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Shows the progress of a command; yields a function that takes the number of items done and the total.

    A bar if standard error is a terminal, otherwise a line every half minute.
    """
    columns = (text_column("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    is_terminal = stderr_is_terminal()
    bar = Progress(*columns, console=new_console(stderr=True), disable=not is_terminal, transient=True)
    started = last_line = time.monotonic()
    with bar:
        task = bar.add_task(what, total=None)

        def update(done: int, total: int) -> None:
            nonlocal last_line
            bar.update(task, completed=done, total=total)
            now = time.monotonic()
            if not is_terminal and now - last_line >= LINE_SECONDS:
                last_line = now
                remaining = f", {_duration((now - started) * (total - done) / done)} left" if done else ""
                print_error(f"{what}: {done:,} of {total:,}{remaining}")

        yield update


@contextlib.contextmanager
def generation_progress(what: str) -> Iterator[GenerationProgress]:
    """Shows the progress of `Generator.generate`: files done, new bytes per second, remaining time.

    A bar if standard error is a terminal, otherwise a line every half minute.
    """
    columns = (
        text_column("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        text_column("{task.fields[rate]}"),
        text_column("{task.fields[remaining]}"),
    )
    is_terminal = stderr_is_terminal()
    bar = Progress(*columns, console=new_console(stderr=True), disable=not is_terminal, transient=True)
    started = last_line = time.monotonic()
    resumed = last_done = last_bytes = 0
    with bar:
        task = bar.add_task(what, total=None, rate="", remaining="")

        def update(done: int, total: int, new_bytes: int) -> None:
            nonlocal started, last_line, resumed, last_done, last_bytes
            now = time.monotonic()
            if new_bytes == last_bytes:
                # Files of an earlier run took no time in this one, so the estimate leaves them out.
                resumed += done - last_done
                started = now if new_bytes == 0 else started
            last_done, last_bytes = done, new_bytes
            seconds = max(now - started, 1e-9)
            rate = f"{new_bytes / seconds:,.0f} B/s"
            remaining = ""
            if done > resumed:
                remaining = f"{_duration(seconds * (total - done) / (done - resumed))} left"
            bar.update(task, completed=done, total=total, rate=rate, remaining=remaining)
            if not is_terminal and now - last_line >= LINE_SECONDS:
                last_line = now
                print_error(f"{what}: {done:,} of {total:,}, {rate}{remaining and ', ' + remaining}")

        yield update


def counted(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """Yields the items, and shows how many are done, as `counting_progress`."""
    with counting_progress(what) as progress:
        for done, item in enumerate(items, 1):
            yield item
            progress(done, total)


def _duration(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Returns a table of `printable` texts whose first column is text and whose others are numbers."""
    result = Table(title=printable(title), title_justify="left")
    for index, column in enumerate(columns):
        result.add_column(printable(column), justify="left" if index == 0 else "right")
    for row in rows:
        result.add_row(*map(printable, row))
    return result


def percent(share: float | None, digits: int = 2) -> str:
    """Formats a share as a percentage; None as a dash."""
    return "–" if share is None else f"{100 * share:.{digits}f} %"


def share(count: int, total: int, digits: int = 2) -> str:
    """Formats a share as a percentage with its counts; a dash if there is nothing."""
    return "–" if not total else f"{percent(count / total, digits)} ({count:,} of {total:,})"


def decimal(value: float | None, digits: int = 4) -> str:
    """Formats a number with a fixed number of decimals; None as a dash."""
    return "–" if value is None else f"{value:,.{digits}f}"


def print_skipped(by_reason: Mapping[str, int], first: Sequence[str], what: str = "skipped") -> None:
    """Prints the number of files for each reason, and the first few names; prints nothing if there are none."""
    if not by_reason:
        return
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in by_reason.items())
    print_text(f"{what}: {reasons}")
    for line in first[:_NAMED_FILES]:
        print_text(f"  {printable(line)}")


def check_output_file(path: Path | None) -> None:
    """Raises IsADirectoryError if --output is a folder; called before anything is computed."""
    if path is not None and path.is_dir():
        raise IsADirectoryError(f"--output: expected a file to write, got the folder {path}")


def print_report(options: Any, result: Mapping[str, Any], tables: Sequence[Table]) -> bool:
    """Writes a result to `options.output` and prints it: as JSON if `options.json`, otherwise as tables.

    Returns:
        Whether the tables were printed.
    """
    if options.output is not None:
        write_json(options.output, result)
    if options.json:
        print_text(json.dumps(result, indent=2))
        return False
    for item in tables:
        print_table(item)
    return True


def as_json(options: Any) -> dict[str, Any]:
    """Returns a dataclass of options as a JSON-ready dict, with paths as strings."""
    return json.loads(json.dumps(dataclasses.asdict(options), default=str))
