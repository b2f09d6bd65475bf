"""Patch sizes 4 to 32, layers below or above, and no patches at all: speed beside quality, at equal training time.

Models of one width and depth learn text, images and traces (`mixed_documents.py`), in batches of the same documents in
the same order, for as long each; a flat byte model of as many operations a byte is one of them, and once more for as
many bytes instead of as long. Steps are measured first, side by side, so that other work on the machine favours none.
Figures and a plot go beside this script.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).resolve().parent.parent / "synthetic"))
from made_documents import MadeDocuments, Rule
from mixed_documents import Documents, mixed_documents

from bgpt_fast import BGPT, BGPTConfig, PackedPatches
from bgpt_fast.environment import describe_environment
from bgpt_fast.files import write_json
from bgpt_fast.flops import forward_flops
from bgpt_fast.generation import Generator, Prompt
from bgpt_fast.report.plots import COLORS, new_figure, save_figure
from bgpt_fast.tasks.baselines import compression_scores, entropy_of_bytes
from bgpt_fast.tasks.evaluation import evaluate_files
from bgpt_fast.tasks.flat_baseline import (
    FlatConfig,
    FlatModel,
    evaluate_flat,
    flat_documents,
    flat_flops,
    flat_of_equal_compute,
    generate_flat,
    train_flat,
)
from bgpt_fast.training import TrainConfig, Trainer
from bgpt_fast.training.optimizer import Optimizers

HERE = Path(__file__).resolve().parent
PATCH_SIZES = (4, 8, 16, 32)
REFERENCE = "S16 4+1"
FLAT, FLAT_BYTES = "flat", "flat, as many bytes"


@dataclass(frozen=True)
class Settings:
    """Of all models.

    Args:
        hidden_size, num_heads, byte_num_heads, position_init_std: of each bGPT.
        splits: layers of the patch decoder and of the byte decoder: the first for all patch sizes, every one for the
            patch size `split_size`.
        flat_layers, flat_heads: of the flat model; its width follows from the operations.
        most: documents of each kind to train on.
        scored: held-out documents of each kind.
        text_bytes: of a piece of text, the longest document.
        documents: of a batch.
        minutes: of training, for each model, on a core (or GPU) of its own.
        training: see `TrainConfig`; steps come from the measurement.
        patch_sizes: which.
        new_bytes: of each of 16 continuations, for the speed of generation.
    """

    hidden_size: int
    num_heads: int
    byte_num_heads: int
    position_init_std: float
    splits: tuple[tuple[int, int], ...]
    flat_layers: int
    flat_heads: int
    most: int
    scored: int
    text_bytes: int
    documents: int
    minutes: float
    training: TrainConfig
    patch_sizes: tuple[int, ...] = PATCH_SIZES
    split_size: int = 16
    new_bytes: int = 128


SMALL = Settings(
    hidden_size=64,
    num_heads=2,
    byte_num_heads=4,
    position_init_std=0.1,
    splits=((4, 1), (3, 2), (2, 3)),
    flat_layers=2,
    flat_heads=2,
    most=4000,
    scored=120,
    text_bytes=480,
    documents=16,
    minutes=1.0,
    training=TrainConfig(
        learning_rate=3e-3,
        muon_learning_rate=0.02,
        optimizer="muon",
        schedule="wsd",
        warmup_share=0.03,
        decay_share=0.5,
        tensorboard=False,
        device="cpu",
        threads=1,
    ),
)
"""Of CPU size: 0.3 to 0.8 M parameters."""
FULL = Settings(
    hidden_size=768,
    num_heads=12,
    byte_num_heads=12,
    position_init_std=0.02,
    splits=((12, 3), (8, 7), (4, 11)),
    flat_layers=12,
    flat_heads=8,
    most=1_000_000,
    scored=300,
    text_bytes=8000,
    documents=32,
    minutes=120.0,
    training=TrainConfig(learning_rate=3e-4, precision="bf16", tensorboard=False),
)
"""The paper's width, depth and context, for a GPU; not yet run."""


@dataclass(frozen=True)
class Contender:
    """A model of the comparison: a bGPT, or where `flat` is given that flat model, on batches as of `config`."""

    name: str
    config: BGPTConfig
    flat: FlatConfig | None = None
    steps_of: str = ""

    def make(self, seed: int) -> BGPT | FlatModel:
        """The model as it starts."""
        torch.manual_seed(seed)
        return BGPT(self.config) if self.flat is None else FlatModel(self.flat)


