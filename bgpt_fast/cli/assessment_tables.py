"""The scores of simulated CPU-state programs as tables on the terminal."""

from __future__ import annotations

from collections.abc import Mapping

from bgpt_fast.cli.common import percent, table
from bgpt_fast.tasks.cpu_states.assessment import Assessment
from bgpt_fast.tasks.cpu_states.evaluation import InstructionScore, RegisterScore
from bgpt_fast.terminal import print_table, print_text


def print_assessment(assessment: Assessment) -> None:
    """Prints the scores as tables, teacher-forced next to free running."""
    forced, free = assessment.teacher_forced, assessment.free_running

    def row(name: str, *shares: float | None) -> list[str]:
        return [name, *(percent(share, 3) for share in shares)]

    right = [f"{report.right_bytes:,} of {report.state_bytes:,}" for report in (forced, free)]
    exact = [f"{report.programs_right:,} of {report.programs:,}" for report in (forced, free)]
    rows = [
        row("state bytes right", forced.accuracy, free.accuracy),
        ["", *right],
        row("  copying alone would score", forced.copy_baseline, free.copy_baseline),
        row("PC and instruction", forced.instruction_accuracy, free.instruction_accuracy),
        row(f"changed ACC and registers ({forced.changed_bytes:,})", forced.changed_accuracy, free.changed_accuracy),
        row(f"copied ACC and registers ({forced.copied_bytes:,})", forced.copied_accuracy, free.copied_accuracy),
        row("programs right to the last byte", forced.exact_programs, free.exact_programs),
        ["", *exact],
    ]
    print_table(table(f"{forced.programs} programs", ["", "teacher-forced", "free running"], rows))
    _print_scores("bytes that an instruction changed, right", forced.by_instruction, free.by_instruction)
    _print_scores("… of ADD to XOR by the larger operand", forced.by_operand_size, free.by_operand_size)
    print_text(
        f"{assessment.states:,} states simulated in {assessment.seconds:.1f} s: "
        f"{assessment.states_per_second:,.0f} states/s, {assessment.states_per_second * len(forced.by_column):,.0f} B/s"
    )


def print_details(assessment: Assessment) -> None:
    """Prints the scores by addressing mode, by register and by the step of the first wrong byte."""
    forced, free = assessment.teacher_forced, assessment.free_running
    _print_scores("… by addressing mode", forced.by_addressing_mode, free.by_addressing_mode)
    _print_scores("… by register", forced.by_register, free.by_register)
    steps = sorted({*forced.first_divergence, *free.first_divergence})
    if steps:
        counts = [
            [f"{step}", *(f"{report.first_divergence.get(step, 0)}" for report in (forced, free))]
            for step in steps[:16]
        ]
        rest = f", the first 16 of {len(steps)} steps" if len(steps) > 16 else ""
        title = f"programs by the step of their first wrong byte{rest}"
        print_table(table(title, ["step", "teacher-forced", "free running"], counts))
    print_text(f"teacher-forced: {assessment.teacher_forced_states_per_second:,.0f} states/s")


def _print_scores(
    title: str,
    forced: Mapping[str, InstructionScore] | Mapping[str, RegisterScore],
    free: Mapping[str, InstructionScore] | Mapping[str, RegisterScore],
) -> None:
    rows = []
    what = title.split()[-1] if title.startswith("…") else "instruction"
    for name, score in forced.items():
        shares = (score.changed_accuracy, free[name].changed_accuracy if name in free else None)
        rows.append([name, f"{score.count}", *map(percent, shares)])
    print_table(table(title, [what, "times", "teacher-forced", "free running"], rows))
