"""`bgpt-fast simulate`: simulates programs of the toy CPU with a model, and scores it against the true traces."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from bgpt_fast.cli.assessment_tables import print_assessment, print_details
from bgpt_fast.cli.common import (
    GenerationProgress,
    HelpLayout,
    as_json,
    check_ranges,
    generation_progress,
    load_model,
    read_options,
    value_of,
)
from bgpt_fast.cli.model_task import check_simulation, machine_of
from bgpt_fast.cli.outputs import fingerprint
from bgpt_fast.cli.precision import choose_precision, in_plan
from bgpt_fast.cli.simulate_folder import REPORT, UNFINISHED, SimulationFolder, check_same_plan, chunk_path
from bgpt_fast.cli.simulate_results import Results, programs_digest
from bgpt_fast.device import free_memory
from bgpt_fast.generation.generator import MOST_FILES
from bgpt_fast.generation.precision import Precision, PrecisionChoice
from bgpt_fast.model import BGPT
from bgpt_fast.report.simulation_page import write_simulation_page
from bgpt_fast.tasks.cpu_states import SMALL_MACHINE, StreamOptions, Traces, column_names
from bgpt_fast.tasks.cpu_states.assessment import Evaluator
from bgpt_fast.tasks.cpu_states.chunk_journal import ChunkJournal, digest
from bgpt_fast.tasks.cpu_states.machine import state_size
from bgpt_fast.tasks.cpu_states.predictions import predictions_to_parquet, write_predictions
from bgpt_fast.tasks.cpu_states.programs import CHUNK_SIZE, count_programs, random_chunks, read_chunks
from bgpt_fast.terminal import print_text
from bgpt_fast.training.distributed import Ranks

PAGE = "report.html"
_BATCHES_PER_CHUNK = 4  # so that few of a chunk's rounds have empty slots
_OLD_CHUNK_SIZE = 2048  # of runs whose plan has no size
_TIMEOUT_SECONDS = 7 * 86400.0  # ranks that have finished wait for the slowest; torchrun ends those of a failed one
_BIN = ("bin", "both")  # values of --write that give a file for each program
LAYOUT = HelpLayout(basic=("programs", "checkpoint", "random", "machine", "output", "write", "draft", "device"))


@dataclass(frozen=True)
class Simulate:
    """Simulates programs of the toy CPU with a model, and scores the predicted traces against the true ones.

    The prompt is a program's memory and first state; the model generates all further states until it ends the file.
    Writes OUTPUT/predicted/*.bin in the released format (or OUTPUT/predicted.parquet, or both), OUTPUT/report.json with
    all figures, and OUTPUT/report.html, a page that shows them. The same command resumes a stopped simulation, with the
    same results. Memory use does not grow with the number of programs, but for the files' names with --write bin. Under
    torchrun each process simulates its share, and the first one writes the report of all.

    Args:
        programs: assembly (.asm, one instruction per line), .bin files (traces, or machine code only), folders of
            traces, or .parquet files; if empty, random held-out programs.
        checkpoint: a training run's folder, a folder of weights, a .safetensors or .pth file, or a hub id.
        random: number of random held-out programs if there are no PROGRAMS.
        seed: seed of the random programs.
        machine: the machine that the model was trained on; the default is the one that the checkpoint names.
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
    options = read_options(Simulate, "simulate", _registers_last(words), _defaults(words), LAYOUT)
    check_ranges(options, random=(1, None), show=(0, None), page=(0, None), acc=(0, 255))
    if not all(0 <= value <= 255 for value in options.registers):
        raise ValueError(f"--registers: expected values of 0…255, got {options.registers!s:.80}")
    ranks = Ranks(options.device, _TIMEOUT_SECONDS, options.output / UNFINISHED)
    with ranks.watched(()):
        return _run(options, ranks)


def _defaults(words: Sequence[str]) -> Simulate | None:
    """The defaults for a checkpoint: its own machine."""
    checkpoint = value_of(words, "--checkpoint")
    return None if checkpoint is None else Simulate(checkpoint=Path(checkpoint), machine=machine_of(Path(checkpoint)))


def _run(options: Simulate, ranks: Ranks) -> int:
    machine = options.machine
    earlier, chunk_size = ranks.broadcast(_earlier_plan(options, ranks.world_size) if ranks.is_main else None)
    chunks = _chunks(options, chunk_size)
    # The first chunk is read before the model is loaded, so that an invalid program raises its error immediately.
    first = next(chunks, None)
    if first is None:
        raise ValueError("simulate: expected at least one program, got none")
    model = load_model(options.checkpoint, str(ranks.device))
    if not options.any_model:
        check_simulation(model.task, options.checkpoint, machine)
    values = as_json(options)
    plan = {name: values[name] for name in ("programs", "random", "seed", "machine", "acc", "registers")}
    if earlier is None or "chunk_size" in earlier:
        plan["chunk_size"] = chunk_size
    files = min(options.max_batch or MOST_FILES, len(first))
    choice = ranks.broadcast(choose_precision(options.precision, earlier, model, files) if ranks.is_main else None)
    plan |= {"model": fingerprint(model), **in_plan(choice)}
    with contextlib.ExitStack() as stack:
        folder = None
        if ranks.is_main:
            folder = stack.enter_context(contextlib.closing(SimulationFolder(options.output, plan)))
        main_plan, is_complete = ranks.broadcast((plan, folder.complete) if folder else None)
        if folder is None:
            check_same_plan(options.output, plan, main_plan, ranks.rank)
        if is_complete:
            return _check_complete(options, itertools.chain([first], chunks)) if folder else 0
        if folder and folder.resumed:
            print_text(f"{options.output}: resumes where it was stopped")
        results = _simulate(options, model, choice.precision, itertools.chain([first], chunks), ranks)
        others = ranks.all_gather(results)
        if folder:
            for rank, other in enumerate(others):
                if rank != ranks.rank:
                    results.merge(other)
            _finish(options, folder, results, choice, chunk_size)
    return 0


def _earlier_plan(options: Simulate, world_size: int) -> tuple[dict[str, Any] | None, int]:
    """The plan of the simulation that this one resumes, None if it is new; and the size of its chunks."""
    earlier = SimulationFolder.plan_of(options.output)
    if earlier is not None:
        # Its saved chunks may be of another size: of another --max-batch, or of an earlier version.
        return earlier, earlier.get("chunk_size", _OLD_CHUNK_SIZE)
    chunk_size = max(CHUNK_SIZE, _BATCHES_PER_CHUNK * (options.max_batch or 0))
    if world_size > 1:  # a chunk for each rank at least
        chunk_size = min(chunk_size, -(-_count(options) // world_size))
    return None, chunk_size


def _chunks(options: Simulate, chunk_size: int) -> Iterator[Traces]:
    sizes = {} if chunk_size == CHUNK_SIZE else {"chunk_size": chunk_size}
    if options.programs:
        return read_chunks(options.programs, options.machine, acc=options.acc, registers=options.registers, **sizes)
    return random_chunks(options.random, options.machine, seed=options.seed, **sizes)


def _count(options: Simulate) -> int:
    return count_programs(options.programs) if options.programs else options.random


def _simulate(options: Simulate, model: BGPT, precision: str, chunks: Iterator[Traces], ranks: Ranks) -> Results:
    """Simulates this rank's chunks: of W ranks, rank r has the chunks r, r + W, …"""
    machine = options.machine
    evaluator = Evaluator(
        model,
        machine.num_registers,
        **_limits(options, ranks),
        draft=options.draft and ranks.device.type == "cpu",
        batch_invariant=options.batch_invariant,
        precision=precision,
    )
    results = Results(
        state_size(machine.num_registers), max(options.show, options.page), holds_names=options.write in _BIN
    )
    first = 0
    with _progress(ranks) as show:
        progress = _Progress(show, -(-_count(options) // ranks.world_size))
        for index, traces in enumerate(chunks):
            if index % ranks.world_size == ranks.rank:
                with ChunkJournal(chunk_path(options.output, index), traces) as saved:
                    was_complete = saved.complete
                    progress.chunk(len(saved.predicted), len(traces), 0)
                    chunk = evaluator.add(traces, progress=progress.chunk, saved=saved)
                progress.next(len(traces))
                names = _names(first, traces)
                if options.write in _BIN:
                    write_predictions(options.output / "predicted", names, chunk.predicted, keep=was_complete)
                results.add(index, first, names, chunk)
            first += len(traces)
    return results


def _limits(options: Simulate, ranks: Ranks) -> dict[str, int | None]:
    """How many programs a rank simulates at once: on a CPU, a machine's ranks share its memory."""
    if options.max_batch is not None or ranks.world_size == 1 or ranks.device.type != "cpu":
        return {"max_batch": options.max_batch}
    on_this_machine = int(os.environ.get("LOCAL_WORLD_SIZE", ranks.world_size))
    return {"max_batch": MOST_FILES, "max_memory": free_memory(ranks.device) // (2 * on_this_machine)}


def _progress(ranks: Ranks) -> AbstractContextManager[GenerationProgress]:
    """The first rank shows its own progress, which is about that of all."""
    if not ranks.is_main:
        return contextlib.nullcontext(lambda done, total, new_bytes: None)
    return generation_progress("simulating" if ranks.world_size == 1 else f"simulating, 1 of {ranks.world_size} ranks")


def _names(first: int, traces: Traces) -> list[str]:
    # Equal programs may start from different registers, so a number makes the names unique.
    return [f"{number:06d}-{trace.name}" for number, trace in enumerate(traces, first)]


def _finish(
    options: Simulate, folder: SimulationFolder, results: Results, precision: PrecisionChoice, chunk_size: int
) -> None:
    """Writes table, page and report of the complete results, and prints them."""
    machine = options.machine
    if options.write in ("parquet", "both"):
        path, first = options.output / "predicted.parquet", 0
        with predictions_to_parquet(path, machine.num_registers, machine.memory_size) as table:
            for index, traces in enumerate(_chunks(options, chunk_size)):
                with ChunkJournal(folder.chunk(index), traces) as saved:
                    table.add(_names(first, traces), [saved.predicted[i] for i in range(len(traces))], traces)
                first += len(traces)
    assessment = results.scores.assessment()
    figures = assessment.to_dict()
    if options.page:
        views = [example.view for example in results.wrong_first[: options.page]]
        title = f"{assessment.free_running.programs} programs of the toy CPU, simulated by {options.checkpoint}"
        page = options.output / PAGE
        write_simulation_page(page, title, column_names(machine.num_registers), figures, views)
    print_text(precision.text)
    report = {
        "options": as_json(options),
        "precision": precision.precision,
        "programs_digest": results.programs_digest,
        "files": results.names,
    }
    folder.finish({**report, **figures})
    print_assessment(assessment)
    print_details(assessment)
    for example in results.wrong_first[: options.show]:
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
    if options.programs and programs_digest(map(digest, chunks)) != report["programs_digest"]:
        paths = ", ".join(map(str, options.programs))
        raise FileExistsError(
            f"{options.output}: holds the simulation of other programs than are in {paths} now; choose another "
            "--output, or remove this one"
        )
    missing = [name for name in _outputs(options) if not (options.output / name).exists()]
    if options.write in _BIN:
        predicted = options.output / "predicted"
        missing += [f"predicted/{name}" for name in report["files"] if not (predicted / name).is_file()][:1]
    if missing:
        raise FileExistsError(
            f"{options.output}: the simulation is complete, but {missing[0]} is missing; choose another --output, "
            "or remove this one, to simulate again"
        )
    scores = report["free_running"]
    print_text(
        f"{options.output}: complete: all {scores['programs']:,} programs were simulated already, and none again; "
        f"{scores['programs_right']:,} of them right to the last byte, free running; see {REPORT}"
    )
    return 0


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