def contenders(settings: Settings, sample: Sequence[tuple[str, bytes]]) -> list[Contender]:
    """All models; every bGPT's context holds the longest document.

    Args:
        settings: of all.
        sample: documents from whose lengths the flat model's size follows.
    """
    found = []
    for S in settings.patch_sizes:
        for patch_layers, byte_layers in settings.splits if settings.split_size == S else settings.splits[:1]:
            config = BGPTConfig(
                patch_size=S,
                patch_length=2 + -(-settings.text_bytes // S),
                hidden_size=settings.hidden_size,
                patch_num_layers=patch_layers,
                byte_num_layers=byte_layers,
                num_heads=settings.num_heads,
                byte_num_heads=settings.byte_num_heads,
                position_init_std=settings.position_init_std,
            )
            found.append(Contender(f"S{S} {patch_layers}+{byte_layers}", config))
    reference = next((one for one in found if one.config.patch_size == settings.split_size), found[0])
    flat = flat_of_equal_compute(
        reference.config,
        PackedPatches.from_bytes(sample, reference.config),
        num_layers=settings.flat_layers,
        num_heads=settings.flat_heads,
    )
    return [
        *found,
        Contender(FLAT, reference.config, flat),
        Contender(FLAT_BYTES, reference.config, flat, steps_of=reference.name),
    ]


def source_of(one: Contender, documents: Documents, settings: Settings) -> MadeDocuments:
    """The same documents in the same order for each model."""
    rule = Rule(lambda stream: stream.choice(documents.training), lambda content: math.nan)
    return MadeDocuments(rule, one.config, settings.documents)


def step_seconds(
    models: Sequence[Contender], documents: Documents, settings: Settings, rounds: int = 9
) -> dict[str, float]:
    """Median seconds of a training step of each, in rounds of one step each: on a CPU of the process's own time.

    Args:
        models: which.
        documents, settings: of all.
        rounds: how often; one more goes first and does not count.
    """
    running = [_steps(one, documents, settings) for one in models]
    measured = [[next(steps) for steps in running] for _ in range(rounds + 1)][1:]
    return {
        one.name: statistics.median(column) for one, column in zip(models, zip(*measured, strict=True), strict=True)
    }


def _steps(one: Contender, documents: Documents, settings: Settings) -> Iterator[float]:
    """Seconds of one training step after another."""
    model, source = one.make(0), source_of(one, documents, settings)
    if isinstance(model, FlatModel):
        single = dataclasses.replace(settings.training, steps=1)
        while True:
            yield _timed(functools.partial(train_flat, model, source, single))
    device = next(model.parameters()).device
    optimizers = Optimizers(model.named_parameters(), settings.training)

    def step() -> None:
        batch = source.next_batch().to(device)
        optimizers.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.training.precision == "bf16"):
            loss = model(batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.training.grad_clip)
        optimizers.step()

    while True:
        yield _timed(step)


def _timed(work: Callable[[], object]) -> float:
    """Seconds that the work takes: of this process on a CPU, of the clock where a GPU does it."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    started = clock()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - started


def train(one: Contender, steps: int, documents: Documents, settings: Settings, folder: Path) -> BGPT | FlatModel:
    """Trains a model, or takes up what `folder` has of it: a bGPT's run goes on, a flat model is there or is not."""
    model, source = one.make(0), source_of(one, documents, settings)
    config = dataclasses.replace(settings.training, steps=steps)
    if isinstance(model, BGPT):
        Trainer(model, source, config, folder / "run").train()
    elif (folder / "flat.safetensors").exists():
        model.load(folder / "flat.safetensors")
    else:
        train_flat(model, source, config)
        model.save(folder / "flat.safetensors")
    return model.eval()


def quality(model: BGPT | FlatModel, one: Contender, held_out: Path) -> dict[str, Any]:
    """Bits per byte of the held-out files."""
    if isinstance(model, FlatModel):
        flat = evaluate_flat(model, held_out, one.config).to_dict()
        return {name: flat[name] for name in ("bits_per_byte", "interval_95", "accuracy", "by_extension")}
    report = evaluate_files(model, held_out, baselines=False)
    interval = report.intervals["bits_per_byte"]
    return {
        "bits_per_byte": report.total.per_byte,
        "interval_95": None if interval is None else list(interval),
        "accuracy": report.total.accuracy,
        "by_extension": {name: scores.per_byte for name, scores in report.by_extension.items()},
        "patch_level_error_share": report.decoders.patch_level / report.decoders.patches,
        "byte_level_error_share": report.decoders.byte_level / report.decoders.patches,
    }


