"""`bgpt-fast simulate`: a model runs programs of the toy CPU, and is held against the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from bgpt_fast.cli.common import as_json, console, generation_progress, load_model, new_folder, read_options, table
from bgpt_fast.files import atomic_write, write_json
from bgpt_fast.tasks.cpu_states import (
    ProgramError,
    StreamOptions,
    Trace,
    Traces,
    format_difference,
    generate,
    read_folder,
    read_parquet,
)
from bgpt_fast.tasks.cpu_states import run as run_program
from bgpt_fast.tasks.cpu_states.assessment import Assessment, assess


@dataclass(frozen=True)
class Simulate:
    """Lets a model run programs of the toy CPU, and holds what it writes against the truth.

    The model sees a program's memory and first state and writes every further state until it ends the file. Writes
    OUTPUT/predicted/*.bin as released, and OUTPUT/report.json; OUTPUT must be new or empty.

    Args:
        programs: assembly (.asm, an instruction a line), traces (.bin), folders of traces, or .parquet files; none
            means random held-out programs.
        checkpoint: a folder of weights, a .safetensors or .pth file, or a hub id.
        random: how many held-out programs to draw where none are given.
        seed: of the random programs.
        machine: the machine that the model was trained on.
        acc: ACC at the start of an assembly program.
        registers: the registers at the start of an assembly program; none means zeros.
        show: how many programs to print beside the truth, wrong ones first.
        output: the folder to write into.
        max_batch: programs under way at once.
        device: "auto" means the GPU where there is one.
    """

    checkpoint: Path
    programs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    random: int = 200
    seed: int = 1
    machine: StreamOptions = field(
        default_factory=lambda: StreamOptions(num_registers=2, memory_size=64, min_program=1, max_program=15)
    )
    acc: int = 0
    registers: tuple[int, ...] = ()
    show: int = 1
    output: Path = Path("simulated")
    max_batch: int = 256
    device: str = "auto"


def run(words: Sequence[str]) -> int:
    options = read_options(Simulate, "simulate", words)
    traces = _traces(options)
    model = load_model(options.checkpoint, options.device)
    new_folder(options.output, "the predicted traces")
    with generation_progress("simulating") as progress:
        found = assess(model, traces, max_batch=options.max_batch, progress=progress)
    names = []
    for index, (trace, predicted) in enumerate(zip(traces, found.predicted, strict=True)):
        # Equal programs may start from different registers: a number keeps them apart.
        names.append(f"{index:06d}-{trace.name}")
        with atomic_write(options.output / "predicted" / names[-1]) as file:
            file.write(predicted.to_bytes())
    write_json(options.output / "report.json", {"options": as_json(options), "files": names, **found.to_dict()})
    print_assessment(found)
    wrong_first = sorted(range(len(traces)), key=lambda i: found.predicted[i].to_bytes() == traces[i].to_bytes())
    for index in wrong_first[: options.show]:
        console.print(f"\nprogram {names[index]}, the truth and what the model wrote:")
        console.print(format_difference(found.predicted[index], traces[index]), markup=False, soft_wrap=True)
    console.print(f"\npredicted traces and report.json are in {options.output}/")
    return 0


def print_assessment(found: Assessment) -> None:
    """The scores as tables, teacher-forced beside free running."""
    forced, free = found.teacher_forced, found.free_running

    def row(name: str, left: float | None, right: float | None) -> list[str]:
        return [name, *("–" if share is None else f"{100 * share:.3f} %" for share in (left, right))]

    rows = [
        row("state bytes right", forced.accuracy, free.accuracy),
        row("  copying alone would score", forced.copy_baseline, free.copy_baseline),
        row("PC and instruction", forced.instruction_accuracy, free.instruction_accuracy),
        row("changed ACC and registers", forced.changed_accuracy, free.changed_accuracy),
        row("copied ACC and registers", forced.copied_accuracy, free.copied_accuracy),
        row("programs right to the last byte", forced.exact_programs, free.exact_programs),
    ]
    console.print(table(f"{forced.programs} programs", ["", "teacher-forced", "free running"], rows))
    scores = []
    for name, score in forced.by_instruction.items():
        other = free.by_instruction.get(name)
        changed = (score.changed_accuracy, other.changed_accuracy if other else None)
        scores.append(
            [name, f"{score.count}", *("–" if share is None else f"{100 * share:.2f} %" for share in changed)]
        )
    headings = ["instruction", "times", "teacher-forced", "free running"]
    console.print(table("bytes that an instruction changed, right", headings, scores))
    console.print(
        f"{found.states:,} states written in {found.seconds:.1f} s: {found.states_per_second:,.0f} states/s, "
        f"{found.states_per_second * (len(forced.by_column)):,.0f} B/s"
    )


def _traces(options: Simulate) -> Traces:
    machine = options.machine
    if not options.programs:
        if options.random < 1:
            raise ValueError(f"--random: expected at least 1, got {options.random}")
        return generate(options.random, seed=options.seed, stream="parallel", split="test", **asdict(machine))
    traces: list[Trace] = []
    R, M = machine.num_registers, machine.memory_size
    for path in options.programs:
        try:
            if path.is_dir():
                traces += read_folder(path, R, M)
            elif path.suffix == ".parquet":
                traces += read_parquet(path)
            elif path.suffix == ".bin":
                traces.append(Trace.from_bytes(path.read_bytes(), R, M))
            else:
                registers = options.registers or (0,) * R
                traces.append(_run_assembly(path.read_text(encoding="utf-8"), options.acc, registers, R, M))
        except ValueError as error:
            error.add_note(f"in {path}")
            raise
    if not traces:
        raise ValueError("simulate: expected at least one program, got none")
    return Traces.from_list(traces)


def _run_assembly(text: str, acc: int, registers: tuple[int, ...], R: int, M: int) -> Trace:
    """Runs a program whose text may have empty lines; errors name the line of the text."""
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    try:
        return run_program([line for _, line in lines], acc, registers, num_registers=R, memory_size=M)
    except ProgramError as error:
        if error.line is None or error.line > len(lines):
            raise
        message = str(error).removeprefix(f"line {error.line}: ")
        raise ProgramError(message, lines[error.line - 1][0]) from error
