"""`bgpt-fast simulate`: a model runs programs of the toy CPU, and is held against the truth."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from bgpt_fast.cli.assessment_tables import print_assessment, print_details
from bgpt_fast.cli.common import (
    GenerationProgress,
    as_json,
    console,
    generation_progress,
    load_model,
    read_options,
)
from bgpt_fast.cli.outputs import fingerprint
from bgpt_fast.cli.simulate_folder import REPORT, SimulationFolder
from bgpt_fast.model import BGPT
from bgpt_fast.report.simulation_page import ProgramView, write_simulation_page
from bgpt_fast.tasks.cpu_states import StreamOptions, Traces, column_names, format_difference
from bgpt_fast.tasks.cpu_states.assessment import Chunk, Evaluator
from bgpt_fast.tasks.cpu_states.predictions import PredictionTable, predictions_to_parquet, write_predictions
from bgpt_fast.tasks.cpu_states.programs import count_programs, random_pieces, read_pieces
from bgpt_fast.tasks.cpu_states.saved_piece import SavedPiece, digest
from bgpt_fast.tasks.cpu_states.views import program_view

PAGE = "report.html"


@dataclass(frozen=True)
class Simulate:
    """Lets a model run programs of the toy CPU, and holds what it writes against the truth.

    The model sees a program's memory and first state and writes every further state until it ends the file. Writes
    OUTPUT/predicted/*.bin as released (or OUTPUT/predicted.parquet, or both), OUTPUT/report.json with all figures and
    OUTPUT/report.html to look at. Any number of programs takes the memory of a few thousand. Run again with the same
    options after it was stopped, it goes on behind the last program that was done, to the same bytes.

    Args:
        programs: assembly (.asm, an instruction a line), .bin files (traces, or machine code alone), folders of
            traces, or .parquet files; none means random held-out programs.
        checkpoint: a training run's folder, one of weights, a .safetensors or .pth file, or a hub id.
        random: how many held-out programs to draw where none are given.
        seed: of the random programs.
        machine: the machine that the model was trained on.
        acc: ACC at the start of an assembly program.
        registers: the registers at the start of an assembly program; none means zeros.
        draft: let the machine guess what the model writes and the model check many bytes at once (on the CPU): the
            same bytes, two to three times sooner with one program under way, no sooner with hundreds.
        write: the predicted traces as .bin files, as one Parquet file, as both or not at all.
        show: how many programs to print beside the truth, wrong ones first.
        page: how many programs report.html shows step by step, wrong ones first; 0 means no page.
        output: the folder to write into; new, empty, or begun by the same command.
        max_batch: programs under way at once.
        batch_invariant: on a GPU, too, write each trace as if it were alone, to the last bit; slower. CPUs always do.
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
    draft: bool = False
    write: Literal["bin", "parquet", "both", "none"] = "bin"
    show: int = 1
    page: int = 50
    output: Path = Path("simulated")
    max_batch: int = 256
    batch_invariant: bool = False
    device: str = "auto"


def run(words: Sequence[str]) -> int:
    options = read_options(Simulate, "simulate", _registers_last(words))
    for name, least in (("random", 1), ("show", 0), ("page", 0)):
        if getattr(options, name) < least:
            raise ValueError(f"--{name}: expected at least {least}, got {getattr(options, name)}")
    machine = options.machine
    pieces = (
        read_pieces(options.programs, machine, acc=options.acc, registers=options.registers)
        if options.programs
        else random_pieces(options.random, machine, seed=options.seed)
    )
    # The first piece is read before the model: a wrong program is told at once.
    first = next(pieces, None)
    if first is None:
        raise ValueError("simulate: expected at least one program, got none")
    model = load_model(options.checkpoint, options.device)
    told = as_json(options)
    plan = {name: told[name] for name in ("programs", "random", "seed", "machine", "acc", "registers")}
    folder = SimulationFolder(options.output, {**plan, "model": fingerprint(model)})
    try:
        if folder.complete:
            return _already_there(options, _chain(first, pieces))
        if folder.resumed:
            console.print(f"{options.output}: goes on where it was stopped", markup=False)
        total = count_programs(options.programs) if options.programs else options.random
        _simulate(options, model, folder, _chain(first, pieces), total)
    finally:
        folder.close()
    return 0


def _simulate(options: Simulate, model: BGPT, folder: SimulationFolder, pieces: Iterator[Traces], total: int) -> None:
    machine = options.machine
    draft = options.draft and next(model.parameters()).device.type == "cpu"
    assessor = Evaluator(
        model,
        machine.num_registers,
        max_batch=options.max_batch,
        draft=draft,
        batch_invariant=options.batch_invariant,
    )
    examples = _Examples(max(options.show, options.page))
    names: list[str] = []
    programs = hashlib.sha256()
    with contextlib.ExitStack() as stack:
        parquet: PredictionTable | None = None
        if options.write in ("parquet", "both"):
            path = options.output / "predicted.parquet"
            parquet = stack.enter_context(predictions_to_parquet(path, machine.num_registers, machine.memory_size))
        progress = _Progress(stack.enter_context(generation_progress("simulating")), total)
        for index, traces in enumerate(pieces):
            with SavedPiece(folder.piece(index), traces) as saved:
                was_there = saved.complete
                progress.piece(len(saved.predicted), len(traces), 0)
                piece = assessor.add(traces, progress=progress.piece, saved=saved)
            progress.next(len(traces))
            programs.update(digest(traces))
            # Equal programs may start from different registers: a number keeps them apart.
            new = [f"{len(names) + place:06d}-{trace.name}" for place, trace in enumerate(traces)]
            if options.write in ("bin", "both"):
                write_predictions(options.output / "predicted", new, piece.predicted, keep=was_there)
            if parquet is not None:
                parquet.add(new, piece.predicted, traces)
            examples.add(new, piece)
            names += new
    found = assessor.assessment()
    figures = found.to_dict()
    print_assessment(found)
    print_details(found)
    for example in examples.wrong_first()[: options.show]:
        console.print(f"\nprogram {example.name}, the truth and what the model wrote:")
        console.print(example.difference, markup=False, soft_wrap=True)
    if options.page:
        views = [example.view for example in examples.wrong_first()[: options.page]]
        title = f"{len(names)} programs of the toy CPU, simulated by {options.checkpoint}"
        page = options.output / PAGE
        write_simulation_page(page, title, column_names(machine.num_registers), figures, views)
    told = {"options": as_json(options), "programs_digest": programs.hexdigest(), "files": names}
    folder.finish({**told, **figures})
    console.print(
        f"\n{', '.join(_made(options))} are in {options.output}/: predicted traces, all figures, and a page to look at",
        markup=False,
    )


def _made(options: Simulate) -> list[str]:
    """What these options write."""
    written = {"bin": ["predicted/"], "parquet": ["predicted.parquet"], "none": []}
    page = [PAGE] if options.page else []
    return [REPORT, *page, *written.get(options.write, ["predicted/", "predicted.parquet"])]


def _already_there(options: Simulate, pieces: Iterator[Traces]) -> int:
    """Says that there is nothing to do.

    Raises:
        FileExistsError: it is of other programs, whose files have changed since; or what these options write is not
            all there: it was not asked for, or is gone.
    """
    report = json.loads((options.output / REPORT).read_bytes())
    if options.programs:
        programs = hashlib.sha256()
        for traces in pieces:
            programs.update(digest(traces))
        if programs.hexdigest() != report["programs_digest"]:
            paths = ", ".join(map(str, options.programs))
            raise FileExistsError(
                f"{options.output}: holds the simulation of other programs than are in {paths} now; choose another "
                "--output, or remove this one"
            )
    missing = [name for name in _made(options) if not (options.output / name).exists()]
    if options.write in ("bin", "both"):
        predicted = options.output / "predicted"
        missing += [f"predicted/{name}" for name in report["files"] if not (predicted / name).is_file()][:1]
    if missing:
        raise FileExistsError(
            f"{options.output}: the simulation is there, but {missing[0]} is not; choose another --output, or remove "
            "this one, to simulate again"
        )
    console.print(
        f"{options.output}: all {len(report['files']):,} programs were simulated already and were not simulated again; "
        f"{100 * report['free_running']['exact_programs']:.3f} % right to the last byte, free running; see {REPORT}",
        markup=False,
    )
    return 0


@dataclass(frozen=True)
class _Example:
    name: str
    difference: str
    view: ProgramView


class _Progress:
    """The progress of all pieces together."""

    def __init__(self, show: GenerationProgress, total: int) -> None:
        self._show, self._total = show, total
        self._programs = self._bytes = self._piece_bytes = 0

    def piece(self, done: int, _: int, new_bytes: int) -> None:
        """Shows how far the piece under way is."""
        self._piece_bytes = new_bytes
        self._show(self._programs + done, self._total, self._bytes + new_bytes)

    def next(self, programs: int) -> None:
        """Goes on to the piece behind one of so many programs."""
        self._programs += programs
        self._bytes += self._piece_bytes
        self._piece_bytes = 0


class _Examples:
    """The first few wrong programs and the first few right ones."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._wrong: list[_Example] = []
        self._right: list[_Example] = []

    def add(self, names: Sequence[str], piece: Chunk) -> None:
        for name, truth, predicted, forced in zip(names, piece.traces, piece.predicted, piece.forced, strict=True):
            kept = self._right if predicted.to_bytes() == truth.to_bytes() else self._wrong
            if len(kept) < self._count:
                view = program_view(name, truth, predicted, forced)
                kept.append(_Example(name, format_difference(predicted, truth), view))

    def wrong_first(self) -> list[_Example]:
        return self._wrong + self._right


def _chain(first: Traces, rest: Iterator[Traces]) -> Iterator[Traces]:
    yield first
    yield from rest


def _registers_last(words: Sequence[str]) -> list[str]:
    """The words with `--registers` and its numbers at the end, where it cannot take a file's name for one of them."""
    words = list(words)
    if "--registers" not in words:
        return words
    start = words.index("--registers")
    stop = start + 1
    while stop < len(words) and re.fullmatch(r"-?[0-9]+", words[stop]):
        stop += 1
    return words[:start] + words[stop:] + words[start:stop]
