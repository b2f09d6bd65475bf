"""Pre-train on text, images, audio or all of them; measure each on each; and fine-tune each to classify each.

pre-training: one model a modality, and one on all, with about as many patches of each as the single ones had. Bits per
byte of each on held-out files of each modality, beside compressors.
classification: from each pre-trained model, and from scratch, to topics of text, digits in images, languages of audio
and languages of the same clips as spectrogram images, beside a small CNN and classifiers that count bytes.
A model that is pre-trained once serves all of it. The data is what packages bring (media_data.py).
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from media_data import FULL, MODALITIES, Labelled, Media, MissingDataError, Sizes, prepare

from bgpt_fast import BGPT, BGPTConfig
from bgpt_fast.classifier import BGPTForClassification
from bgpt_fast.data import FileSource, LabelledSource, MixedSource, Source
from bgpt_fast.environment import describe_environment
from bgpt_fast.files import write_json
from bgpt_fast.tasks.baselines import classify_by_bytes, compression_scores
from bgpt_fast.tasks.classification import ClassificationReport, evaluate
from bgpt_fast.tasks.cnn_baseline import classify_by_cnn
from bgpt_fast.tasks.evaluation import evaluate_files
from bgpt_fast.training import TrainConfig, Trainer

MIXED = "mixed"
SCRATCH = "none"
SPECTROGRAM_FROM = (SCRATCH, "image", "audio")
"""What the paper's spectrogram test starts from."""


@dataclass(frozen=True)
class Settings:
    """How large models are and how long they learn.

    Args:
        sizes: of the data.
        model: of all models.
        patches_per_batch: of pre-training and fine-tuning.
        pre_training: of a single modality; the mixture takes as many steps for each of its own.
        fine_tuning: of a classifier, whatever it starts from; `epochs` sets its steps.
        epochs: of text, image, audio and spectrogram.
        cnn_steps: of the CNN beside it.
    """

    sizes: Sizes
    model: BGPTConfig
    patches_per_batch: int
    pre_training: TrainConfig
    fine_tuning: TrainConfig
    epochs: dict[str, float]
    cnn_steps: int = 400


def small() -> Settings:
    """Of CPU size: models of 0.9 M parameters, on one thread."""
    fields: dict[str, Any] = {"device": "cpu", "threads": 1, "tensorboard": False}
    return Settings(
        sizes=Sizes(),
        model=BGPTConfig(
            patch_length=130,
            hidden_size=96,
            patch_num_layers=3,
            byte_num_layers=1,
            num_heads=3,
            byte_num_heads=6,
            position_init_std=0.1,
        ),
        patches_per_batch=520,
        pre_training=TrainConfig(
            **fields,
            steps=260,
            learning_rate=3e-3,
            optimizer="muon",
            muon_learning_rate=0.02,
            schedule="wsd",
            decay_share=0.5,
            targets_per_step=160,
            save_every=50,
            keep_last=1,
        ),
        fine_tuning=TrainConfig(
            **fields, learning_rate=2e-3, optimizer="muon", muon_learning_rate=0.01, save_every=100, keep_last=1
        ),
        epochs={"text": 6, "image": 5, "audio": 2, "spectrogram": 4},
    )


def full() -> Settings:
    """The paper's model on standard files of the paper's sizes, for a GPU in bfloat16; not run yet."""
    fields: dict[str, Any] = {"precision": "bf16", "tensorboard": False}
    return Settings(
        sizes=FULL,
        model=BGPTConfig(),
        patches_per_batch=16_384,
        pre_training=TrainConfig(**fields, steps=10_000, learning_rate=1e-4, warmup_share=0.1),
        fine_tuning=TrainConfig(**fields, learning_rate=1e-5, warmup_share=0.1),
        epochs=dict.fromkeys(("text", "image", "audio", "spectrogram"), 32),
    )


def pre_train(name: str, media: Media, settings: Settings, folder: Path) -> tuple[BGPT, dict[str, Any]]:
    """A model that has learned to predict the bytes of a modality, or of all; and how it went."""
    torch.manual_seed(0)
    model = BGPT(settings.model)
    names = list(media.pre_training) if name == MIXED else [name]
    sources: list[Source] = [
        FileSource([media.pre_training[one]], settings.model, settings.patches_per_batch, split="all") for one in names
    ]
    source = sources[0] if len(sources) == 1 else MixedSource(sources, [1.0] * len(sources))
    training = dataclasses.replace(settings.pre_training, steps=settings.pre_training.steps * len(sources))
    done = Trainer(model, source, training, folder).train()
    return model, {"steps": done.steps, "seconds": round(done.seconds, 1)}


