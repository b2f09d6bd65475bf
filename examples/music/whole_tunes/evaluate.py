"""Scores a model on held-out real tunes: PYTHONPATH=. python …/evaluate.py [--model FOLDER] [--run FOLDER].

Both directions: bits per byte of the target after its source (MIDI's track lengths, which stand before any note, also
apart), and of some files the conversion itself: notes, bytes, whole files right. Writes scores.json.
"""

from __future__ import annotations

import argparse
import math
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE.parent)]
from abc_midi import DIRECTIONS, PUBLISHED, compressors, convert, figures, nearest_prefix  # noqa: E402
from train import RUN  # noqa: E402

from bgpt_fast import BGPT  # noqa: E402
from bgpt_fast.documents import Part, count_patches  # noqa: E402
from bgpt_fast.files import write_json  # noqa: E402
from bgpt_fast.patches import PackedPatches  # noqa: E402
from bgpt_fast.tasks.conversion import evaluate_conversion  # noqa: E402
from bgpt_fast.tasks.conversion_likelihood import evaluate_pairs  # noqa: E402

Paths = tuple[Path, Path]
"""Source and target."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=HERE / "snapshot", help="a folder of save_pretrained")
    parser.add_argument("--run", type=Path, default=RUN, help="the run's folder, which has the real pairs")
    parser.add_argument("--converted", type=int, default=100, help="held-out tunes that are converted each way")
    parser.add_argument("--compressors", action="store_true", help="also those after the training pairs: minutes")
    parser.add_argument("--output", type=Path, help="the scores' file; default: scores.json in the model's folder")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = BGPT.from_pretrained(options.model, dtype=torch.float32)
    scores = all_scores(model, options.run / "real", options.converted, with_compressors=options.compressors)
    write_json(options.output or options.model / "scores.json", scores)
    for name, score in scores.items():
        print(name, {field: value for field, value in score.items() if not isinstance(value, dict)})
        print(
            "  ",
            {side: _shares(score[side]) for side in ("converted", "training_pair_that_begins_alike") if side in score},
        )
    return 0


def all_scores(model: BGPT, real: Path, converted: int, *, with_compressors: bool) -> dict[str, Any]:
    """The figures of both directions on REAL/test."""
    reports = evaluate_pairs(model, real / "test", "abc&mid", baselines=False)
    scores: dict[str, Any] = {}
    for source, target in DIRECTIONS:
        name = f"{source}->{target}"
        report = reports[name]
        pairs = [(Path(file.path).with_suffix(f".{source}"), Path(file.path)) for file in report.files]
        training = [(path.with_suffix(f".{source}"), path) for path in sorted((real / "train").glob(f"*.{target}"))]
        some = pairs[:: max(1, len(pairs) // converted)][:converted] if converted else []
        total = report.total
        scores[name] = {
            "pairs": len(pairs),
            "over_the_context": sum(report.skipped.values()),
            "target_bytes": total.bytes,
            "bits_per_byte": total.per_byte,
            "accuracy": total.accuracy,
            "intervals_95": report.to_dict(files=False)["intervals"],
            "published_bits_per_byte": PUBLISHED.get(name),
        }
        if with_compressors:
            scores[name]["compressors_bits_per_byte"] = compressors(pairs, training)
        if target == "mid":
            bits = sum(track_length_nats(model, pair) for pair in pairs) / math.log(2)
            scores[name]["track_lengths_bits_per_byte"] = bits / total.bytes
            scores[name]["bits_per_byte_without_track_lengths"] = total.per_byte - bits / total.bytes
        if some:
            scores[name]["converted"] = figures(evaluate_conversion(convert(model, some)))
            scores[name]["training_pair_that_begins_alike"] = figures(
                evaluate_conversion(nearest_prefix(some, training))
            )
    return scores


def track_lengths(midi: bytes) -> Iterator[int]:
    """The places of the bytes of a MIDI file that hold the length of a track."""
    place = 0
    while place + 8 <= len(midi):
        name, size = struct.unpack_from(">4sI", midi, place)
        if name == b"MTrk":
            yield from range(place + 4, place + 8)
        place += 8 + size


@torch.no_grad()
def track_length_nats(model: BGPT, pair: Paths) -> float:
    """−log p of a MIDI file's track lengths after its ABC file and the bytes before them."""
    S = model.config.patch_size
    source, target = (path.read_bytes() for path in pair)
    parts = Part(b"abc", source, False), Part(b"mid", target, True)
    first = count_patches(len(source), S, False) + 1
    packed = PackedPatches.from_parts([parts], S, first_target=first)
    nats = model(packed).nats.flatten()
    return float(nats[list(track_lengths(target))].sum())


def _shares(figures: dict[str, Any]) -> dict[str, Any]:
    notes = figures["notes"] or {}
    return {"exact": figures["exact"], "decoding": figures["decoding"], "notes_f1": notes.get("f1")}


if __name__ == "__main__":
    sys.exit(main())
