"""ABC to MIDI and back: one model learns both ways from pairs that abc2midi made, and is held against the true files.

By default single bars of the Irish tunes that music21 brings (excerpts.py), with a model of CPU size; --full takes
whole tunes and the paper's model. The results on held-out titles go to abc_midi.json beside this script. The exit code
is 1 where the model, given the source, pays more for the target than the best compressor that has seen the training
pairs, or has fewer notes right than the training pair whose source begins most alike.
"""

from __future__ import annotations

import argparse
import bisect
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from excerpts import write_excerpts

from bgpt_fast import BGPT, BGPTConfig
from bgpt_fast.data import PairSource
from bgpt_fast.environment import describe_environment
from bgpt_fast.files import write_json
from bgpt_fast.generation import Generator, Prompt
from bgpt_fast.tasks.baselines import compression_scores
from bgpt_fast.tasks.conversion import Conversion, ConversionReport, evaluate_conversion
from bgpt_fast.tasks.conversion_likelihood import evaluate_pairs
from bgpt_fast.tasks.music import irish_collections, make_pairs
from bgpt_fast.training import TrainConfig, Trainer

HERE = Path(__file__).resolve().parent
DIRECTIONS = (("abc", "mid"), ("mid", "abc"))
PUBLISHED = {"abc->mid": 0.0011}
"""Bits per byte on IrishMAN's whole tunes, of the published model of 110 M parameters (arXiv 2402.19155)."""
NOTES = (4, 8)
"""Fewest and most notes of a bar."""
SMALL = BGPTConfig(
    patch_size=4,
    patch_length=64,
    hidden_size=96,
    patch_num_layers=4,
    byte_num_layers=1,
    num_heads=4,
    byte_num_heads=8,
    position_init="sinusoidal",
    position_init_std=0.3,
    byte_init="numeric",
    byte_init_std=0.05,
)


@dataclass(frozen=True)
class Size:
    """What a run is made of.

    Args:
        model: sizes.
        training: how long, how fast.
        patches_per_batch: of training.
        excerpts: whether single bars take the place of whole tunes.
        test_share: share of the titles that are held out.
    """

    model: BGPTConfig
    training: TrainConfig
    patches_per_batch: int
    excerpts: bool
    test_share: float


def size_of(full: bool, minutes: float) -> Size:
    """Of CPU size, or with the paper's model for a GPU."""
    fields: dict[str, Any] = {"max_minutes": minutes, "steps": 0, "schedule_by": "time", "tensorboard": False}
    if full:
        training = TrainConfig(**fields, learning_rate=3e-4, warmup_share=0.1, precision="bf16")
        return Size(BGPTConfig(), training, 8192, excerpts=False, test_share=0.1)
    training = TrainConfig(
        **fields, learning_rate=1e-2, optimizer="muon", schedule="wsd", decay_share=0.7, device="cpu", threads=1
    )
    return Size(SMALL, training, 512, excerpts=True, test_share=0.05)


def data(size: Size, collections: Sequence[str | os.PathLike[str]], folder: Path) -> dict[str, Any]:
    """Makes FOLDER/pairs/train and FOLDER/pairs/test of ABC collections, or of the Irish tunes; returns the figures.

    Raises:
        ValueError: the folder has those of other collections, which would be mixed with these.
    """
    inputs = [os.path.abspath(path) for path in collections] or irish_collections()
    told = folder / "collections.json"
    if told.exists() and json.loads(told.read_bytes()) != inputs:
        raise ValueError(
            f"{folder}: expected a run with the same collections, got one with others; choose another --runs"
        )
    write_json(told, inputs)
    if size.excerpts:
        bars = folder / "bars.abc"
        folder.mkdir(parents=True, exist_ok=True)
        write_excerpts(inputs, bars, fewest=NOTES[0], most=NOTES[1])
        inputs = [os.fspath(bars)]
    report = make_pairs(inputs, folder / "pairs", test_share=size.test_share).to_dict()
    del report["first_skipped"]
    return report


def convert(model: BGPT, pairs: Sequence[tuple[Path, Path]]) -> list[Conversion]:
    """Converts the first file of each pair, greedily; a file that the model does not end is an empty one."""
    prompts = [Prompt(there.suffix[1:], b"", None, (here.suffix[1:], here.read_bytes())) for here, there in pairs]
    made = Generator(model).generate(prompts)
    return [
        Conversion(there.name, one.data if one.finished else b"", there.read_bytes())
        for (_, there), one in zip(pairs, made, strict=True)
    ]


