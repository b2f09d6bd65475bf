"""Pre-trains models on text, images, audio and all of them; evaluates and fine-tunes each on every modality.

pre-training: one model per modality, and one on all with about as many patches of each as the single ones had. Reports
bits per byte of each model on held-out files of each modality, compared with compressors.
classification: from each pre-trained model, and from scratch, to topics of text, digits in images, languages of audio
and of the same clips as spectrogram images, compared with a small CNN and classifiers on byte counts.
Each model is pre-trained once and used for everything. The data comes from installed packages (media_data.py).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from media_data import FULL, MODALITIES, Labelled, Media, MissingDataError, Sizes, prepare

sys.path.append(str(Path(__file__).resolve().parents[1]))
import training_runs as runs

from bgpt_fast import BGPT, BGPTConfig
from bgpt_fast.classifier import BGPTForClassification
from bgpt_fast.data import FileSource, LabelledSource, MixedSource, Source
from bgpt_fast.files import write_json
from bgpt_fast.tasks.baselines import classify_by_bytes, compression_scores
from bgpt_fast.tasks.classification import ClassificationReport, evaluate
from bgpt_fast.tasks.cnn_baseline import classify_by_cnn
from bgpt_fast.tasks.evaluation import evaluate_files
from bgpt_fast.training import TrainConfig, Trainer

MIXED = "mixed"
SCRATCH = "none"
SPECTROGRAM_FROM = (SCRATCH, "image", "audio")
"""The modality of pre-training from which the paper's spectrogram test starts."""


@dataclass(frozen=True)
class Settings:
    """Sizes of data and models, and how long they train.

    Args:
        sizes: sizes of the data.
        model: sizes of all models.
        patches_per_batch: maximum patches per batch, in pre-training and fine-tuning.
        pre_training: training settings for a single modality; a mixture of n takes n times as many steps.
        fine_tuning: training settings for every classifier, pre-trained or not; `epochs` decides its steps.
        epochs: epochs of fine-tuning, by task.
        cnn_steps: training steps of the CNN baseline.
    """

    sizes: Sizes
    model: BGPTConfig
    patches_per_batch: int
    pre_training: TrainConfig
    fine_tuning: TrainConfig
    epochs: dict[str, float]
    cnn_steps: int = 400


def small() -> Settings:
    """Settings that train on a CPU: models of 0.9 M parameters, on one thread."""
    return Settings(
        sizes=Sizes(),
        model=runs.cpu_model(130, 96, layers=3, heads=3, byte_heads=6, position_init_std=0.1),
        patches_per_batch=520,
        pre_training=runs.cpu_training(
            steps=260,
            learning_rate=3e-3,
            muon_learning_rate=0.02,
            decay_share=0.5,
            targets_per_step=160,
            save_every=50,
            keep_last=1,
        ),
        fine_tuning=runs.cpu_training(
            learning_rate=2e-3, muon_learning_rate=0.01, schedule="cosine", save_every=100, keep_last=1
        ),
        epochs={"text": 6, "image": 5, "audio": 2, "spectrogram": 4},
    )


def full() -> Settings:
    """The paper's model on standard files of the paper's sizes, for a GPU in bfloat16; not run yet."""
    return Settings(
        sizes=FULL,
        model=runs.PAPER,
        patches_per_batch=16_384,
        pre_training=runs.gpu_training(steps=10_000, learning_rate=1e-4, warmup_share=0.1),
        fine_tuning=runs.gpu_training(learning_rate=1e-5, warmup_share=0.1),
        epochs=dict.fromkeys(("text", "image", "audio", "spectrogram"), 32),
    )


def pre_train(name: str, media: Media, settings: Settings, folder: Path) -> tuple[BGPT, dict[str, Any]]:
    """Trains a model on the bytes of one modality, or of all; returns it, its steps and seconds."""
    torch.manual_seed(0)
    model = BGPT(settings.model)
    modalities = list(media.pre_training) if name == MIXED else [name]
    sources: list[Source] = [
        FileSource([media.pre_training[modality]], settings.model, settings.patches_per_batch, split="all")
        for modality in modalities
    ]
    source = sources[0] if len(sources) == 1 else MixedSource(sources, [1.0] * len(sources))
    training = dataclasses.replace(settings.pre_training, steps=settings.pre_training.steps * len(sources))
    result = Trainer(model, source, training, folder).train()
    return model, {"steps": result.steps, "seconds": round(result.seconds, 1)}


