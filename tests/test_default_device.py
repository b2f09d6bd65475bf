"""A default device that the caller has set changes nothing: neither `with torch.device(…)` nor `set_default_device`."""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.paths import ROOT
from torch import Tensor

from bgpt_fast import BGPT, BGPTConfig, BGPTForClassification, Generator, Prompt
from bgpt_fast.checkpoint.save import save_released
from bgpt_fast.data import FileSource, LabelledSource, MixedSource, PairSource
from bgpt_fast.device import default_cpu
from bgpt_fast.tasks.classification import accuracy_evaluation, predict
from bgpt_fast.tasks.cpu_states import generate, pack_traces, simulate
from bgpt_fast.tasks.evaluation import evaluate_files
from bgpt_fast.training import TrainConfig, Trainer, likelihood_evaluation

CONSTRUCTORS = {
    *("empty", "empty_strided", "full", "ones", "zeros", "arange", "range", "linspace", "logspace", "eye"),
    *("rand", "randn", "randint", "randperm", "normal", "tensor", "as_tensor", "asarray", "scalar_tensor"),
    *("tril_indices", "triu_indices", "sparse_coo_tensor"),
}
"""Functions of torch that make a tensor on the default device."""
OF_MODULES = {"reference.py", "layers.py", "patch_decoder.py", "byte_decoder.py"}
"""Files whose parameters and initial values follow the default device, as those of every torch module do."""


def calls_without_a_device(source: str) -> Iterator[int]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CONSTRUCTORS:
            is_torch = isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"
            if is_torch and not any(keyword.arg in ("device", None) for keyword in node.keywords):
                yield node.lineno


def test_every_tensor_is_made_on_a_named_device() -> None:
    paths = [path for folder in ("bgpt_fast", "kernels") for path in (ROOT / folder).rglob("*.py")]
    assert len(paths) > 150
    lines = [
        f"{path}:{line}"
        for path in paths
        if path.name not in OF_MODULES or "kernels" in path.parts
        for line in calls_without_a_device(path.read_text())
    ]
    assert not lines, "\n".join(lines)


def test_a_call_without_a_device_is_refused() -> None:
    assert list(calls_without_a_device("x = 1\ny = torch.zeros(3, dtype=a)")) == [2]
    assert not list(calls_without_a_device("torch.zeros(3, device=x.device), x.new_zeros(3), torch.ones(2, **kind)"))


