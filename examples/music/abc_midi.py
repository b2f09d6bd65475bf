"""ABC to MIDI and back: one model learns both directions from pairs by abc2midi, and is scored on held-out pairs.

The default is single bars of the Irish tunes of music21 (excerpts.py) and a model of CPU size; --full uses complete
tunes and the paper's model. The results on held-out titles go to abc_midi.cpu.json beside this script. The exit
code is 1 if the model needs more bits for a target file than the best compressor primed with the training pairs, or
has fewer notes right than the target of the training source with the longest common prefix.
"""

from __future__ import annotations

import bisect
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from excerpts import write_excerpts

sys.path.append(str(Path(__file__).resolve().parents[1]))
import training_runs as runs

from bgpt_fast import BGPT, BGPTConfig
from bgpt_fast.data import PairSource
from bgpt_fast.files import write_json
from bgpt_fast.generation import Generator, Prompt
from bgpt_fast.tasks.baselines import compression_scores
from bgpt_fast.tasks.conversion import Conversion, ConversionReport, evaluate_conversion
from bgpt_fast.tasks.conversion_likelihood import evaluate_pairs
from bgpt_fast.tasks.music import irish_collections, make_pairs
from bgpt_fast.training import TrainConfig, Trainer

DIRECTIONS = (("abc", "mid"), ("mid", "abc"))
PUBLISHED = {"abc->mid": 0.0011}
"""Bits per byte on IrishMAN's complete tunes, of the published model of 110 M parameters (arXiv 2402.19155)."""
NOTES = (4, 8)
"""Minimum and maximum number of notes in a bar."""
NUMERIC = {"byte_init": "numeric", "byte_init_std": 0.05, "position_init": "sinusoidal"}
SMALL = runs.cpu_model(64, 96, layers=4, heads=4, byte_heads=8, patch_size=4, **NUMERIC)


@dataclass(frozen=True)
class Size:
    """Model, training and data of a run.

    Args:
        model: sizes.
        training: see `TrainConfig`.
        patches_per_batch: most patches of a training batch.
        excerpts: learn single bars instead of complete tunes.
        test_share: share of the titles that are held out.
    """

    model: BGPTConfig
    training: TrainConfig
    patches_per_batch: int
    excerpts: bool
    test_share: float


def size_of_run(full: bool, minutes: float) -> Size:
    """Returns the run of CPU size, or that of the paper's model for a GPU."""
    if full:
        training = runs.gpu_training(**runs.limited_to(minutes), warmup_share=0.1)
        return Size(runs.PAPER, training, 8192, excerpts=False, test_share=0.1)
    return Size(
        SMALL, runs.cpu_training(**runs.limited_to(minutes), decay_share=0.7), 512, excerpts=True, test_share=0.05
    )


def data(size: Size, collections: Sequence[str | os.PathLike[str]], folder: Path) -> dict[str, Any]:
    """Makes FOLDER/pairs/train and FOLDER/pairs/test from ABC collections, or from the Irish tunes; returns figures.

    Raises:
        ValueError: the folder holds pairs of other collections, which would be mixed with these.
    """
    inputs = [os.path.abspath(path) for path in collections] or irish_collections()
    record = folder / "collections.json"
    if record.exists() and json.loads(record.read_bytes()) != inputs:
        raise ValueError(
            f"{folder}: expected a run with the same collections, got one with others; choose another --runs"
        )
    write_json(record, inputs)
    if size.excerpts:
        bars = folder / "bars.abc"
        folder.mkdir(parents=True, exist_ok=True)
        write_excerpts(inputs, bars, fewest=NOTES[0], most=NOTES[1])
        inputs = [os.fspath(bars)]
    report = make_pairs(inputs, folder / "pairs", test_share=size.test_share).to_dict()
    del report["first_skipped"]
    return report


def convert(model: BGPT, pairs: Sequence[tuple[Path, Path]]) -> list[Conversion]:
    """Converts the source file of each pair, greedily; a file that the model does not end counts as empty."""
    prompts = [
        Prompt(target.suffix[1:], b"", None, (source.suffix[1:], source.read_bytes())) for source, target in pairs
    ]
    generations = Generator(model).generate(prompts)
    return [
        Conversion(target.name, generation.data if generation.finished else b"", target.read_bytes())
        for (_, target), generation in zip(pairs, generations, strict=True)
    ]


def nearest_prefix(pairs: Sequence[tuple[Path, Path]], training: Sequence[tuple[Path, Path]]) -> list[Conversion]:
    """The baseline: each prediction is the target of the training source with the longest common prefix."""
    examples = sorted((source.read_bytes(), target) for source, target in training)
    sources = [content for content, _ in examples]
    conversions = []
    for source, target in pairs:
        content = source.read_bytes()
        place = bisect.bisect(sources, content)
        # In sorted order, one of the two neighbours shares the longest prefix.
        neighbours = examples[max(place - 1, 0) : place + 1]
        _, nearest = max(neighbours, key=lambda example: _shared_prefix(example[0], content))
        conversions.append(Conversion(target.name, nearest.read_bytes(), target.read_bytes()))
    return conversions


