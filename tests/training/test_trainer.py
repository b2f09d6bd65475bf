"""One step at a time: what is averaged, clipped, drawn, logged, evaluated, refused."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import operator
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from support.training import CONFIG, RandomSource, log_lines, losses, make_model, make_trainer, train

from bgpt_fast.data import DataError
from bgpt_fast.model import BGPT
from bgpt_fast.patches import PackedPatches
from bgpt_fast.training import NonFiniteLossError, TrainConfig, likelihood_evaluation, step
from bgpt_fast.training.objectives import NextBytes
from bgpt_fast.training.progress import ProgressBar, StepFigures, clock_text


class _Joined(RandomSource):
    """`RandomSource` with `parts` of its batches joined into one."""

    def __init__(self, parts: int) -> None:
        super().__init__()
        self.parts = parts

    def next_batch(self) -> PackedPatches:
        return PackedPatches.concatenate([super(_Joined, self).next_batch() for _ in range(self.parts)])


def _gradients(run_dir: Path, source: RandomSource | None = None, **fields: Any) -> dict[str, torch.Tensor]:
    """The gradients of the only step of a run without dropout."""
    model = make_model(dataclasses.replace(CONFIG, dropout=0.0))
    trainer = train(run_dir, source, model=model, steps=1, **fields)
    return {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}


def test_accumulation_equals_the_big_batch(tmp_path: Path) -> None:
    parts = _gradients(tmp_path / "parts", accumulation=3, grad_clip=0.0)
    whole = _gradients(tmp_path / "whole", _Joined(3), grad_clip=0.0)
    assert parts.keys() == whole.keys()
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-5, atol=1e-7)
    assert losses(tmp_path / "parts")[0][1] == pytest.approx(losses(tmp_path / "whole")[0][1], rel=1e-6)
    # The batches have unequal numbers of targets, so that the plain mean of their gradients is another one.
    source = RandomSource()
    counts = {len(source.next_batch().target_indices()) for _ in range(3)}
    assert len(counts) == 3
    unweighted = []
    for position in range(3):
        source.position = position
        unweighted.append(_gradients(tmp_path / str(position), source, grad_clip=0.0))
    mean = sum(gradients["patch_level_decoder.patch_embedding.weight"] for gradients in unweighted) / 3
    assert not torch.allclose(mean, whole["patch_level_decoder.patch_embedding.weight"], rtol=1e-3, atol=1e-7)


def test_clipping(tmp_path: Path) -> None:
    for clip in (0.0, 0.01):
        gradients = _gradients(tmp_path / str(clip), grad_clip=clip)
        norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm().item()
        logged = losses(tmp_path / str(clip))[0][3]
        assert logged > 0.1
        assert norm == pytest.approx(clip or logged, rel=1e-4)


def test_targets_are_drawn_without_replacement_by_seed_and_step(tmp_path: Path) -> None:
    targets: dict[str, list[torch.Tensor]] = {}

    def run(name: str, **fields: Any) -> None:
        trainer = make_trainer(tmp_path / name, targets_per_step=5, accumulation=2, steps=3, **fields)
        targets[name] = []
        trainer.model.register_forward_pre_hook(lambda module, args: targets[name].append(args[1].clone()))
        trainer.train()

    run("one")
    run("again")
    run("other", seed=1)
    assert len(targets["one"]) == 6
    source = RandomSource()
    for sample in targets["one"]:
        allowed = set(source.next_batch().target_indices().tolist())
        assert len(set(sample.tolist())) == len(sample) == min(5, len(allowed))
        assert set(sample.tolist()) <= allowed
    assert all(torch.equal(a, b) for a, b in zip(targets["one"], targets["again"], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(targets["one"], targets["other"], strict=True))


def test_each_seed_step_and_batch_of_a_step_draws_other_targets() -> None:
    batch = PackedPatches.from_bytes([("bin", bytes(56))] * 20, CONFIG)

    def draw(seed: int, step: int, index: int) -> list[int]:
        config = TrainConfig(seed=seed, targets_per_step=50)
        return NextBytes().sample_targets(batch, config, step, index).tolist()

    draws = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 2, 0)]
    assert len({tuple(draw(*numbers)) for numbers in draws}) == len(draws)
    assert [draw(*numbers) for numbers in draws] == [draw(*numbers) for numbers in draws]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_it_learns(tmp_path: Path, precision: str, optimizer: str) -> None:
    trainer = make_trainer(tmp_path, steps=60, precision=precision, optimizer=optimizer, warmup_share=0.1)
    result = trainer.train()
    # Documents of four byte values: ln 4 nats at best on the bytes, ln 257 to begin with.
    first = losses(tmp_path)[0][1]
    assert first > 5.0
    assert result.loss < 3.0
    assert result.stopped_by == "steps"
    assert result.patches_per_second > 0
    assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("late", [False, True], ids=["at once", "late"])
def test_non_finite_stops_before_the_update(
    tmp_path: Path, where: str, value: float, late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "CAN_READ_LATE", ("cpu",) if late else ())
    source = RandomSource()
    trainer = make_trainer(tmp_path, source, steps=10, save_every=2, accumulation=2)

    def spoil_loss(module: torch.nn.Module, args: Any, output: Any) -> Any:
        return output._replace(loss=output.loss * value, nats=output.nats * value) if trainer.step == 4 else output

    if where == "loss":
        trainer.model.register_forward_hook(spoil_loss)
    else:
        weight = next(trainer.model.parameters())
        weight.register_hook(lambda gradient: gradient * value if trainer.step == 4 else gradient)
    with pytest.raises(NonFiniteLossError, match="no update was made") as caught:
        trainer.train()
    assert caught.value.step == 5
    assert trainer.step == 4
    assert source.position == 10
    # The weights in memory are those of step 4, and so is the last checkpoint.
    latest = trainer.store.load_latest()
    assert latest is not None
    assert latest[0] == 4
    for name, tensor in trainer.model.state_dict().items():
        assert torch.isfinite(tensor).all()
        assert torch.equal(tensor, latest[1].weights[name])
    expected = RandomSource()
    expected.position = 8
    with safe_open(caught.value.batch_path, "pt") as file:
        assert file.metadata()["step"] == "5"
        for index in range(2):
            batch = expected.next_batch()
            assert torch.equal(file.get_tensor(f"{index}.patches"), batch.patches)
            assert torch.equal(file.get_tensor(f"{index}.cu_seqlens"), batch.cu_seqlens)
            assert torch.equal(file.get_tensor(f"{index}.targets"), batch.target_indices())


def test_evaluation_is_apart_from_training(tmp_path: Path) -> None:
    calls: list[tuple[int, bool, bool]] = []

    def evaluate(model: BGPT) -> dict[str, float]:
        calls.append((trainer.step, model.training, torch.is_grad_enabled()))
        torch.rand(100)
        return {"accuracy": [0.1, 0.9, 0.5, math.nan][len(calls) - 1]}

    trainer = make_trainer(
        tmp_path / "with", evaluate=evaluate, steps=7, eval_every=2, best_metric="accuracy", best_is="highest"
    )
    result = trainer.train()
    assert calls == [(step, False, False) for step in (2, 4, 6, 7)]
    accuracies = [line["accuracy"] for line in log_lines(tmp_path / "with") if line["kind"] == "eval"]
    assert accuracies == [0.1, 0.9, 0.5, None]
    assert math.isnan(result.evaluation["accuracy"])
    assert trainer.store.pointed("best") == 4
    train(tmp_path / "without", steps=7)
    assert losses(tmp_path / "with") == losses(tmp_path / "without")


def test_a_best_metric_that_no_evaluation_has_is_named(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "a", evaluate=lambda model: {"loss": 1.0}, steps=1, best_metric="accuracy")
    with pytest.raises(ValueError, match=r"best_metric: expected one of \['loss'\]"):
        trainer.train()
    with pytest.raises(ValueError, match=r"best_metric: expected evaluate with it, .* got 'loss'"):
        make_trainer(tmp_path / "b", steps=1, best_metric="loss", stop_at=0.5)


@pytest.mark.parametrize("changed", [{"best_metric": "accuracy"}, {"best_is": "highest"}, {}])
def test_the_best_of_another_metric_is_forgotten(tmp_path: Path, changed: dict[str, Any]) -> None:
    fields: dict[str, Any] = {"eval_every": 1, "best_metric": "loss", "evaluate": lambda model: {"loss": 0.5}}
    train(tmp_path, steps=2, **fields)
    fields |= {**changed, "evaluate": lambda model: {"loss": 0.5, "accuracy": 0.9}}
    with pytest.warns(UserWarning, match="other settings"):
        trainer = make_trainer(tmp_path, steps=3, **fields)
    trainer.train()
    assert trainer.store.pointed("best") == (3 if changed else 1)


def test_likelihood_evaluation_is_the_models_own() -> None:
    source = RandomSource()
    batches = [source.next_batch() for _ in range(3)]
    model = make_model().eval()
    figures = likelihood_evaluation(batches)(model)
    scores = [model.log_likelihood(batch) for batch in batches]
    nats = sum(float(score.nats.sum()) for score in scores)
    assert figures["bytes"] == sum(int(score.num_bytes.sum()) for score in scores)
    assert figures["bits_per_byte"] == pytest.approx(nats / math.log(2) / figures["bytes"], rel=1e-5)
    assert figures["loss"] == pytest.approx(figures["bits_per_position"] * math.log(2))
    with pytest.raises(ValueError, match="at least one"):
        likelihood_evaluation([])


def test_minutes_end_a_run_that_is_saved_and_goes_on(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, steps=0, schedule_by="time", max_minutes=0.01)
    result = trainer.train()
    assert result.stopped_by == "time"
    assert 0.6 <= result.seconds < 5.0
    rates = [line["learning_rate"] for line in log_lines(tmp_path)]
    assert rates[-1] < 0.2 * max(rates)
    assert trainer.store.pointed("latest") == result.steps
    again = make_trainer(tmp_path, steps=0, schedule_by="time", max_minutes=0.01).train()
    assert again.steps == result.steps
    with pytest.warns(UserWarning, match=r"max_minutes 0.01 → 0.02"):
        longer = make_trainer(tmp_path, steps=0, schedule_by="time", max_minutes=0.02)
    assert longer.seconds == pytest.approx(result.seconds, abs=0.05)
    assert longer.train().steps > result.steps


def test_another_models_run_is_refused(tmp_path: Path) -> None:
    train(tmp_path, steps=1)
    with pytest.raises(ValueError, match="another model"):
        make_trainer(tmp_path, model=make_model(dataclasses.replace(CONFIG, hidden_size=16)))


def test_unusable_devices_and_batches_are_named(tmp_path: Path) -> None:
    for device in ("cuda:99", "gpu"):
        with pytest.raises(ValueError, match=device):
            make_trainer(tmp_path, device=device)
    with pytest.raises(DataError, match="at least one target"):
        train(tmp_path, RandomSource(documents=0))


def test_run_json_says_what_was_trained_on(tmp_path: Path) -> None:
    trainer = train(tmp_path, steps=1)
    run = json.loads((tmp_path / "run.json").read_text())
    assert TrainConfig.from_dict(run["training"]) == trainer.config
    assert type(CONFIG).from_dict(run["model"]) == CONFIG
    assert run["source"] == {"kind": "random", "seed": 0}


def test_log_every_keeps_the_last_step(tmp_path: Path) -> None:
    train(tmp_path, steps=8, log_every=3)
    assert [line["step"] for line in log_lines(tmp_path)] == [3, 6, 8]
    assert log_lines(tmp_path)[0].keys() == {
        "kind", "step", "loss", "bits_per_byte", "learning_rate", "grad_norm", "patches", "documents",
        "patches_per_second", "data_wait_share", "tflops", "seconds",
    }  # fmt: skip


@pytest.mark.parametrize("prefetch", [0, 2])
def test_waiting_for_data_is_measured(tmp_path: Path, prefetch: int) -> None:
    """Batches that take 0.05 s each are waited for, but not if they are read ahead during steps of 0.2 s."""
    trainer = make_trainer(tmp_path, RandomSource(before=lambda _: time.sleep(0.05)), steps=7, prefetch=prefetch)
    trainer.model.register_forward_pre_hook(lambda *_: time.sleep(0.2))
    result = trainer.train()
    lines = log_lines(tmp_path)
    waits = [line["data_wait_share"] * line["patches"] / line["patches_per_second"] for line in lines]
    if prefetch:
        assert waits[0] > 0.04, "nothing is read ahead of the first step"
        assert min(waits[1:]) < 0.02
    else:
        assert min(waits) > 0.04
    seconds = sum(line["patches"] / line["patches_per_second"] for line in lines)
    assert result.data_wait_share == pytest.approx(sum(waits) / seconds)


def test_the_bar_fits_80_columns() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=80, color_system=None)
    with ProgressBar(100_000, console=console) as progress:
        figures = StepFigures(99_999, 1.25, 1.8, 0.75, 1e-3, 0.5, 90, 9, 0.98, 5000.0, 0.003, 0.1, 0.4, 300.0)
        progress.update(figures, 0.8)
    lines = re.sub(r"\x1b\[[^A-Za-z]*[A-Za-z]", "", stream.getvalue()).replace("\r", "\n").splitlines()
    assert max(map(len, lines)) <= 80
    assert all(part in lines[-1] for part in (" 80%", "step 99999/100000", "loss 1.2500", "bits/byte", "75.0% right"))
    assert "MFU" not in lines[-1], "the least important figures are left out"


def test_the_loss_shown_is_a_mean_of_the_losses() -> None:
    stream = io.StringIO()
    ticks = iter(range(0, 10_000, 100))
    losses = [8.0, 4.0, 2.0]
    with ProgressBar(20, console=Console(file=stream, width=160), clock=lambda: float(next(ticks))) as progress:
        for step, loss in enumerate(losses, 1):
            progress.update(
                StepFigures(step, loss, None, None, 1e-3, 0.5, 90, 9, None, 5000.0, 0.0, 0.1, None, 300.0), 0.5
            )
    texts = re.findall(r"loss ([\d.]+)", stream.getvalue())
    weights = [0.81, 0.9, 1.0]
    expected = sum(map(operator.mul, weights, losses)) / sum(weights)
    assert texts[0] == "8.0000"
    assert float(texts[-1]) == pytest.approx(expected, abs=1e-4)
    assert expected < sum(losses) / 3, "later losses weigh more; without correction it would be 7.05"


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_shows_every_figure(terminal: bool) -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=160, markup=False, highlight=False)
    ticks = iter(range(1000))
    with ProgressBar(20, console=console, line_seconds=10, clock=lambda: float(next(ticks))) as progress:
        for step in range(1, 21):
            figures = StepFigures(step, 1.25, 1.8, 0.75, 1e-3, 0.5, 90, 9, 0.98, 5000.0, 0.003, 0.1, 0.4, 300.0)
            progress.update(figures, 0.8 if terminal or step < 20 else 1.0)
        progress.message("[note]")
    text = stream.getvalue()
    parts = [
        "loss 1.2500",
        "1.8000 bits/byte",
        "75.0% right",
        "5,000 patches/s",
        "data 0.3%",
        "MFU 40.0%",
        "98.0% full",
    ]
    for part in (*parts, "lr 1.00e-03", "1:15 left", "20/20", "[note]"):
        assert part in text
    if not terminal:
        assert "\x1b" not in text
        assert text.count("\n") < 10
    assert [clock_text(x) for x in (-1, 59.6, 3661)] == ["0:00", "1:00", "1:01:01"]