def bits(model: BGPT, media: Media) -> dict[str, Any]:
    """Returns bits per byte and accuracy on the held-out files of each modality."""
    figures = {}
    for modality, paths in media.scored.items():
        report = evaluate_files(model, paths, baselines=False)
        figures[modality] = {
            "bits_per_byte": report.total.per_byte,
            "interval_95": list(report.intervals["bits_per_byte"] or ()),
            "bits_per_position": report.total.per_position,
            "accuracy": report.total.accuracy,
        }
    return figures


def fine_tune(
    model: BGPT | None, task: str, labelled: Labelled, settings: Settings, folder: Path
) -> tuple[ClassificationReport, dict[str, Any]]:
    """Trains a classifier from a pre-trained model, or from random weights (None); returns its report and run."""
    torch.manual_seed(0)
    if model is None:
        classifier = BGPTForClassification(settings.model, labelled.labels)
    else:
        classifier = BGPTForClassification.from_generative(model, labelled.labels)
    sizes = settings.model, settings.patches_per_batch
    source = LabelledSource(labelled.train, *sizes, labels=labelled.labels, split="all")
    steps = max(1, round(source.epoch_batches * settings.epochs[task]))
    result = Trainer(classifier, source, dataclasses.replace(settings.fine_tuning, steps=steps), folder).train()
    test = LabelledSource(labelled.test, *sizes, labels=labelled.labels, split="eval", eval_share=1.0)
    report = evaluate(classifier, test.one_pass())
    return report, {"steps": result.steps, "seconds": round(result.seconds, 1)}


def compressors(media: Media, modality: str) -> list[dict[str, Any]]:
    """Returns the bits per byte of the same held-out files by gzip, xz and zstd."""
    training = [Path(path) for path in sorted(media.pre_training[modality].iterdir())]
    scores = compression_scores(_contents(media.scored[modality]), (path.read_bytes() for path in training))
    return [score.to_dict() for score in scores]


def baseline_classifiers(labelled: Labelled, cnn_steps: int) -> dict[str, Any]:
    """Returns the accuracy of a small CNN, and of two classifiers of byte counts, on the same documents."""
    train, test = ([*zip(_labels(paths), _contents(paths), strict=True)] for paths in (labelled.train, labelled.test))
    reports = {
        "cnn": classify_by_cnn(train, test, steps=cnn_steps),
        "gradient-boosting": classify_by_bytes(train, test, "gradient-boosting"),
        "nearest-centroid": classify_by_bytes(train, test, "nearest-centroid"),
    }
    largest = Counter(label for label, _ in test).most_common(1)[0][1]
    return {"largest_class": largest / len(test), **{name: report.to_dict() for name, report in reports.items()}}


def run(modalities: tuple[str, ...], settings: Settings, folder: Path) -> dict[str, Any]:
    """Trains and measures everything in `folder`; a stopped run is resumed there.

    Raises:
        MissingDataError: names the package that contains the missing data.
        ValueError: the folder holds a run with other settings.
    """
    described = as_json({"modalities": modalities, **dataclasses.asdict(settings)})
    if cached(folder / "settings.json", lambda: described) != described:
        raise ValueError(f"{folder}: expected a run with the same settings, got one with others; choose another --runs")
    media = prepare(modalities, settings.sizes, folder / "media")
    results = folder / "results"
    pre_trained: dict[str, Any] = {}
    matrix: dict[str, dict[str, Any]] = {}
    for name in (SCRATCH, *modalities, *([MIXED] if len(modalities) > 1 else [])):
        stage = _Stage(name, media, settings, folder)
        if name != SCRATCH:
            pre_trained[name] = cached(results / f"{name}.json", stage.measured)
            scores = pre_trained[name]["held_out"].items()
            _print_figures(name, ((key, f"{figures['bits_per_byte']:.4f}") for key, figures in scores))
        matrix[name] = {
            task: cached(results / f"{task}-from-{name}.json", functools.partial(stage.fine_tuned, task))
            for task in media.tasks
            if task != "spectrogram" or name in SPECTROGRAM_FROM
        }
        _print_figures(name, ((task, f"{figures['accuracy']:.2%}") for task, figures in matrix[name].items()))
    others = {}
    for task, labelled in media.tasks.items():
        classify = functools.partial(baseline_classifiers, labelled, settings.cnn_steps)
        others[task] = cached(results / f"{task}-by-others.json", classify)
    result = {
        "settings": described,
        "data": media.described,
        "documents": {
            task: {"classes": list(one.labels), "train": len(one.train), "test": len(one.test)}
            for task, one in media.tasks.items()
        },
        "pre_training": pre_trained,
        "compressors": {
            modality: cached(results / f"{modality}-compressed.json", functools.partial(compressors, media, modality))
            for modality in modalities
        },
        "classification": matrix,
        "classified_by_others": others,
    }
    return {"claims": claims(result), **result}


