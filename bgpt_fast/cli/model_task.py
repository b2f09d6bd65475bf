"""Compares what a model was trained for with what a command does, so that no command works with another's model."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from bgpt_fast.checkpoint.load import followed
from bgpt_fast.checkpoint.schema import CONFIG_FILE, CheckpointError
from bgpt_fast.checkpoint.task import Machine, ModelTask, parse_task
from bgpt_fast.data.pairs import parse_conversion
from bgpt_fast.files import FileContentError
from bgpt_fast.parsing import read_json
from bgpt_fast.tasks.cpu_states import SMALL_MACHINE, StreamOptions
from bgpt_fast.tasks.cpu_states.machine import INSTRUCTION_SIZE, MAX_PC
from bgpt_fast.terminal import print_error

ANY_MODEL = "--any-model uses it all the same"


class WrongModelError(ValueError):
    """A checkpoint of a model that was trained for something else than the command does."""


def check_generation(task: ModelTask | None, checkpoint: object, extensions: Collection[str]) -> None:
    """Raises WrongModelError unless a model generates files with these extensions; accepts a model of unknown task."""
    if task is None:
        return
    if not {"generation", "cpu-states"} & set(task.tasks):
        raise _wrong(checkpoint, "a model that continues files", task, _command(task))
    unknown = sorted(set(extensions) - set(task.extensions))
    if task.extensions and unknown:
        raise WrongModelError(
            f"{checkpoint}: expected a model of .{unknown[0]} files, got one that was trained on "
            f"{_some(task.extensions)}; give --ext or prompts of these, another --checkpoint, or {ANY_MODEL}"
        )


def check_conversion(
    task: ModelTask | None, checkpoint: object, target: str, sources: Collection[str] = ()
) -> Sequence[str]:
    """Raises WrongModelError unless a model converts from one of the `sources` (any, if empty) to `target`.

    Returns:
        The extensions that the model converts to `target`; none, and a line on standard error, if its task is unknown.
    """
    if task is None:
        _say_unknown(checkpoint, "a model of pairs, trained with --conversion")
        return ()
    if "conversion" not in task.tasks:
        raise _wrong(checkpoint, "a model of pairs, trained with --conversion", task, _command(task))
    ways = [tuple(direction.split("->")) for direction in task.conversions]
    possible: list[str] = sorted({source for source, end in ways if end == target})
    if not possible or (sources and not set(sources) & set(possible)):
        got = f"from {' or '.join(sources)} to {target}" if sources else f"to {target}"
        raise WrongModelError(
            f"{checkpoint}: expected a model that converts {got}, got one of {', '.join(task.conversions)}; give --to "
            f"and --from of these, another --checkpoint, or {ANY_MODEL}"
        )
    return possible


def check_drafter(task: ModelTask | None, drafter: object, checkpoint: object, digest: str) -> None:
    """Raises WrongModelError unless a drafter was trained for the model with this digest."""
    if task is None or task.drafter_for != digest:
        got = "one for another model" if task is not None and task.drafter_for else "a model of its own"
        raise WrongModelError(
            f"{drafter}: expected a drafter of {checkpoint}, got {got}; train one by bgpt-fast train --drafter-for, or "
            f"{ANY_MODEL}"
        )


def check_directions(task: ModelTask | None, checkpoint: object, conversion: str) -> None:
    """Raises WrongModelError unless a model has all directions of a --conversion such as "abc&mid"."""
    for source, target in parse_conversion(conversion):
        check_conversion(task, checkpoint, target, [source])


def check_simulation(task: ModelTask | None, checkpoint: object, machine: StreamOptions) -> None:
    """Raises WrongModelError unless a model simulates the machine; of unknown tasks it says so on standard error."""
    expected = Machine(machine.num_registers, machine.memory_size)
    if task is None:
        _say_unknown(checkpoint, f"a model of this machine: {_text(expected)}")
        return
    if "cpu-states" not in task.tasks:
        raise _wrong(checkpoint, "a model of the CPU-state machine", task, _command(task))
    if expected not in task.machines:
        known = task.machines[0]
        raise WrongModelError(
            f"{checkpoint}: expected a model of the machine with {_text(expected)}, got one of "
            f"{' and '.join(map(_text, task.machines))}; give --machine.num-registers {known.num_registers} "
            f"--machine.memory-size {known.memory_size}, or another --checkpoint"
        )


def machine_of(checkpoint: Path) -> StreamOptions:
    """The machine that a local checkpoint was trained for, with the longest programs that its memory and PC hold.

    The small machine if the checkpoint has no config.json that names one: what is wrong with it, loading says.
    """
    machine = None
    with contextlib.suppress(CheckpointError, FileContentError, OSError):
        path = followed(checkpoint) / CONFIG_FILE
        fields = read_json(path)
        task = parse_task(fields.get("task"), str(path)) if isinstance(fields, dict) else None
        machine = task.machines[0] if task is not None and len(task.machines) == 1 else None
    if machine is None:
        return SMALL_MACHINE
    longest = min(MAX_PC, machine.memory_size // INSTRUCTION_SIZE - 1)
    return StreamOptions(machine.num_registers, machine.memory_size, 1, max(1, longest))


def check_files(task: ModelTask | None, checkpoint: object, extensions: Iterable[str]) -> None:
    """Raises WrongModelError if a model was trained for conversion, or on files of none of the extensions.

    Extensions that are new to it, beside known ones, are named on standard error.
    """
    if task is None:
        return
    if task.tasks == ("conversion",):
        raise _wrong(checkpoint, "a model of single files", task, _command(task))
    names = set(extensions)
    unknown = sorted(names - set(task.extensions))
    if not task.extensions or not unknown:
        return
    if set(unknown) == names:
        raise WrongModelError(
            f"{checkpoint}: expected a model of {_some(unknown)} files, got one that was trained on "
            f"{_some(task.extensions)}; give other files, another --checkpoint, or {ANY_MODEL}"
        )
    _say(f"{checkpoint}: there are {_some(unknown)} files too, and the model was trained on none of these")


def _wrong(checkpoint: object, expected: str, task: ModelTask, command: str) -> WrongModelError:
    return WrongModelError(
        f"{checkpoint}: expected {expected}, got one trained for {task}; use it with {command}, give another "
        f"--checkpoint, or {ANY_MODEL}"
    )


def _command(task: ModelTask) -> str:
    """The commands that use a model of this task."""
    if "conversion" in task.tasks:
        _, target = task.conversions[0].split("->")
        return f"bgpt-fast convert --to {target}, or evaluate --conversion '{task.conversions[0]}'"
    if "classification" in task.tasks:
        return "bgpt-fast classify"
    return "bgpt-fast simulate" if task.tasks == ("cpu-states",) else "bgpt-fast generate or evaluate FILES"


def _text(machine: Machine) -> str:
    return f"{machine.num_registers} registers and {machine.memory_size} bytes of memory"


def _some(extensions: Collection[str], most: int = 8) -> str:
    texts = [f".{name}" if name else "(no extension)" for name in extensions]
    return ", ".join(texts[:most]) + (", …" if len(texts) > most else "")


def _say_unknown(checkpoint: object, expected: str) -> None:
    _say(f"{checkpoint}: does not say what it was trained for (weights of an earlier version); expected {expected}")


def _say(text: str) -> None:
    print_error(f"bgpt-fast: {text}")
