"""Evaluation on CPU states during training with `Trainer`."""

from __future__ import annotations

from collections.abc import Callable

from bgpt_fast.model import BGPT
from bgpt_fast.tasks.cpu_states.evaluation import evaluate_bytes
from bgpt_fast.tasks.cpu_states.simulation import teacher_forced
from bgpt_fast.tasks.cpu_states.traces import Traces


def teacher_forced_evaluation(held_out: Traces, *, batch_size: int = 64) -> Callable[[BGPT], dict[str, float]]:
    """An `evaluate` for `Trainer`: shares of right state bytes on held-out programs, teacher-forced.

    Args:
        held_out: programs of the evaluation split.
        batch_size: programs per forward pass.

    Returns:
        A function of the model that returns "state_byte_accuracy", and the accuracy of the bytes of PC and IR
        ("instruction_accuracy"), of those of ACC and registers that changed, and of those that did not; and the numbers
        of "programs" and of "state_bytes".
    """
    truth = [trace.states for trace in held_out]

    def evaluate(model: BGPT) -> dict[str, float]:
        report = evaluate_bytes(teacher_forced(model, held_out, batch_size=batch_size), truth)
        return {
            "state_byte_accuracy": report.accuracy,
            "instruction_accuracy": report.instruction_accuracy,
            "changed_accuracy": report.changed_accuracy or 0.0,
            "copied_accuracy": report.copied_accuracy or 0.0,
            "programs": float(report.programs),
            "state_bytes": float(report.state_bytes),
        }

    return evaluate