def bits(model: BGPT, media: Media) -> dict[str, Any]:
    """Bits per byte of held-out files of each modality."""
    found = {}
    for modality, paths in media.scored.items():
        report = evaluate_files(model, paths, baselines=False)
        found[modality] = {
            "bits_per_byte": report.total.per_byte,
            "interval_95": list(report.intervals["bits_per_byte"] or ()),
            "bits_per_position": report.total.per_position,
            "accuracy": report.total.accuracy,
        }
    return found


def fine_tune(
    model: BGPT | None, task: str, labelled: Labelled, settings: Settings, folder: Path
) -> tuple[ClassificationReport, dict[str, Any]]:
    """A classifier of a task that starts from a pre-trained model, or from random weights: how right it is."""
    torch.manual_seed(0)
    if model is None:
        classifier = BGPTForClassification(settings.model, labelled.labels)
    else:
        classifier = BGPTForClassification.from_generative(model, labelled.labels)
    room, config = settings.patches_per_batch, settings.model
    source = LabelledSource(labelled.train, config, room, labels=labelled.labels, split="all")
    steps = max(1, round(source.epoch_batches * settings.epochs[task]))
    done = Trainer(classifier, source, dataclasses.replace(settings.fine_tuning, steps=steps), folder).train()
    test = LabelledSource(labelled.test, config, room, labels=labelled.labels, split="eval", eval_share=1.0)
    report = evaluate(classifier, test.one_pass())
    return report, {"steps": done.steps, "seconds": round(done.seconds, 1)}


def compressors(media: Media, modality: str) -> list[dict[str, Any]]:
    """Bits per byte of the same held-out files under gzip, xz and zstd."""
    training = [Path(path) for path in sorted(media.pre_training[modality].iterdir())]
    scores = compression_scores(_contents(media.scored[modality]), (path.read_bytes() for path in training))
    return [score.to_dict() for score in scores]


def classified_by_others(labelled: Labelled, cnn_steps: int) -> dict[str, Any]:
    """A small CNN, gradient boosting and nearest centroids of byte counts, on the same documents."""
    train, test = ([*zip(_labels(paths), _contents(paths), strict=True)] for paths in (labelled.train, labelled.test))
    reports = {
        "cnn": classify_by_cnn(train, test, steps=cnn_steps),
        "gradient-boosting": classify_by_bytes(train, test, "gradient-boosting"),
        "nearest-centroid": classify_by_bytes(train, test, "nearest-centroid"),
    }
    largest = Counter(label for label, _ in test).most_common(1)[0][1]
    return {"largest_class": largest / len(test), **{name: report.to_dict() for name, report in reports.items()}}


def run(modalities: tuple[str, ...], settings: Settings, folder: Path) -> dict[str, Any]:
    """Everything, in `folder`, where it goes on if it was stopped.

    Raises:
        MissingDataError: names the package that brings what is missing.
        ValueError: the folder holds a run with other settings.
    """
    described = as_json({"modalities": modalities, **dataclasses.asdict(settings)})
    if kept(folder / "settings.json", lambda: described) != described:
        raise ValueError(f"{folder}: expected a run with the same settings, got one with others; choose another --runs")
    media = prepare(modalities, settings.sizes, folder / "media")
    results = folder / "results"
    pre_trained: dict[str, Any] = {}
    matrix: dict[str, dict[str, Any]] = {}
    for name in (SCRATCH, *modalities, *([MIXED] if len(modalities) > 1 else [])):
        stage = _Stage(name, media, settings, folder)
        if name != SCRATCH:
            pre_trained[name] = kept(results / f"{name}.json", stage.measured)
            _say(name, ((key, f"{found['bits_per_byte']:.4f}") for key, found in pre_trained[name]["held_out"].items()))
        matrix[name] = {
            task: kept(results / f"{task}-from-{name}.json", functools.partial(stage.fine_tuned, task))
            for task in media.tasks
            if task != "spectrogram" or name in SPECTROGRAM_FROM
        }
        _say(name, ((task, f"{found['accuracy']:.2%}") for task, found in matrix[name].items()))
    others = {}
    for task, labelled in media.tasks.items():
        classify = functools.partial(classified_by_others, labelled, settings.cnn_steps)
        others[task] = kept(results / f"{task}-by-others.json", classify)
    result = {
        "settings": described,
        "data": media.described,
        "documents": {
            task: {"classes": list(one.labels), "train": len(one.train), "test": len(one.test)}
            for task, one in media.tasks.items()
        },
        "pre_training": pre_trained,
        "compressors": {
            modality: kept(results / f"{modality}-compressed.json", functools.partial(compressors, media, modality))
            for modality in modalities
        },
        "classification": matrix,
        "classified_by_others": others,
    }
    return {"claims": claims(result), **result}