class _Stage:
    """The measurements of one pre-trained model, or from scratch; trains the model at its first use."""

    def __init__(self, name: str, media: Media, settings: Settings, folder: Path) -> None:
        self.name, self.media, self.settings, self.folder = name, media, settings, folder

    @functools.cached_property
    def _pre_trained(self) -> tuple[BGPT, dict[str, Any]]:
        return pre_train(self.name, self.media, self.settings, self.folder / "pre_training" / self.name)

    def measured(self) -> dict[str, Any]:
        """Returns the model's bits per byte."""
        model, run = self._pre_trained
        return {**run, "parameters": model.num_parameters(), "held_out": bits(model, self.media)}

    def fine_tuned(self, task: str) -> dict[str, Any]:
        """Returns the accuracy of a classifier."""
        model = None if self.name == SCRATCH else self._pre_trained[0]
        folder = self.folder / "fine_tuning" / f"{task}-from-{self.name}"
        report, run = fine_tune(model, task, self.media.tasks[task], self.settings, folder)
        return {**run, **report.to_dict()}


def cached(path: Path, compute: Callable[[], Any]) -> Any:
    """Returns the content of a JSON file; if there is none, computes and writes it first."""
    if not path.exists():
        write_json(path, compute())
    return json.loads(path.read_text())


def as_json(value: Any) -> Any:
    """Returns a value as it would be read back from JSON."""
    return json.loads(json.dumps(value))


def claims(result: dict[str, Any]) -> dict[str, bool]:
    """Returns this recipe's claims, and whether each holds."""
    claim_results: dict[str, bool] = {}
    for modality, scores in result["compressors"].items():
        bits = {name: run["held_out"][modality]["bits_per_byte"] for name, run in result["pre_training"].items()}
        [gzip] = [score["after_training"] for score in scores if score["compressor"].startswith("gzip")]
        claim_results[f"{modality}: fewer bits than gzip behind the training files"] = bits[modality] < gzip
        others = min((bits[name] for name in bits if name not in (modality, MIXED)), default=None)
        if others is not None:
            claim_results[f"{modality}: fewer bits by its own model, and by that of all, than by others"] = (
                max(bits[modality], bits[MIXED]) < others
            )
    if "audio" in result["compressors"]:
        own, none = (result["classification"][name]["audio"]["accuracy_interval"] for name in ("audio", SCRATCH))
        claim_results["audio: pre-training on it helps to classify it, with intervals apart"] = own[0] > none[1]
    return claim_results


def _labels(paths: Sequence[str]) -> list[str]:
    return [Path(path).name.partition("_")[0] for path in paths]


def _contents(paths: Sequence[str]) -> list[bytes]:
    return [Path(path).read_bytes() for path in paths]


def _print_figures(name: str, figures: Iterator[tuple[str, str]]) -> None:
    print(f"from {name}: " + ", ".join(f"{key} {figure}" for key, figure in figures), flush=True)


def main() -> int:
    parser = runs.argument_parser(__doc__)
    parser.add_argument("--modalities", nargs="+", choices=MODALITIES, default=list(MODALITIES), help="some of them")
    options = parser.parse_args()
    with runs.runs_folder(options) as folder:
        try:
            result = run(tuple(options.modalities), full() if options.full else small(), folder)
        except MissingDataError as error:
            print(f"nothing was run: {error}; or leave it out by --modalities", file=sys.stderr)
            return 2
    if options.output is not None or set(options.modalities) == set(MODALITIES):
        runs.write_results(__file__, parser, options, result)
    return runs.print_claims(result["claims"])


if __name__ == "__main__":
    sys.exit(main())
