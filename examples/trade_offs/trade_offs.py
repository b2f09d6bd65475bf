"""Compares speed and quality at equal training time: patch sizes 4 to 32, layer splits, and a model without patches.

Models of one width and depth learn text, images and traces (`mixed_documents.py`), in batches of the same documents in
the same order, for the same time each. A byte model without patches, with as many operations per byte, is trained for
the same time too, and again for the same number of bytes. Results and a plot are written next to this script.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path += [str(Path(__file__).resolve().parents[1] / name) for name in ("", "synthetic")]
import training_runs as runs
from flat_baseline import (
    FlatModel,
    evaluate_flat,
    flat_documents,
    flat_flops,
    generate_flat,
    train_flat,
)
from mixed_documents import Documents, mixed_documents
from synthetic_documents import Rule, SyntheticDocuments
from trade_off_models import FLAT, FULL, SMALL, Settings, Variant, variants
from trade_off_report import claims, draw, table

from bgpt_fast import BGPT, PackedPatches
from bgpt_fast.files import write_json
from bgpt_fast.flops import forward_flops
from bgpt_fast.generation import Generator, Prompt
from bgpt_fast.tasks.baselines import compression_scores, entropy_of_bytes
from bgpt_fast.tasks.evaluation import evaluate_files
from bgpt_fast.training import Trainer
from bgpt_fast.training.optimizer import Optimizers


def source_of(variant: Variant, documents: Documents, settings: Settings) -> SyntheticDocuments:
    """Returns a source of the same documents in the same order for each model."""
    rule = Rule(lambda stream: stream.choice(documents.training), lambda content: math.nan)
    return SyntheticDocuments(rule, variant.config, settings.documents)


def step_seconds(
    models: Sequence[Variant], documents: Documents, settings: Settings, rounds: int = 9
) -> dict[str, float]:
    """Returns the median seconds of a training step by model; on a CPU, of process time.

    Args:
        models: their steps are interleaved, so that other load on the machine affects all equally.
        documents, settings: of all models.
        rounds: measured steps of each model, after one warm-up step.
    """
    timers = [_step_seconds(variant, documents, settings) for variant in models]
    rows = [[next(timer) for timer in timers] for _ in range(rounds + 1)][1:]
    columns = zip(*rows, strict=True)
    return {variant.name: statistics.median(column) for variant, column in zip(models, columns, strict=True)}


def _step_seconds(variant: Variant, documents: Documents, settings: Settings) -> Iterator[float]:
    """Yields the seconds of one training step after another."""
    model, source = variant.make(0), source_of(variant, documents, settings)
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
    """Returns the seconds that the work takes: process time on a CPU, wall-clock time on a GPU."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    started = clock()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - started


def train(variant: Variant, steps: int, documents: Documents, settings: Settings, folder: Path) -> BGPT | FlatModel:
    """Trains a model; a bGPT's run in `folder` is resumed, and a flat model that was saved there is loaded."""
    model, source = variant.make(0), source_of(variant, documents, settings)
    config = dataclasses.replace(settings.training, steps=steps)
    if isinstance(model, BGPT):
        Trainer(model, source, config, folder / "run").train()
    elif (folder / "flat.safetensors").exists():
        model.load(folder / "flat.safetensors")
    else:
        train_flat(model, source, config)
        model.save(folder / "flat.safetensors")
    return model.eval()


