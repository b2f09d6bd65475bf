"""What a model was trained for, as its checkpoint stores it: tasks, file extensions, conversions, machines."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from bgpt_fast.checkpoint.schema import CheckpointError

TASKS = ("generation", "conversion", "classification", "cpu-states")
_MAX_EXTENSIONS = 256


class Machine(NamedTuple):
    """A CPU-state machine: its number of registers, and its memory in bytes."""

    num_registers: int
    memory_size: int


@dataclass(frozen=True)
class ModelTask:
    """What a model was trained for; a mixture of sources has all of their tasks.

    Args:
        tasks: of `TASKS`, sorted.
        extensions: of the training files, without dots, sorted; empty means that they are not known, or more than 256.
        conversions: single directions such as "abc->mid", sorted.
        machines: the CPU-state machines, sorted.
        drafter_for: digest of the model whose generation this one is to speed up as its drafter; "" means none.
    """

    tasks: tuple[str, ...]
    extensions: tuple[str, ...] = ()
    conversions: tuple[str, ...] = ()
    machines: tuple[Machine, ...] = ()
    drafter_for: str = ""

    @classmethod
    def of(
        cls,
        task: str,
        *,
        extensions: Iterable[str] = (),
        conversions: Iterable[str] = (),
        machine: tuple[int, int] | None = None,
    ) -> ModelTask:
        """A single task; arguments in any order and number, as in the class."""
        names = tuple(sorted(set(extensions)))
        machines = () if machine is None else (Machine(*machine),)
        return cls((task,), names if len(names) <= _MAX_EXTENSIONS else (), tuple(sorted(conversions)), machines)

    def __or__(self, other: ModelTask) -> ModelTask:
        """The tasks of both; the extensions are known if those of both are."""
        names = {*self.extensions, *other.extensions} if self.extensions and other.extensions else ()
        return ModelTask(
            tuple(sorted({*self.tasks, *other.tasks})),
            tuple(sorted(names)) if len(names) <= _MAX_EXTENSIONS else (),
            tuple(sorted({*self.conversions, *other.conversions})),
            tuple(sorted({*self.machines, *other.machines})),
        )

    def __str__(self) -> str:
        """Text for messages, such as "conversion (abc->mid)"."""
        machines = [f"{one.num_registers} registers, {one.memory_size} bytes of memory" for one in self.machines]
        details = {
            "generation": [f".{name}" if name else "no extension" for name in self.extensions],
            "conversion": list(self.conversions),
            "cpu-states": machines,
        }
        return " and ".join(task + _in_brackets(details.get(task, [])) for task in self.tasks)

    def to_dict(self) -> dict[str, Any]:
        """The fields, JSON-ready."""
        fields: dict[str, Any] = {
            "tasks": list(self.tasks),
            "extensions": list(self.extensions),
            "conversions": list(self.conversions),
            "machines": [machine._asdict() for machine in self.machines],
        }
        return fields | ({"drafter_for": self.drafter_for} if self.drafter_for else {})


def parse_task(fields: object, source: str) -> ModelTask | None:
    """The inverse of `to_dict`; None for None, as in checkpoints of earlier versions.

    Raises:
        CheckpointError: the fields are of another form; the error begins with `source`.
    """
    if fields is None:
        return None
    names = ("tasks", "extensions", "conversions")
    try:
        if not isinstance(fields, dict) or {*fields, "drafter_for"} != {*names, "machines", "drafter_for"}:
            raise TypeError("expected tasks, extensions, conversions and machines")
        texts = [tuple(fields[name]) for name in names]
        machines = tuple(Machine(**machine) for machine in fields["machines"])
        if not all(isinstance(text, str) for values in texts for text in values):
            raise TypeError("expected lists of texts")
        if not all(type(number) is int for machine in machines for number in machine):
            raise TypeError("expected machines of two whole numbers")
        drafter_for = fields.get("drafter_for", "")
        if not isinstance(drafter_for, str):
            raise TypeError("expected a digest")
        if not texts[0] or not set(texts[0]) <= set(TASKS):
            raise ValueError(f"expected one or more of {list(TASKS)}")
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{source}: task: {error}, got {fields!r:.200}; restore the file") from error
    return ModelTask(texts[0], texts[1], texts[2], machines, drafter_for)


def _in_brackets(texts: list[str], most: int = 8) -> str:
    more = ", …" if len(texts) > most else ""
    return f" ({', '.join(texts[:most])}{more})" if texts else ""