def generation_speed(
    models: Sequence[BGPT | FlatModel], documents: Documents, settings: Settings, rounds: int = 3
) -> list[float]:
    """Median new bytes a second of 16 drawn continuations of held-out text, in rounds of one turn each."""
    texts = [content for extension, content in documents.held_out if extension == "txt"][:16]
    begun = [("txt", content[: settings.text_bytes // 4]) for content in texts]
    makers = [_maker(model, begun, settings.new_bytes) for model in models]
    speeds: list[list[float]] = [[] for _ in makers]
    for _ in range(rounds + 1):
        for place, make in enumerate(makers):
            made: list[bytes] = []
            seconds = _timed(lambda make=make, made=made: made.extend(make()))  # type: ignore[misc]
            new = sum(map(len, made)) - sum(len(data) for _, data in begun)
            speeds[place].append(new / seconds)
    return [statistics.median(found[1:]) for found in speeds]


def _maker(model: BGPT | FlatModel, begun: list[tuple[str, bytes]], new_bytes: int) -> Callable[[], list[bytes]]:
    if isinstance(model, FlatModel):
        return lambda: generate_flat(model, begun, max_new_bytes=new_bytes, temperature=1.0)
    generator = Generator(model)
    prompts = [Prompt(extension, data) for extension, data in begun]
    return lambda: [file.data for file in generator.generate(prompts, max_new_bytes=new_bytes, temperature=1.0)]


def forward_flops_a_byte(one: Contender, sample: Sequence[tuple[str, bytes]]) -> float:
    """Operations of a forward pass over some documents, by their bytes."""
    batch = PackedPatches.from_bytes(sample, one.config)
    if one.flat is not None:
        flops = flat_flops(one.flat, flat_documents(batch))
    else:
        flops = sum(forward_flops(one.config, batch.cu_seqlens.diff()).values())
    return flops / sum(len(content) for _, content in sample)


def run(settings: Settings, documents: Documents, folder: Path) -> dict[str, Any]:
    """Trains and measures every model.

    Args:
        settings: of all.
        documents: to train on, and held out.
        folder: of the runs; what is there is not done again.

    Returns:
        Figures by name, JSON-ready.
    """
    sample = documents.training[:: max(1, len(documents.training) // 200)]
    mean_bytes = sum(len(content) for _, content in documents.training) / len(documents.training)
    models = contenders(settings, sample)
    plan = folder / "steps.json"
    if not plan.exists():
        seconds = step_seconds([one for one in models if not one.steps_of], documents, settings)
        write_json(plan, seconds)
    seconds = json.loads(plan.read_text())
    steps = {name: max(1, round(60 * settings.minutes / each)) for name, each in seconds.items()}
    held_out = folder / "held_out"
    documents.write_held_out(held_out)
    found: dict[str, Any] = {}
    trained = []
    for one in models:
        count = steps[one.steps_of or one.name]
        print(f"{one.name}: {count} steps", flush=True)
        model = train(one, count, documents, settings, folder / one.name.replace(" ", "_"))
        trained.append(model)
        a_step = seconds[FLAT if one.flat else one.name]
        patches = sum(2 + -(-len(content) // one.config.patch_size) for _, content in sample) / len(sample)
        found[one.name] = {
            "patch_size": 1 if one.flat else one.config.patch_size,
            "layers": [one.flat.num_layers] if one.flat else [one.config.patch_num_layers, one.config.byte_num_layers],
            "width": one.flat.hidden_size if one.flat else one.config.hidden_size,
            "parameters": model.num_parameters(),
            "forward_flops_a_byte": forward_flops_a_byte(one, sample),
            "steps": count,
            "training_bytes": round(count * settings.documents * mean_bytes),
            "training_core_seconds": count * a_step,
            "training_bytes_a_second": settings.documents * mean_bytes / a_step,
            "training_patches_a_second": None if one.flat else settings.documents * patches / a_step,
            **quality(model, one, held_out),
        }
        print(f"  {found[one.name]['bits_per_byte']:.4f} bits per byte", flush=True)
    for figures, speed in zip(found.values(), generation_speed(trained, documents, settings), strict=True):
        figures["generated_bytes_a_second"] = speed
    return found


def claims(found: dict[str, Any], entropy: float) -> dict[str, bool]:
    """What must come out, whatever the sizes."""
    bgpt = {name: figures for name, figures in found.items() if figures["patch_size"] > 1}
    sizes = sorted({figures["patch_size"] for figures in bgpt.values()})
    by_size = {
        S: max((figures for figures in bgpt.values() if figures["patch_size"] == S), key=lambda f: f["layers"])
        for S in (sizes[0], sizes[-1])
    }
    reference = found.get(REFERENCE, next(iter(bgpt.values())))
    flat = found[FLAT]
    return {
        "every model learned more than how frequent bytes are": all(
            figures["bits_per_byte"] < entropy for figures in found.values()
        ),
        "with the most patch layers, the largest patches are trained and generated faster than the smallest": all(
            by_size[sizes[-1]][speed] > by_size[sizes[0]][speed]
            for speed in ("training_bytes_a_second", "generated_bytes_a_second")
        ),
        "the flat model's operations a byte are within 10 % of the reference's": abs(
            flat["forward_flops_a_byte"] / reference["forward_flops_a_byte"] - 1
        )
        < 0.1,
    }


def draw(found: dict[str, Any], path: Path) -> None:
    """Held-out bits per byte against the bytes a second of training, as a PNG; equal splits are connected."""
    figure, axes = new_figure(7.5, 4.5)
    splits: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for name, figures in found.items():
        splits.setdefault("flat" if figures["patch_size"] == 1 else name.split()[1], []).append((name, figures))
    for color, (split, models) in zip(COLORS, splits.items(), strict=False):
        x = [figures["training_bytes_a_second"] for _, figures in models]
        y = [figures["bits_per_byte"] for _, figures in models]
        flat = split == "flat"
        axes.plot(x, y, "s" if flat else "o-", color=color, label="flat" if flat else f"{split} layers, patch + byte")
        for (name, figures), *place in zip(models, x, y, strict=True):
            label = ("as many bytes" if name == FLAT_BYTES else "as long") if flat else f"S = {figures['patch_size']}"
            below = figures["patch_size"] == max(PATCH_SIZES)
            axes.annotate(label, tuple(place), textcoords="offset points", xytext=(5, -12 if below else 5), fontsize=8)
    axes.set_xscale("log")
    axes.set_xlabel("bytes a second in training, one core" if not torch.cuda.is_available() else "bytes a second")
    axes.set_ylabel("bits per byte, held out")
    axes.set_title("Equal training time")
    figure.legend(frameon=False, loc="outside lower center", ncols=2)
    save_figure(figure, path)


def table(found: dict[str, Any]) -> str:
    """The figures as Markdown; speeds as multiples of the reference's."""
    reference = found.get(REFERENCE, next(iter(found.values())))
    extensions = list(reference["by_extension"])
    lines = [
        "| model | parameters | FLOPs a byte | training bytes/s | generated bytes/s | bytes seen | bits per byte | "
        + " | ".join(extensions)
        + " |",
        "| --- " * (7 + len(extensions)) + "|",
    ]
    for name, figures in found.items():
        ratios = [
            f"{figures[speed] / reference[speed]:.2f}"
            for speed in ("training_bytes_a_second", "generated_bytes_a_second")
        ]
        lines.append(
            f"| {name} | {figures['parameters'] / 1e6:.2f} M | {figures['forward_flops_a_byte'] / 1e6:.2f} M | "
            + " | ".join(ratios)
            + f" | {figures['training_bytes'] / 1e6:.1f} MB | {figures['bits_per_byte']:.3f} | "
            + " | ".join(f"{figures['by_extension'][extension]:.3f}" for extension in extensions)
            + " |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the paper's width and depth, for a GPU; not run yet")
    parser.add_argument("--minutes", type=float, help="of training for each model; by default 1, and 120 for --full")
    parser.add_argument("--runs", type=Path, help="where runs are kept, and gone on with; by default nowhere")
    parser.add_argument("--output", type=Path, help="the JSON to write, and a PNG beside it; by default by this script")
    options = parser.parse_args()
    settings = FULL if options.full else SMALL
    if options.minutes:
        settings = dataclasses.replace(settings, minutes=options.minutes)
    size = "full" if options.full else "cpu"
    documents = mixed_documents(settings.most, settings.scored, settings.text_bytes)
    if settings.training.threads:
        torch.set_num_threads(settings.training.threads)
    contents = [content for _, content in documents.held_out]
    entropy = entropy_of_bytes(contents)
    with tempfile.TemporaryDirectory(prefix="trade-offs-") as temporary:
        found = run(settings, documents, (options.runs or Path(temporary)) / size)
    held = claims(found, entropy)
    print(table(found))
    for claim, holds in held.items():
        print(f"{'holds' if holds else 'DOES NOT HOLD'}: {claim}")
    output = options.output or HERE / f"trade_offs.{size}.json"
    compressors = compression_scores(contents, [content for _, content in documents.training])
    write_json(
        output,
        {
            "command": "python examples/trade_offs/trade_offs.py" + (" --full" if options.full else ""),
            "environment": describe_environment(),
            "documents": documents.describe_environment(),
            "documents_a_step": settings.documents,
            "minutes": settings.minutes,
            "claims": held,
            "entropy_of_bytes": entropy,
            "compressors": [score.to_dict() for score in compressors],
            "models": found,
        },
    )
    draw(found, output.with_suffix(".png"))
    return 0 if all(held.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