def quality(model: BGPT | FlatModel, variant: Variant, held_out: Path) -> dict[str, Any]:
    """Returns bits per byte and accuracy on the held-out files."""
    if isinstance(model, FlatModel):
        flat = evaluate_flat(model, held_out, variant.config).to_dict()
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
    """Returns the median new bytes a second of 16 sampled continuations of held-out text, models measured in turn."""
    texts = [content for extension, content in documents.held_out if extension == "txt"][:16]
    prompts = [("txt", content[: settings.text_bytes // 4]) for content in texts]
    functions = [_continue(model, prompts, settings.new_bytes) for model in models]
    speeds: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds + 1):
        for generate, rates in zip(functions, speeds, strict=True):
            contents: list[bytes] = []
            seconds = _timed(lambda generate=generate, contents=contents: contents.extend(generate()))  # type: ignore[misc]
            rates.append((sum(map(len, contents)) - sum(len(data) for _, data in prompts)) / seconds)
    return [statistics.median(rates[1:]) for rates in speeds]


def _continue(model: BGPT | FlatModel, prompts: list[tuple[str, bytes]], new_bytes: int) -> Callable[[], list[bytes]]:
    if isinstance(model, FlatModel):
        return lambda: generate_flat(model, prompts, max_new_bytes=new_bytes, temperature=1.0)
    generator = Generator(model)
    inputs = [Prompt(extension, data) for extension, data in prompts]
    return lambda: [file.data for file in generator.generate(inputs, max_new_bytes=new_bytes, temperature=1.0)]


def forward_flops_a_byte(variant: Variant, sample: Sequence[tuple[str, bytes]]) -> float:
    """Returns the floating-point operations of a forward pass over some documents, divided by their bytes."""
    batch = PackedPatches.from_bytes(sample, variant.config)
    if variant.flat is not None:
        flops = flat_flops(variant.flat, flat_documents(batch))
    else:
        flops = sum(forward_flops(variant.config, batch.cu_seqlens.diff()).values())
    return flops / sum(len(content) for _, content in sample)


def run(settings: Settings, documents: Documents, folder: Path) -> dict[str, Any]:
    """Trains and measures every model.

    Args:
        settings: settings of all models.
        documents: to train on, and held out.
        folder: folder of the runs; a stopped comparison is resumed there.

    Returns:
        Figures by the model's name, JSON-ready.
    """
    sample = documents.training[:: max(1, len(documents.training) // 200)]
    mean_bytes = sum(len(content) for _, content in documents.training) / len(documents.training)
    models = variants(settings, sample)
    plan = folder / "steps.json"
    if not plan.exists():
        seconds = step_seconds([variant for variant in models if not variant.steps_of], documents, settings)
        write_json(plan, seconds)
    seconds = json.loads(plan.read_text())
    steps = {name: max(1, round(60 * settings.minutes / each)) for name, each in seconds.items()}
    held_out = folder / "held_out"
    documents.write_held_out(held_out)
    results: dict[str, Any] = {}
    trained = []
    for variant in models:
        count, flat = steps[variant.steps_of or variant.name], variant.flat
        print(f"{variant.name}: {count} steps", flush=True)
        model = train(variant, count, documents, settings, folder / variant.name.replace(" ", "_"))
        trained.append(model)
        a_step = seconds[FLAT if flat else variant.name]
        patches = sum(2 + -(-len(content) // variant.config.patch_size) for _, content in sample) / len(sample)
        results[variant.name] = {
            "patch_size": 1 if flat else variant.config.patch_size,
            "layers": [flat.num_layers] if flat else [variant.config.patch_num_layers, variant.config.byte_num_layers],
            "width": flat.hidden_size if flat else variant.config.hidden_size,
            "parameters": model.num_parameters(),
            "forward_flops_a_byte": forward_flops_a_byte(variant, sample),
            "steps": count,
            "training_bytes": round(count * settings.documents * mean_bytes),
            "training_core_seconds": count * a_step,
            "training_bytes_a_second": settings.documents * mean_bytes / a_step,
            "training_patches_a_second": None if flat else settings.documents * patches / a_step,
            **quality(model, variant, held_out),
        }
        print(f"  {results[variant.name]['bits_per_byte']:.4f} bits per byte", flush=True)
    for figures, speed in zip(results.values(), generation_speed(trained, documents, settings), strict=True):
        figures["generated_bytes_a_second"] = speed
    return results


def main() -> int:
    parser = runs.argument_parser(__doc__, full="the paper's width and depth, for a GPU; not run yet")
    parser.add_argument("--minutes", type=float, help="of training for each model; by default 1, and 120 for --full")
    options = parser.parse_args()
    settings = FULL if options.full else SMALL
    if options.minutes:
        settings = dataclasses.replace(settings, minutes=options.minutes)
    documents = mixed_documents(settings.most, settings.scored, settings.text_bytes)
    if settings.training.threads:
        torch.set_num_threads(settings.training.threads)
    contents = [content for _, content in documents.held_out]
    entropy = entropy_of_bytes(contents)
    with runs.runs_folder(options) as folder:
        results = run(settings, documents, folder)
    print(table(results))
    compressors = compression_scores(contents, [content for _, content in documents.training])
    claim_results = claims(results, entropy)
    output = runs.write_results(
        __file__,
        parser,
        options,
        {
            "documents": documents.describe(),
            "documents_a_step": settings.documents,
            "minutes": settings.minutes,
            "claims": claim_results,
            "entropy_of_bytes": entropy,
            "compressors": [score.to_dict() for score in compressors],
            "models": results,
        },
    )
    draw(results, output.with_suffix(".png"))
    return runs.print_claims(claim_results)


if __name__ == "__main__":
    sys.exit(main())