def _shared_prefix(first: bytes, second: bytes) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def compressors(pairs: Sequence[tuple[Path, Path]], training: Sequence[tuple[Path, Path]]) -> dict[str, float]:
    """Bits per byte of the targets under general-purpose compressors primed with the training pairs and the sources."""
    training_files = [path.read_bytes() for pair in training for path in pair]
    sources = [source.read_bytes() for source, _ in pairs]
    both = [path.read_bytes() for pair in pairs for path in pair]
    target_bytes = sum(target.stat().st_size for _, target in pairs)
    bits = []
    for contents in (both, sources):
        scores = compression_scores(contents, training_files)
        bits.append({score.compressor: (score.after_training or 0.0) * score.num_bytes for score in scores})
    return {name: (bits[0][name] - bits[1][name]) / target_bytes for name in bits[0]}


def figures(report: ConversionReport) -> dict[str, Any]:
    """Returns a report without its rows by file, JSON-ready."""
    return {name: value for name, value in report.to_dict().items() if name != "by_file"}


def assess(model: BGPT, folder: Path, held_out: int) -> dict[str, Any]:
    """Returns the figures of both directions; bits per byte on all test pairs, conversions of some of them."""
    likelihood = evaluate_pairs(model, folder / "test", "abc&mid", baselines=False)
    results: dict[str, Any] = {}
    for source, target in DIRECTIONS:
        name = f"{source}->{target}"
        report = likelihood[name]
        targets = [Path(file.path) for file in report.files]
        pairs = [(path.with_suffix(f".{source}"), path) for path in targets]
        training = [(path.with_suffix(f".{source}"), path) for path in sorted((folder / "train").glob(f"*.{target}"))]
        some = pairs[:: max(1, len(pairs) // held_out)][:held_out]
        converted = evaluate_conversion(convert(model, some))
        nearest = evaluate_conversion(nearest_prefix(some, training))
        compressed = compressors(pairs, training)
        notes, baseline = converted.notes, nearest.notes
        assert notes is not None
        assert baseline is not None
        holds = (report.total.per_byte < min(compressed.values())) and (notes.f1 or 0.0) > (baseline.f1 or 0.0)
        print(f"{name}: {'as claimed' if holds else 'NOT as claimed'}")
        print(f"  {report.total.per_byte:.4f} bits per byte ({report.total.per_position:.4f} a position)")
        print("".join(f"  {what}: {value}\n" for what, value in converted.rows()), end="", flush=True)
        results[name] = {
            "holds": holds,
            "pairs": len(pairs),
            "bits_per_byte": report.total.per_byte,
            "bits_per_position": report.total.per_position,
            "intervals_95": report.to_dict(files=False)["intervals"],
            "accuracy": report.total.accuracy,
            "decoders": report.decoders.to_dict(),
            "compressors_bits_per_byte": compressed,
            "published_bits_per_byte": PUBLISHED.get(name),
            "converted": figures(converted),
            "training_pair_that_begins_alike": figures(nearest),
        }
    return results


def main(words: Sequence[str] | None = None) -> int:
    parser = runs.argument_parser(__doc__, full="complete tunes and the paper's model, for a GPU")
    parser.add_argument("--minutes", type=float, help="of training; by default 30, and 240 for --full")
    parser.add_argument("--held-out", type=int, default=300, help="test pairs that are converted each way")
    parser.add_argument("--collections", nargs="*", default=[], help="ABC files and folders, such as IrishMAN's")
    options = parser.parse_args(words)
    minutes = options.minutes or (240.0 if options.full else 30.0)
    size = size_of_run(options.full, minutes)
    torch.manual_seed(size.training.seed)
    model = BGPT(size.model)
    with runs.runs_folder(options) as folder:
        data_figures = data(size, options.collections, folder)
        source = PairSource(folder / "pairs/train", "abc&mid", size.model, size.patches_per_batch, split="all")
        start = time.process_time()
        training = Trainer(model, source, size.training, folder / "run").train()
        core_minutes = (time.process_time() - start) / 60
        directions = assess(model, folder / "pairs", options.held_out)
    runs.write_results(
        __file__,
        parser,
        options,
        {
            "data": data_figures,
            "model": size.model.to_dict(),
            "parameters": model.num_parameters(),
            "minutes": minutes,
            "core_minutes": round(core_minutes, 1),
            "steps": training.steps,
            "epochs": training.steps / source.epoch_batches,
            "last_loss": training.loss,
            "directions": directions,
        },
    )
    return 0 if all(figures["holds"] for figures in directions.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
