"""`bgpt-fast evaluate`: bits per byte and accuracy on files, mode collapse, or accuracy on CPU states."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich.table import Table

from bgpt_fast.cli.assessment_tables import print_assessment
from bgpt_fast.cli.common import (
    HelpLayout,
    as_json,
    check_output_file,
    check_ranges,
    decimal,
    drawing,
    generation_progress,
    load_model,
    percent,
    plots_folder,
    print_report,
    read_options,
    share,
    table,
    value_of,
)
from bgpt_fast.cli.model_task import check_directions, check_files, check_simulation, machine_of
from bgpt_fast.data import DataError
from bgpt_fast.data.file_index import FileEntry, SkipReport, find_files, read_content
from bgpt_fast.documents import extension_of
from bgpt_fast.generation.decoders.base import device_of
from bgpt_fast.generation.precision import (
    PrecisionChoice,
    ScoringPrecision,
    generation_precision,
    scoring_in,
    scoring_precision,
)
from bgpt_fast.metrics import ByteScores
from bgpt_fast.model import BGPT
from bgpt_fast.report.evaluation_plots import evaluation_plots
from bgpt_fast.tasks.conversion_likelihood import evaluate_pairs
from bgpt_fast.tasks.cpu_states import SMALL_MACHINE, StreamOptions, generate
from bgpt_fast.tasks.cpu_states.assessment import Assessment, assess
from bgpt_fast.tasks.evaluation import FileReport, evaluate_files
from bgpt_fast.tasks.media_check import OUR_REPORTS
from bgpt_fast.tasks.mode_collapse import Diversity, diversity
from bgpt_fast.terminal import print_text

_MOST_ROWS = 20
_MOST_RESAMPLES, _MOST_PROGRAMS = 1_000_000, 10_000_000
_FILES = "on files"
LAYOUT = HelpLayout(
    basic=(
        "data",
        "checkpoint",
        "conversion",
        "generated",
        "plots",
        "stride",
        "programs",
        "machine",
        "output",
        "json",
        "device",
    ),
    groups={
        "file": ("Apply to DATA.", ("patches_per_batch", "stride", "baselines", "resamples", "confidence", "plots")),
        "program": ("Apply without DATA.", ("programs",)),
    },
)


@dataclass(frozen=True)
class Evaluate:
    """Evaluates a model on files: bits per byte (two forms) and accuracy, by extension and position, and baselines.

    With --conversion, evaluates pairs of files: only the target files are scored, given their sources. With
    --generated, tests whether generated files repeat themselves or each other. Without files, measures the accuracy on
    random held-out programs of the CPU-state machine.

    Args:
        data: files and folders.
        checkpoint: a training run's folder, a folder of weights, a .safetensors or .pth file, or a hub id; not needed
            with --generated only.
        conversion: "abc->mid", or "abc&mid" for both directions; files that differ only in their extension are pairs.
        generated: a folder of generated files to test for mode collapse; compared with those files of `data` that have
            the same extensions, or with all of them if there are none.
        patches_per_batch: maximum number of patches in a batch.
        stride: 0 scores the head of a file longer than the context. Otherwise such a file is scored whole, in windows
            that start this many patches after one another: fewer give each byte more context, and take longer.
        baselines: also compress the files with gzip and xz.
        resamples: number of resamples of the bootstrap over files.
        confidence: level of the intervals: the share of the resamples inside them.
        plots: a new or empty folder for plots; None means no plots.
        programs: number of held-out programs.
        seed: seed of the bootstrap and of the programs.
        machine: the machine that the model was trained on; the default is the one that the checkpoint names.
        any_model: use the model even if it was trained for something else.
        output: a JSON file for the figures, with a row for each file; None writes no file.
        json: print JSON instead of tables.
        precision: precision of the linear layers. "auto" measures whether bfloat16 is faster than float32 here, and
            says so.
        device: "auto" uses the GPU if there is one.
    """

    data: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    checkpoint: Path | None = None
    conversion: str = ""
    generated: Path | None = None
    patches_per_batch: int = 8192
    stride: int = 0
    baselines: bool = True
    resamples: int = 1000
    confidence: float = 0.95
    plots: Path | None = None
    programs: int = 200
    seed: int = 1
    machine: StreamOptions = SMALL_MACHINE
    any_model: bool = False
    output: Path | None = None
    json: bool = False
    precision: ScoringPrecision = "auto"
    device: str = "auto"


OPTIONS = Evaluate


def run(words: Sequence[str]) -> int:
    options = read_options(Evaluate, "evaluate", words, _defaults(words), LAYOUT)
    check_ranges(
        options,
        patches_per_batch=(1, None),
        stride=(0, None),
        resamples=(1, _MOST_RESAMPLES),
        programs=(1, _MOST_PROGRAMS),
        seed=(0, None),
    )
    if not 0 < options.confidence < 1:
        raise ValueError(f"--confidence: expected a share between 0 and 1, got {options.confidence}")
    figures: dict[str, Any] = {}
    precision: PrecisionChoice | None = None
    tables: list[Table] = []
    if options.plots is not None and not options.data:
        raise ValueError("--plots: expected files to evaluate, got none; name files or folders")
    if options.conversion and not options.data:
        raise ValueError("--conversion: expected pairs of files to evaluate, got none; name files or folders")
    check_output_file(options.output)
    if options.stride and options.conversion:
        raise ValueError("--stride: expected single files, got --conversion; a pair is never cut")
    scores = options.data and (options.checkpoint is not None or options.generated is None or options.conversion)
    if options.plots is not None and not scores:
        raise ValueError("--plots: expected a --checkpoint with it, got none: of --generated alone there are no plots")
    # First because it is fast, so that its errors are raised before a model runs for hours.
    generated = None if options.generated is None else _generated(options, options.generated)
    if scores:
        reports, precision = _reports(options)
        if options.conversion:
            figures["conversion"] = {name: report.to_dict() for name, report in reports.items()}
        else:
            figures = reports[_FILES].to_dict()
        for name, report in reports.items():
            tables += _file_tables(name, report)
    if generated is not None:
        figures["generated"] = generated
        tables.append(_collapse_table(generated))
    assessment = None
    if not options.data and options.generated is None:
        assessment, precision = _assessment(options)
        figures = assessment.to_dict()
    used = {} if precision is None else {"precision": precision.precision}
    if print_report(options, {"options": as_json(options), **used, **figures}, tables):
        if assessment is not None:
            print_assessment(assessment)
        if precision is not None:
            print_text(precision.text)
    return 0


def _defaults(words: Sequence[str]) -> Evaluate | None:
    """The defaults for a checkpoint: its own machine."""
    checkpoint = value_of(words, "--checkpoint")
    return None if checkpoint is None else Evaluate(checkpoint=Path(checkpoint), machine=machine_of(Path(checkpoint)))


def _assessment(options: Evaluate) -> tuple[Assessment, PrecisionChoice]:
    model = _model(options)
    if not options.any_model:
        check_simulation(model.task, options.checkpoint, options.machine)
    programs = generate(options.programs, seed=options.seed, stream="philox", split="eval", **asdict(options.machine))
    choice = generation_precision(options.precision, model.config, device_of(model), len(programs))
    with generation_progress("free running") as progress:
        return assess(model, programs, precision=choice.precision, progress=progress), choice


def _model(options: Evaluate) -> BGPT:
    if options.checkpoint is None:
        raise ValueError("--checkpoint: expected a model's weights, got none; only --generated alone goes without")
    return load_model(options.checkpoint, options.device)


def _reports(options: Evaluate) -> tuple[dict[str, FileReport], PrecisionChoice]:
    """Returns the report on the files, or on the target files of each direction of a conversion, by its name."""
    model = _model(options)
    if options.conversion and not options.any_model:
        check_directions(model.task, options.checkpoint, options.conversion)
    elif not options.any_model:
        files = find_files([str(path) for path in options.data], SkipReport())
        check_files(model.task, options.checkpoint, (extension_of(file.path) for file in files))
    if options.plots is not None:
        plots_folder(options.plots)
    arguments: dict[str, Any] = {
        "patches_per_batch": options.patches_per_batch,
        "baselines": options.baselines,
        "resamples": options.resamples,
        "confidence": options.confidence,
        "seed": options.seed,
    }
    choice = scoring_precision(options.precision, model.config, device_of(model))
    with generation_progress("scoring") as progress, scoring_in(choice.precision, device_of(model)):
        if options.conversion:
            reports = evaluate_pairs(model, options.data, options.conversion, **arguments, progress=progress)
        else:
            arguments["stride"] = options.stride
            reports = {_FILES: evaluate_files(model, options.data, **arguments, progress=progress)}
    if options.plots is not None:
        for name, report in reports.items():
            folder = options.plots / name.replace("->", "-to-") if options.conversion else options.plots
            with drawing("evaluate", f"the plots in {folder}"):
                evaluation_plots(report.to_dict(), folder)
    return reports, choice


def _generated(options: Evaluate, folder: Path) -> dict[str, Any]:
    skips = SkipReport()
    generated = _file_entries((folder,), skips)
    real = None
    if options.data:
        entries = _file_entries(options.data, skips)
        # Generated files of a conversion are targets, so the sources are not a reference for them.
        kinds = {extension_of(file.path) for file in generated}
        same_kind = [file for file in entries if extension_of(file.path) in kinds]
        real = _diversity(same_kind or entries, None, skips)
    return {
        **_diversity(generated, real, skips).to_dict(),
        "skipped": skips.by_reason,
        "real": None if real is None else real.to_dict(),
    }


def _file_entries(paths: Sequence[Path], skips: SkipReport) -> list[FileEntry]:
    files = find_files([str(path) for path in paths], skips)
    entries = [file for file in files if os.fsdecode(file.relative) not in OUR_REPORTS]
    if not entries:
        raise DataError(f"{', '.join(map(str, paths))}: expected files with something in them, got none")
    return entries


def _diversity(files: Sequence[FileEntry], reference: Diversity | None, skips: SkipReport) -> Diversity:
    contents = (read_content(file, skips) for file in files)
    return diversity((content for content in contents if content is not None), reference)


def _file_tables(of: str, report: FileReport) -> list[Table]:
    figures = report.to_dict()
    intervals = figures["intervals"]
    title = of if of == _FILES else f"{of}: target files, after their sources"

    def line(name: str, key: str, text: str) -> list[str]:
        interval = intervals.get(key)
        if interval is None:
            return [name, text, ""]
        text_of = percent if key == "accuracy" else decimal
        return [name, text, f"{text_of(interval[0])} … {text_of(interval[1])}"]

    total, ends, decoders = report.total, report.end_of_file, report.decoders
    rows = [
        line("bits per byte: all bits over real bytes", "bits_per_byte", decimal(figures["bits_per_byte"])),
        line("bits per position: as the released loss", "bits_per_position", decimal(figures["bits_per_position"])),
        line("real bytes right", "accuracy", percent(figures["accuracy"])),
        line("", "", f"{total.right_bytes:,} of {total.bytes:,}"),
        line("positions right, padding and end too", "", percent(figures["accuracy_positions"])),
        line("", "", f"{total.right_positions:,} of {total.positions:,}"),
        line("end-of-file patches' positions right", "", percent(figures["end_of_file"]["accuracy_positions"])),
        line("", "", f"{ends.right_positions:,} of {ends.positions:,}"),
        *[
            line(f"{name} bits per byte", "", decimal(value))
            for name, value in figures["baselines_bits_per_byte"].items()
        ],
        line("files", "", f"{figures['files']:,}"),
        line("files cut to the context", "", f"{figures['cut_to_fit']:,}"),
        line("bytes cut off", "", f"{figures['cut_bytes']:,}"),
        *[line(f"skipped: {reason}", "", f"{count:,}") for reason, count in figures["skipped"].items()],
        line("patches a second", "", f"{figures['patches_per_second']:,.0f}"),
    ]
    tables = [table(title, ["", "value", "interval"], rows)]
    rows = [
        ["data patches right to the last position", share(decoders.right, decoders.patches)],
        ["wrong from the first byte: patch level", share(decoders.patch_level, decoders.patches)],
        ["wrong after a right first byte: byte level", share(decoders.byte_level, decoders.patches)],
        ["bits per byte of first bytes", decimal(figures["decoders"]["first_byte"]["bits_per_byte"])],
        ["bits per byte of later bytes", decimal(figures["decoders"]["later_bytes"]["bits_per_byte"])],
    ]
    tables.append(table("errors by decoder", ["", "value"], rows))
    columns = ["", "bytes", "bits per byte", "bits per position", "bytes right"]
    tables.append(table("by extension", columns, _score_rows(figures["by_extension"].items())))
    tables.append(table("by data patch of the file", columns, _score_rows(_doubling(report.by_patch))))
    by_byte = [(f"byte {place}", row) for place, row in enumerate(figures["by_byte_position"], 1)]
    tables.append(table("by byte of the patch", columns, _score_rows(by_byte)))
    worst = sorted(figures["by_file"], key=lambda row: -(row["bits_per_byte"] or 0))[:5]
    tables.append(table("the hardest files", columns, _score_rows([(row["path"], row) for row in worst])))
    return tables


def _doubling(by_patch: Sequence[ByteScores]) -> list[tuple[str, dict[str, Any]]]:
    """Returns the scores of the patches 1, 2, 3 and 4, 5 to 8, and so on."""
    rows, first, last = [], 1, 1
    while first <= len(by_patch):
        last = min(last, len(by_patch))
        total = ByteScores.of(np.sum([scores.row for scores in by_patch[first - 1 : last]], axis=0))
        rows.append((f"patch {first}" if first == last else f"patches {first}–{last}", total.figures()))
        first, last = last + 1, 2 * last
    return rows


def _score_rows(named: Any) -> list[list[str]]:
    items = list(named)
    rows = [
        [
            name or "no extension",
            f"{row['bytes']:,}",
            decimal(row["bits_per_byte"]),
            decimal(row["bits_per_position"]),
            percent(row["accuracy"]),
        ]
        for name, row in items[:_MOST_ROWS]
    ]
    left_out = len(items) - len(rows)
    return [*rows, [f"and {left_out} more: --output", "", "", "", ""]] if left_out else rows


def _collapse_table(figures: dict[str, Any]) -> Table:
    real = figures["real"]
    other = {"skipped", "real", "signs_of_collapse"}
    rows = [
        [name.replace("_", " "), f"{value:,.6g}", "" if real is None else f"{real[name]:,.6g}"]
        for name, value in figures.items()
        if name not in other
    ]
    signs = figures["signs_of_collapse"]
    rows += [["sign of mode collapse: " + sign, "", ""] for sign in signs] or [["no sign of mode collapse", "", ""]]
    return table("generated files", ["", "generated", "real" if real is not None else ""], rows)