class _Stage:
    """What starts from one pre-trained model, or from scratch; the model is there once it is asked for."""

    def __init__(self, name: str, media: Media, settings: Settings, folder: Path) -> None:
        self.name, self.media, self.settings, self.folder = name, media, settings, folder

    @functools.cached_property
    def _pre_trained(self) -> tuple[BGPT, dict[str, Any]]:
        return pre_train(self.name, self.media, self.settings, self.folder / "pre_training" / self.name)

    def measured(self) -> dict[str, Any]:
        """The model's bits per byte."""
        model, how = self._pre_trained
        return {**how, "parameters": model.num_parameters(), "held_out": bits(model, self.media)}

    def fine_tuned(self, task: str) -> dict[str, Any]:
        """How right a classifier is."""
        model = None if self.name == SCRATCH else self._pre_trained[0]
        folder = self.folder / "fine_tuning" / f"{task}-from-{self.name}"
        report, how = fine_tune(model, task, self.media.tasks[task], self.settings, folder)
        return {**how, **report.to_dict()}


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """What stands in a JSON file, or, where there is none, what is made and then stands there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, make())
    return json.loads(path.read_text())


def as_json(value: Any) -> Any:
    """A value as it comes back from JSON."""
    return json.loads(json.dumps(value))


def claims(result: dict[str, Any]) -> dict[str, bool]:
    """What this recipe claims, and whether it holds; what it measures beyond that is in its figures alone."""
    held: dict[str, bool] = {}
    for modality, scores in result["compressors"].items():
        bits = {name: found["held_out"][modality]["bits_per_byte"] for name, found in result["pre_training"].items()}
        [gzip] = [score["after_training"] for score in scores if score["compressor"].startswith("gzip")]
        held[f"{modality}: fewer bits than gzip behind the training files"] = bits[modality] < gzip
        strangers = min((bits[name] for name in bits if name not in (modality, MIXED)), default=None)
        if strangers is not None:
            held[f"{modality}: fewer bits by its own model, and by that of all, than by others"] = (
                max(bits[modality], bits[MIXED]) < strangers
            )
    if "audio" in result["compressors"]:
        own, none = (result["classification"][name]["audio"]["accuracy_interval"] for name in ("audio", SCRATCH))
        held["audio: pre-training on it helps to classify it, with intervals apart"] = own[0] > none[1]
    return held


def _labels(paths: Sequence[str]) -> list[str]:
    return [Path(path).name.partition("_")[0] for path in paths]


def _contents(paths: Sequence[str]) -> list[bytes]:
    return [Path(path).read_bytes() for path in paths]


def _say(name: str, figures: Iterator[tuple[str, str]]) -> None:
    print(f"from {name}: " + ", ".join(f"{key} {figure}" for key, figure in figures), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the paper's model, for a GPU, instead of CPU size")
    parser.add_argument("--modalities", nargs="+", choices=MODALITIES, default=list(MODALITIES), help="some of them")
    parser.add_argument("--output", type=Path, help="the JSON to write; by default beside the script, if of all three")
    parser.add_argument("--runs", type=Path, help="where runs are kept, and gone on with; by default nowhere")
    options = parser.parse_args()
    size = "full" if options.full else "cpu"
    output = options.output
    if output is None and set(options.modalities) == set(MODALITIES):
        output = Path(__file__).with_name(f"modalities.{size}.json")
    with tempfile.TemporaryDirectory(prefix="modalities-") as temporary:
        folder = (options.runs or Path(temporary)) / size
        try:
            result = run(tuple(options.modalities), full() if options.full else small(), folder)
        except MissingDataError as error:
            print(f"nothing was run: {error}; or leave it out by --modalities", file=sys.stderr)
            return 2
    command = "python examples/modalities/modalities.py" + (" --full" if options.full else "")
    if output is not None:
        write_json(output, {"command": command, "environment": describe_environment(), **result})
    for claim, holds in result["claims"].items():
        print(f"{'as claimed' if holds else 'NOT as claimed'}: {claim}")
    return 0 if all(result["claims"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
