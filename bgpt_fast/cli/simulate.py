"""`bgpt-fast simulate`: simulates programs of the toy CPU with a model, and scores it against the true traces."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from bgpt_fast.cli.assessment_tables import print_assessment, print_details
from bgpt_fast.cli.common import (
    GenerationProgress,
    HelpLayout,
    as_json,
    generation_progress,
    load_model,
    read_options,
)
from bgpt_fast.cli.model_task import check_simulation
from bgpt_fast.cli.outputs import fingerprint
from bgpt_fast.cli.precision import choose_precision, in_plan
from bgpt_fast.cli.simulate_folder import REPORT, SimulationFolder
from bgpt_fast.generation.generator import MOST_FILES
from bgpt_fast.generation.precision import Precision, PrecisionChoice
from bgpt_fast.model import BGPT
from bgpt_fast.report.simulation_page import ProgramView, write_simulation_page
from bgpt_fast.tasks.cpu_states import SMALL_MACHINE, StreamOptions, Traces, column_names, format_difference
from bgpt_fast.tasks.cpu_states.assessment import Chunk, Evaluator
from bgpt_fast.tasks.cpu_states.chunk_journal import ChunkJournal, digest
from bgpt_fast.tasks.cpu_states.predictions import PredictionTable, predictions_to_parquet, write_predictions
from bgpt_fast.tasks.cpu_states.programs import CHUNK_SIZE, count_programs, random_chunks, read_chunks
from bgpt_fast.tasks.cpu_states.views import program_view
from bgpt_fast.terminal import print_text

PAGE = "report.html"
_BATCHES_PER_CHUNK = 4  # so that few of a chunk's rounds have empty slots
_OLD_CHUNK_SIZE = 2048  # of runs whose plan has no size
LAYOUT = HelpLayout(basic=("programs", "checkpoint", "random", "machine", "output", "write", "draft", "device"))


@dataclass(frozen=True)
class Simulate:
    """Simulates programs of the toy CPU with a model, and scores the predicted traces against the true ones.

    The prompt is a program's memory and first state; the model generates all further states until it ends the file.
    Writes OUTPUT/predicted/*.bin in the released format (or OUTPUT/predicted.parquet, or both), OUTPUT/report.json with
    all figures, and OUTPUT/report.html, a page that shows them. The same command resumes a stopped simulation, with the
    same results. Memory use does not grow with the number of programs.

    Args:
        programs: assembly (.asm, one instruction per line), .bin files (traces, or machine code only), folders of
            traces, or .parquet files; if empty, random held-out programs.
        checkpoint: a training run's folder, a folder of weights, a .safetensors or .pth file, or a hub id.
        random: number of random held-out programs if there are no PROGRAMS.
        seed: seed of the random programs.
        machine: the machine that the model was trained on.
        acc: ACC at the start of an assembly program.
        registers: the registers at the start of an assembly program; empty means zeros.
        draft: speculative decoding with the true machine as the draft model (on the CPU): the same bytes, two to three
            times faster with one program at a time, no faster with hundreds.
        write: format of the predicted traces: .bin files, one Parquet file, both or none.
        show: number of predicted traces to print next to the true ones, wrong ones first.
        page: number of programs that report.html shows step by step, wrong ones first; 0 means no page.
        any_model: use the model even if it was trained for something else.
        output: the folder to write; new, empty, or of an earlier run of the same command.
        precision: precision of the linear layers. "auto" measures whether bfloat16 is faster than float32 here, and
            says so; a resumed simulation stays with its choice.
        max_batch: number of programs simulated at once; None means as many as fit into half of the free memory, at most
            4,096.
        batch_invariant: make each trace independent of the rest of the batch on a GPU too; slower. Always so on CPUs.
        device: "auto" uses the GPU if there is one.
    """

    checkpoint: Path
    programs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    random: int = 200
    seed: int = 1
    machine: StreamOptions = SMALL_MACHINE
    acc: int = 0
    registers: tuple[int, ...] = ()
    draft: bool = False
    write: Literal["bin", "parquet", "both", "none"] = "bin"
    show: int = 1
    page: int = 50
    any_model: bool = False
    output: Path = Path("simulated")
    precision: Precision = "auto"
    max_batch: int | None = None
    batch_invariant: bool = False
    device: str = "auto"


OPTIONS = Simulate


def run(words: Sequence[str]) -> int:
    options = read_options(Simulate, "simulate", _registers_last(words), layout=LAYOUT)
    for name, least in (("random", 1), ("show", 0), ("page", 0)):
        if getattr(options, name) < least:
            raise ValueError(f"--{name}: expected at least {least}, got {getattr(options, name)}")
    machine = options.machine
    earlier = SimulationFolder.plan_of(options.output)
    chunk_size = max(CHUNK_SIZE, _BATCHES_PER_CHUNK * (options.max_batch or 0))
    if earlier is not None:
        # Its saved chunks may be of another size: of another --max-batch, or of an earlier version.
        chunk_size = earlier.get("chunk_size", _OLD_CHUNK_SIZE)
    sizes = {} if chunk_size == CHUNK_SIZE else {"chunk_size": chunk_size}
    chunks = (
        read_chunks(options.programs, machine, acc=options.acc, registers=options.registers, **sizes)
        if options.programs
        else random_chunks(options.random, machine, seed=options.seed, **sizes)
    )
    # The first chunk is read before the model is loaded, so that an invalid program raises its error immediately.
    first = next(chunks, None)
    if first is None:
        raise ValueError("simulate: expected at least one program, got none")
    model = load_model(options.checkpoint, options.device)
    if not options.any_model:
        check_simulation(model.task, options.checkpoint, machine)
    values = as_json(options)
    plan = {name: values[name] for name in ("programs", "random", "seed", "machine", "acc", "registers")}
    if earlier is None or "chunk_size" in earlier:
        plan["chunk_size"] = chunk_size
    files = min(options.max_batch or MOST_FILES, len(first))
    choice = choose_precision(options.precision, earlier, model, files)
    folder = SimulationFolder(options.output, {**plan, "model": fingerprint(model), **in_plan(choice)})
    try:
        if folder.complete:
            return _check_complete(options, itertools.chain([first], chunks))
        if folder.resumed:
            print_text(f"{options.output}: resumes where it was stopped")
        total = count_programs(options.programs) if options.programs else options.random
        _simulate(options, model, choice, folder, itertools.chain([first], chunks), total)
    finally:
        folder.close()
    return 0


def _simulate(
    options: Simulate,
    model: BGPT,
    precision: PrecisionChoice,
    folder: SimulationFolder,
    chunks: Iterator[Traces],
    total: int,
) -> None:
    machine = options.machine
    draft = options.draft and next(model.parameters()).device.type == "cpu"
    evaluator = Evaluator(
        model,
        machine.num_registers,
        max_batch=options.max_batch,
        draft=draft,
        batch_invariant=options.batch_invariant,
        precision=precision.precision,
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
        for index, traces in enumerate(chunks):
            with ChunkJournal(folder.chunk(index), traces) as saved:
                was_complete = saved.complete
                progress.chunk(len(saved.predicted), len(traces), 0)
                chunk = evaluator.add(traces, progress=progress.chunk, saved=saved)
            progress.next(len(traces))
            programs.update(digest(traces))
            # Equal programs may start from different registers, so a number makes the names unique.
            new = [f"{len(names) + place:06d}-{trace.name}" for place, trace in enumerate(traces)]
            if options.write in ("bin", "both"):
                write_predictions(options.output / "predicted", new, chunk.predicted, keep=was_complete)
            if parquet is not None:
                parquet.add(new, chunk.predicted, traces)
            examples.add(new, chunk)
            names += new
    assessment = evaluator.assessment()
    figures = assessment.to_dict()
    if options.page:
        views = [example.view for example in examples.wrong_first()[: options.page]]
        title = f"{len(names)} programs of the toy CPU, simulated by {options.checkpoint}"
        page = options.output / PAGE
        write_simulation_page(page, title, column_names(machine.num_registers), figures, views)
    print_text(precision.text)
    report = {
        "options": as_json(options),
        "precision": precision.precision,
        "programs_digest": programs.hexdigest(),
        "files": names,
    }
    folder.finish({**report, **figures})
    print_assessment(assessment)
    print_details(assessment)
    for example in examples.wrong_first()[: options.show]:
        print_text(f"\nprogram {example.name}, the true trace and the predicted one:")
        print_text(example.difference)
    print_text(f"\n{', '.join(_outputs(options))} are in {options.output}/: predicted traces, all figures, and a page")


def _outputs(options: Simulate) -> list[str]:
    """Returns the names of the files and folders that these options write."""
    traces = {"bin": ["predicted/"], "parquet": ["predicted.parquet"], "none": []}
    page = [PAGE] if options.page else []
    return [REPORT, *page, *traces.get(options.write, ["predicted/", "predicted.parquet"])]


def _check_complete(options: Simulate, chunks: Iterator[Traces]) -> int:
    """Checks a complete simulation and prints that there is nothing to do.

    Raises:
        FileExistsError: the programs' files have changed since, or an output of these options is missing.
    """
    report = json.loads((options.output / REPORT).read_bytes())
    if options.programs:
        programs = hashlib.sha256()
        for traces in chunks:
            programs.update(digest(traces))
        if programs.hexdigest() != report["programs_digest"]:
            paths = ", ".join(map(str, options.programs))
            raise FileExistsError(
                f"{options.output}: holds the simulation of other programs than are in {paths} now; choose another "
                "--output, or remove this one"
            )
    missing = [name for name in _outputs(options) if not (options.output / name).exists()]
    if options.write in ("bin", "both"):
        predicted = options.output / "predicted"
        missing += [f"predicted/{name}" for name in report["files"] if not (predicted / name).is_file()][:1]
    if missing:
        raise FileExistsError(
            f"{options.output}: the simulation is complete, but {missing[0]} is missing; choose another --output, "
            "or remove this one, to simulate again"
        )
    print_text(
        f"{options.output}: complete: all {len(report['files']):,} programs were simulated already, and none again; "
        f"{report['free_running']['programs_right']:,} of them right to the last byte, free running; see {REPORT}"
    )
    return 0


@dataclass(frozen=True)
class _Example:
    name: str
    difference: str
    view: ProgramView


class _Progress:
    """Progress over all chunks."""

    def __init__(self, show: GenerationProgress, total: int) -> None:
        self._show, self._total = show, total
        self._programs = self._bytes = self._chunk_bytes = 0

    def chunk(self, done: int, _: int, new_bytes: int) -> None:
        """Shows the progress of the current chunk."""
        self._chunk_bytes = new_bytes
        self._show(self._programs + done, self._total, self._bytes + new_bytes)

    def next(self, programs: int) -> None:
        """Starts the next chunk; the last one had `programs` programs."""
        self._programs += programs
        self._bytes += self._chunk_bytes
        self._chunk_bytes = 0


class _Examples:
    """The first few wrong programs and the first few right ones."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._wrong: list[_Example] = []
        self._right: list[_Example] = []

    def add(self, names: Sequence[str], chunk: Chunk) -> None:
        for name, truth, predicted, forced in zip(names, chunk.traces, chunk.predicted, chunk.forced, strict=True):
            examples = self._right if predicted.to_bytes() == truth.to_bytes() else self._wrong
            if len(examples) < self._count:
                view = program_view(name, truth, predicted, forced)
                examples.append(_Example(name, format_difference(predicted, truth), view))

    def wrong_first(self) -> list[_Example]:
        return self._wrong + self._right


def _registers_last(words: Sequence[str]) -> list[str]:
    """Moves `--registers` and its numbers to the end, so that it does not parse a file name as one of its numbers."""
    words = list(words)
    if "--registers" not in words:
        return words
    start = words.index("--registers")
    stop = start + 1
    while stop < len(words) and re.fullmatch(r"-?[0-9]+", words[stop]):
        stop += 1
    return words[:start] + words[stop:] + words[start:stop]