def beginning_alike(pairs: Sequence[tuple[Path, Path]], training: Sequence[tuple[Path, Path]]) -> list[Conversion]:
    """The baseline: each source becomes the target of the training source with which it has the longest begin."""
    known = sorted((here.read_bytes(), there) for here, there in training)
    sources = [content for content, _ in known]
    made = []
    for here, there in pairs:
        content = here.read_bytes()
        at = bisect.bisect(sources, content)
        # Of all that are sorted, one of both neighbours has the longest begin in common.
        nearest = max(known[max(at - 1, 0) : at + 1], key=lambda one: _alike(one[0], content))
        made.append(Conversion(there.name, nearest[1].read_bytes(), there.read_bytes()))
    return made


def _alike(one: bytes, other: bytes) -> int:
    same = takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return sum(1 for _ in same)


def compressors(pairs: Sequence[tuple[Path, Path]], training: Sequence[tuple[Path, Path]]) -> dict[str, float]:
    """Bits per byte of the targets that general compressors need, having seen the training pairs and the sources."""
    before = [path.read_bytes() for pair in training for path in pair]
    sources = [here.read_bytes() for here, _ in pairs]
    both = [path.read_bytes() for pair in pairs for path in pair]
    targets = sum(there.stat().st_size for _, there in pairs)
    bits = []
    for contents in (both, sources):
        scores = compression_scores(contents, before)
        bits.append({one.compressor: (one.after_training or 0.0) * one.num_bytes for one in scores})
    return {name: (bits[0][name] - bits[1][name]) / targets for name in bits[0]}


def figures(report: ConversionReport) -> dict[str, Any]:
    """A report without its rows by file."""
    return {name: value for name, value in report.to_dict().items() if name != "by_file"}


def assess(model: BGPT, folder: Path, held_out: int) -> dict[str, Any]:
    """Figures of both directions on the test pairs; conversions and bits are of the same ones."""
    likelihood = evaluate_pairs(model, folder / "test", "abc&mid", baselines=False)
    found: dict[str, Any] = {}
    for here, there in DIRECTIONS:
        name = f"{here}->{there}"
        report = likelihood[name]
        targets = [Path(file.path) for file in report.files]
        pairs = [(path.with_suffix(f".{here}"), path) for path in targets]
        training = [(path.with_suffix(f".{here}"), path) for path in sorted((folder / "train").glob(f"*.{there}"))]
        some = pairs[:: max(1, len(pairs) // held_out)][:held_out]
        converted = evaluate_conversion(convert(model, some))
        alike = evaluate_conversion(beginning_alike(some, training))
        compressed = compressors(pairs, training)
        notes, baseline = converted.notes, alike.notes
        assert notes is not None
        assert baseline is not None
        holds = (report.total.per_byte < min(compressed.values())) and (notes.f1 or 0.0) > (baseline.f1 or 0.0)
        print(f"{name}: {'as claimed' if holds else 'NOT as claimed'}")
        print(f"  {report.total.per_byte:.4f} bits per byte ({report.total.per_position:.4f} a position)")
        print("".join(f"  {what}: {value}\n" for what, value in converted.rows()), end="", flush=True)
        found[name] = {
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
            "training_pair_that_begins_alike": figures(alike),
        }
    return found


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="whole tunes and the paper's model, for a GPU")
    parser.add_argument("--minutes", type=float, help="of training; by default 30, and 240 for --full")
    parser.add_argument("--held-out", type=int, default=300, help="test pairs that are converted each way")
    parser.add_argument("--collections", nargs="*", default=[], help="ABC files and folders, such as IrishMAN's")
    parser.add_argument("--runs", type=Path, help="where data and run are kept, and gone on with; by default nowhere")
    parser.add_argument("--output", type=Path, help="the JSON to write; by default beside the script")
    options = parser.parse_args(words)
    name = "full" if options.full else "cpu"
    minutes = options.minutes or (240.0 if options.full else 30.0)
    size = size_of(options.full, minutes)
    torch.manual_seed(size.training.seed)
    model = BGPT(size.model)
    with tempfile.TemporaryDirectory(prefix="music-") as temporary:
        folder = (options.runs or Path(temporary)) / name
        made = data(size, options.collections, folder)
        source = PairSource(folder / "pairs/train", "abc&mid", size.model, size.patches_per_batch, split="all")
        began = time.process_time()
        done = Trainer(model, source, size.training, folder / "run").train()
        core_minutes = (time.process_time() - began) / 60
        found = assess(model, folder / "pairs", options.held_out)
    write_json(
        options.output or HERE / f"abc_midi.{name}.json",
        {
            "command": "python examples/music/abc_midi.py"
            + (" --full" if options.full else "")
            + (f" --minutes {options.minutes:g}" if options.minutes else ""),
            "environment": describe_environment(),
            "data": made,
            "model": size.model.to_dict(),
            "parameters": model.num_parameters(),
            "minutes": minutes,
            "core_minutes": round(core_minutes, 1),
            "steps": done.steps,
            "epochs": done.steps / source.epoch_batches,
            "last_loss": done.loss,
            "directions": found,
        },
    )
    return 0 if all(one["holds"] for one in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
