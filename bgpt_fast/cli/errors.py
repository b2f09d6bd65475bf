"""Errors of commands as one line on standard error, with the options' names, and their exit codes."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from bgpt_fast.memory import OutOfMemoryError, is_out_of_memory
from bgpt_fast.terminal import print_error

WRONG_VALUE, FAILURE = 2, 1
_WRONG_VALUES = (ValueError, TypeError, FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)
_FAILURES = {"WorkerError", "CheckpointDamagedError"}
"""Subclasses of ValueError that are no wrong values; by name, as most commands do not import them."""
_CONFIGS = {"TrainConfig": "training", "BGPTConfig": "model", "StreamOptions": "machine"}
_ARGUMENT = re.compile(r"(\w+)[.:] ?(\w+)(?=: )")


def report_error(command: str, error: Exception, options: type | None = None) -> int:
    """Prints an error and returns its exit code: 2 for a wrong value of an option or file name, 1 for a failure.

    Args:
        command: the command's name.
        error: what it raised.
        options: the dataclass of its options: an argument that the message begins with is printed as its option.
    """
    notes = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
    name, text = type(error).__name__, with_option_name(str(error), options)
    if isinstance(error, OutOfMemoryError):
        text = error.text(_setting_options(command, error.lower))
    elif is_out_of_memory(error):
        reason = next(iter(text.splitlines()), "") or "an allocation failed"
        name, text = "OutOfMemoryError", f"not enough memory: {reason}; use smaller inputs, a smaller batch or model"
    print_error(f"bgpt-fast {command}: {name}: {text}{notes}")
    is_failure = any(kind.__name__ in _FAILURES for kind in type(error).__mro__)
    return WRONG_VALUE if isinstance(error, _WRONG_VALUES) and not is_failure else FAILURE


def with_option_name(text: str, options: type | None) -> str:
    """Replaces the argument that a message begins with by its option, if the command has it.

    "TrainConfig.steps: expected …" becomes "--training.steps: expected …", "FileSource: patches_per_batch: …" becomes
    "--patches-per-batch: …".
    """
    match = _ARGUMENT.match(text)
    if match is None or options is None:
        return text
    fields = {field.name for field in dataclasses.fields(options)}
    owner, name = match.groups()
    prefix = f"{_CONFIGS[owner]}." if owner in _CONFIGS and _CONFIGS[owner] in fields else ""
    if not prefix and name not in fields:
        return text
    return f"--{prefix}{name.replace('_', '-')}{text[match.end() :]}"


def _setting_options(command: str, settings: Sequence[str]) -> dict[str, str]:
    """The options of a command that set these arguments of the library."""
    names = {name: f"--{name.replace('_', '-')}" for name in settings}
    if command == "train":
        from bgpt_fast.training.config import TrainConfig

        names |= {name: f"--training.{option[2:]}" for name, option in names.items() if hasattr(TrainConfig, name)}
        names |= {"documents_per_batch": "--programs-per-batch"}
    return names