CONFIG = BGPTConfig(patch_size=4, patch_length=32, hidden_size=16, patch_num_layers=1, byte_num_layers=1, num_heads=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of two classes and pairs in files/, a model as folder, `.safetensors` and `.pth`."""
    root = tmp_path_factory.mktemp("default_device")
    (root / "files").mkdir()
    for number in range(12):
        (root / "files" / f"{'cat' if number % 2 else 'dog'}_{number}.bin").write_bytes(bytes([number]) * (number + 3))
        (root / "files" / f"cat_{number}.txt").write_bytes(bytes([number]) * 5)
    torch.manual_seed(0)
    model = BGPT(CONFIG)
    model.save_pretrained(root / "model")
    save_released(root / "model.pth", CONFIG, model.state_dict())
    return root


def _load(folder: Path, output: Path) -> Any:
    paths = (folder / "model", folder / "model" / "model.safetensors", folder / "model.pth")
    models = [BGPT.from_pretrained(path) for path in paths]
    models[0].save_pretrained(output / "saved")
    torch.manual_seed(0)
    classifier = BGPTForClassification.from_generative(models[0], {"a": 0, "b": 1})
    classifier.save_pretrained(output / "classifier")
    return [
        model.state_dict()
        for model in (*models, classifier, BGPTForClassification.from_pretrained(output / "classifier"))
    ]


def _read(folder: Path, output: Path) -> Any:
    files = FileSource(folder / "files", CONFIG, 64)
    pairs = PairSource(folder / "files", "bin&txt", CONFIG, 64)
    labelled = LabelledSource(folder / "files", CONFIG, 64).next_batch()
    mixed = MixedSource([files, pairs], [1.0, 1.0]).next_batch()
    traces = pack_traces(generate(3, num_registers=2, memory_size=16, max_program=4), BGPTConfig(patch_length=64))
    return [labelled.labels, *(batch.patches for batch in (files.next_batch(), labelled.batch, mixed, traces))]


def _compute(folder: Path, output: Path) -> Any:
    model = BGPT.from_pretrained(folder / "model")
    batch = FileSource(folder / "files", CONFIG, 64).next_batch()
    loss = model.train()(batch).loss
    loss.backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    return [loss, gradients, model.logits(batch), model.log_likelihood(batch).nats, batch.target_indices()]


def _generate(folder: Path, output: Path) -> Any:
    model = BGPT.from_pretrained(folder / "model")
    prompts = [Prompt("bin", b"ab"), Prompt("txt")]
    greedy, sampled = (Generator(model).generate(prompts, temperature=heat, seed=1) for heat in (0.0, 1.0))
    traces = generate(2, num_registers=2, memory_size=16, max_program=4)
    predicted = simulate(Generator(model), traces, max_new_bytes=20)
    return [[one.data for one in (*greedy, *sampled)], [one.to_bytes() for one in predicted]]


def _score(folder: Path, output: Path) -> Any:
    model = BGPT.from_pretrained(folder / "model")
    report = evaluate_files(model, folder / "files", patches_per_batch=64, resamples=10)
    classifier = BGPTForClassification.from_pretrained(_classifier(folder, output))
    documents = [("bin", b"one"), ("txt", b"two")]
    figures = {name: value for name, value in report.to_dict().items() if "second" not in name}
    return [figures, [(one.label, one.probability) for one in predict(classifier, documents)]]


def _classifier(folder: Path, output: Path) -> Path:
    torch.manual_seed(0)
    BGPTForClassification.from_generative(folder / "model", {"a": 0, "b": 1}).save_pretrained(output / "classifier")
    return output / "classifier"


def _train(folder: Path, output: Path) -> Any:
    config = TrainConfig(steps=2, device="cpu", tensorboard=False, targets_per_step=8, prefetch=2)
    model = BGPT.from_pretrained(folder / "model")
    for steps, optimizer in ((2, "adamw"), (4, "adamw"), (2, "muon")):
        source = FileSource(folder / "files", CONFIG, 64)
        settings = {**config.to_dict(), "steps": steps, "optimizer": optimizer}
        evaluate = likelihood_evaluation([source.next_batch()])
        run = output / optimizer
        Trainer(model, source, TrainConfig.from_dict(settings), run, evaluate, show_progress=False).train()
    labelled = LabelledSource(folder / "files", CONFIG, 64)
    torch.manual_seed(0)
    classifier = BGPTForClassification.from_generative(folder / "model", labelled.labels)
    evaluate = accuracy_evaluation([labelled.next_batch()])
    Trainer(classifier, labelled, config, output / "classes", evaluate, show_progress=False).train()
    return [model.state_dict(), classifier.state_dict()]


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return one.device == other.device == torch.device("cpu") and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)


@contextlib.contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@pytest.mark.filterwarnings("ignore:.*batches shrink")
@pytest.mark.parametrize("work", [_load, _read, _compute, _generate, _score, _train])
def test_the_default_device_changes_nothing(folder: Path, tmp_path: Path, work: Callable[[Path, Path], Any]) -> None:
    expected = work(folder, tmp_path / "cpu")
    with torch.device("meta"):
        assert torch.zeros(1).is_meta
        assert _equal(work(folder, tmp_path / "with"), expected)
    with default_device("meta"):
        assert _equal(work(folder, tmp_path / "set"), expected)


def test_a_new_model_is_on_the_default_device_and_is_not_trained_without_weights(folder: Path, tmp_path: Path) -> None:
    with torch.device("meta"):
        model = BGPT(CONFIG)
        assert all(parameter.is_meta for parameter in model.parameters())
        with default_cpu():
            assert not torch.zeros(1).is_meta
        source = FileSource(folder / "files", CONFIG, 64)
        with pytest.raises(ValueError, match="model: expected weights, got a model without any, on the device meta"):
            Trainer(model, source, TrainConfig(device="cpu"), tmp_path)
    assert not torch.zeros(1).is_meta
