"""Memory that runs out is a named error with sizes, and a smaller batch then works in the same process."""

from __future__ import annotations

import dataclasses
import errno
import gc
import random
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from support.cli import CommandLine
from support.memory import memory_limit
from support.training import fingerprint, losses
from torch import Tensor

from bgpt_fast import BGPT, BGPTConfig, BGPTForClassification, Generator, PackedPatches, Prompt
from bgpt_fast.checkpoint.save import safetensors_parts
from bgpt_fast.data import FileSource
from bgpt_fast.generation.decoders import base
from bgpt_fast.generation.decoders.base import make_decoder
from bgpt_fast.generation.scoring import ByteStreams, score
from bgpt_fast.memory import OutOfMemoryError, is_out_of_memory, is_shortage, named_out_of_memory
from bgpt_fast.tasks.batch_scores import score_batch
from bgpt_fast.tasks.classification import predict
from bgpt_fast.training import TrainConfig, Trainer, likelihood_evaluation
from bgpt_fast.training.checkpoint_store import CheckpointStore, CheckpointWriteError, RunState

CONFIG = BGPTConfig(patch_size=16, patch_length=64, hidden_size=32, patch_num_layers=1, byte_num_layers=1, num_heads=2)
LARGE, SMALL = 4000, 3
"""Documents of 58 patches; the activations of a layer of 4,000 take over 100 MB."""
MEGABYTES = 60


def documents(count: int) -> list[tuple[str, bytes]]:
    return [("bin", random.Random(index % 100).randbytes(900)) for index in range(count)]


def model(width: int = 32) -> BGPT:
    torch.manual_seed(0)
    return BGPT(dataclasses.replace(CONFIG, hidden_size=width))


def log_likelihood(count: int) -> object:
    return model().log_likelihood(PackedPatches.from_bytes(documents(count), CONFIG)).nats.tolist()[:SMALL]


def evaluate(count: int) -> object:
    return likelihood_evaluation([PackedPatches.from_bytes(documents(count), CONFIG)])(model())


def score_files(count: int) -> object:
    return score_batch(model(), PackedPatches.from_bytes(documents(count), CONFIG)).nats.tolist()


def classify(count: int) -> object:
    torch.manual_seed(0)
    classifier = BGPTForClassification(CONFIG, {"a": 0, "b": 1})
    return predict(classifier, documents(count), patches_per_batch=60 * count)


def generate(count: int) -> object:
    return Generator(model(128), max_batch=count).generate([Prompt("bin", data) for _, data in documents(count)])


def logits(count: int) -> object:
    return [rows.tolist() for rows in score(model(128), documents(count), max_batch=count)]


def stream(count: int) -> object:
    return ByteStreams(model(128), ["bin"] * count).logits(range(count)).tolist()


CALLS: dict[str, tuple[Callable[[int], object], str]] = {
    "log_likelihood": (
        log_likelihood,
        "log_likelihood of {patches} patches in {count} documents.*pass fewer documents",
    ),
    "evaluation in training": (evaluate, "the evaluation of {patches} patches in {count} .*; lower patches_per_batch"),
    "evaluation": (score_files, "the scores of {patches} patches in {count} documents.*; lower patches_per_batch"),
    "classification": (classify, "classification of {patches} patches in .* documents.*; lower patches_per_batch"),
    "generation": (
        generate,
        ".*{count} sequences of 64 patches.*; lower max_batch or max_new_bytes, or set",
    ),
    "scoring": (logits, "scoring {count} documents of up to 5. patches at once: .*; lower max_batch"),
    "byte streams": (stream, "scoring {count} documents of up to 6. patches at once: .*; lower max_batch"),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_batch_that_is_too_large_is_named_and_a_smaller_one_works(name: str) -> None:
    call, message = CALLS[name]
    expected = call(SMALL)
    gc.collect()
    with memory_limit(MEGABYTES):
        pattern = message.format(count=f"{LARGE:,}".replace(",", ",?"), patches=r"[\d,]+")
        with pytest.raises(OutOfMemoryError, match=f"^not enough memory for {pattern}") as caught:
            call(LARGE)
        assert ": an allocation failed" in str(caught.value) or "more could not be allocated" in str(caught.value)
        assert call(SMALL) == expected, "in the same process, under the same limit"


def trainer(run: Path, files: Path, patches: int, **fields: Any) -> Trainer:
    source = FileSource(files, CONFIG, patches, seed=0)
    config = TrainConfig(**{"steps": 4, "device": "cpu", "tensorboard": False, "prefetch": 0, "threads": 1, **fields})
    return Trainer(model(), source, config, run, show_progress=False)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "files").mkdir()
    for index, (_, data) in enumerate(documents(600)):
        (tmp_path / "files" / f"{index}.bin").write_bytes(data)
    return tmp_path / "files"


def test_a_step_that_is_too_large_is_named_and_a_smaller_one_works(tmp_path: Path, files: Path) -> None:
    large = trainer(tmp_path / "run", files, 58 * 580)
    message = (
        r"the gradients of a batch of 33,\d{3} patches in \d+ documents, 3\d,\d{3} targets, with a model of [\d,]+ "
        r"parameters: \d+ bytes more could not be allocated, the process has [\d,]+ MB in use; "
        "lower patches_per_batch or targets_per_step, or set activation_checkpointing$"
    )
    before = [parameter.detach().clone() for parameter in large.model.parameters()]
    with memory_limit(MEGABYTES):
        for _ in range(2):
            with pytest.raises(OutOfMemoryError, match=message):
                large.train()
        assert all(torch.equal(*pair) for pair in zip(large.model.parameters(), before, strict=True))
        assert all(parameter.grad is None for parameter in large.model.parameters())
        small = trainer(tmp_path / "small", files, 100)
        assert small.train().steps == 4


class Grows:
    """A source whose batches are too large from the N-th on, until it is told otherwise."""

    def __init__(self, large_from: int | None) -> None:
        self.position, self.large_from = 0, large_from

    def next_batch(self) -> PackedPatches:
        self.position += 1
        is_large = self.large_from is not None and self.position > self.large_from
        return PackedPatches.from_bytes(documents(600 if is_large else SMALL), CONFIG)

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]

    def describe(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_steps_before_are_saved_and_the_run_goes_on_as_if_nothing_had_been(
    tmp_path: Path, accumulation: int
) -> None:
    config = TrainConfig(
        steps=6, device="cpu", tensorboard=False, prefetch=0, threads=1, save_every=0, accumulation=accumulation
    )
    dropout = BGPTConfig.from_dict(CONFIG.to_dict() | {"dropout": 0.1})

    def run(name: str, large_from: int | None) -> Trainer:
        torch.manual_seed(0)
        return Trainer(BGPT(dropout), Grows(large_from), config, tmp_path / name, show_progress=False)

    straight = run("straight", None)
    straight.train()
    # With two batches a step, the first of step 4 has drawn its dropout when the second one fails.
    failed = run("run", 3 * accumulation + accumulation - 1)
    with memory_limit(MEGABYTES), pytest.raises(OutOfMemoryError) as caught:
        failed.train()
    assert caught.value.__notes__ == [f"saved in {failed.store.path(3)}: start the same run again to go on"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = run("run", None)
    assert again.step == 3
    again.train()
    assert fingerprint(again) == fingerprint(straight)
    assert losses(tmp_path / "run") == losses(tmp_path / "straight")
    # So does the same trainer, whose source now gives smaller batches.
    failed.source.large_from = None
    failed.train()
    assert fingerprint(failed) == fingerprint(straight)


def test_an_update_that_fails_halfway_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Trainer(
        model(), Grows(None), TrainConfig(steps=4, device="cpu", tensorboard=False, prefetch=0), tmp_path / "run"
    )
    step, calls = run._optimizers.step, [0]

    def fails(*arguments: Any) -> None:
        calls[0] += 1
        if calls[0] == 3:
            torch.empty(10**15)
        step(*arguments)

    monkeypatch.setattr(run._optimizers, "step", fails)
    with pytest.raises(OutOfMemoryError, match=r"the optimizer's update of [\d,]+ parameters: 4000000000000000 b") as e:
        run.train()
    assert e.value.__notes__ == [
        "the update was not complete: make a new Trainer, which goes on from the last checkpoint"
    ]
    assert run.store.steps() == []


def test_a_checkpoint_that_does_not_fit_into_memory_leaves_the_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path)
    state = RunState(CONFIG, model().state_dict(), {}, {"torch": torch.get_rng_state()}, {"step": 1})
    store.save(1, state)
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 b")):
        with monkeypatch.context() as patch:
            patch.setattr("bgpt_fast.checkpoint.save.safetensors_parts", _raises(error))
            with pytest.raises(CheckpointWriteError, match=r"step 2 not written.*earlier checkpoints are intact"):
                store.save(2, state)
    assert (store.steps(), store.pointed("latest")) == ([1], 1)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    with monkeypatch.context() as patch:
        patch.setattr("bgpt_fast.checkpoint.save.safetensors_parts", _raises(RuntimeError("a mistake in the code")))
        with pytest.raises(RuntimeError, match="a mistake"):
            store.save(2, state)


def _raises(error: BaseException) -> Callable[..., Any]:
    def call(*_: object, **__: object) -> Any:
        raise error

    return call


def test_what_is_and_is_not_out_of_memory() -> None:
    for allocate in (lambda: torch.empty(10**15), lambda: np.empty(10**15), lambda: bytes(10**15)):
        with pytest.raises((MemoryError, RuntimeError)) as caught:
            allocate()  # type: ignore[no-untyped-call]
        assert is_out_of_memory(caught.value)
    assert is_out_of_memory(RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))
    with pytest.raises(RuntimeError, match=r"^shapes$"), named_out_of_memory(lambda: "x"):
        raise RuntimeError("shapes")


def test_the_tensors_of_the_failed_calls_are_freed() -> None:
    """Without this, the caught error keeps them, and the smaller batch has no memory either."""
    references: list[weakref.ref[Tensor]] = []

    def fails() -> None:
        tensor = torch.zeros(1000)
        references.append(weakref.ref(tensor))
        torch.empty(10**15)

    with pytest.raises(RuntimeError) as plain:
        fails()
    with pytest.raises(OutOfMemoryError) as named, named_out_of_memory(lambda: "a test", "a", "b", advice="do c"):
        fails()
    alive = [reference() is not None for reference in references]
    assert alive == [True, False]
    assert plain.value.__traceback__ is not None
    assert str(named.value).startswith("not enough memory for a test: 4000000000000000 bytes more could not be allo")
    assert str(named.value).endswith("MB in use; lower a or b, or do c")
    assert named.value.text({"a": "--a"}).endswith("; lower --a or b, or do c")


def test_saving_weights_needs_no_memory_of_their_size(tmp_path: Path) -> None:
    """The safetensors library takes twice their size, and ends the process, or hangs, where that is missing."""
    tensors = {"a": torch.arange(24 << 20, dtype=torch.float32)}  # 101 MB
    with memory_limit(10), open(tmp_path / "a.safetensors", "wb") as file:
        file.writelines(safetensors_parts(tensors))
    assert torch.equal(safetensors.torch.load_file(tmp_path / "a.safetensors")["a"], tensors["a"])


@pytest.mark.parametrize(
    ("place", "error", "message"),
    [
        ("threading.Thread.start", RuntimeError("can't start new thread"), "the next batches of at most 3,000 patches"),
        ("bgpt_fast.cli.train.TrainData", MemoryError(), "a run with batches of 3,000 patches"),
    ],
)
def test_the_size_of_batches_is_named_wherever_training_runs_out(
    tmp_path: Path,
    files: Path,
    cli: CommandLine,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    error: Exception,
    message: str,
) -> None:
    monkeypatch.setattr(place, _raises(error))
    words = ["--data", files, "--output", tmp_path / "run", "--eval-share", 0, "--patches-per-batch", 3000]
    text = cli.run("train", *words, "--steps", 1, "--training.device", "cpu", code=1).err
    assert f"bgpt-fast train: OutOfMemoryError: not enough memory for {message}: " in text
    assert "lower --patches-per-batch" in text
    assert "Traceback" not in text


def test_an_inner_name_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "CpuDecoder", _raises(MemoryError("std::bad_alloc")))
    with pytest.raises(MemoryError, match=r"weights and the caches of 2 sequences of 64 patches, 0\.0 GiB: an allocat"):
        Generator(model()).generate([Prompt("bin")] * 2)
    with pytest.raises(MemoryError, match=r"^std::bad_alloc$"):
        make_decoder(model(), 1, 1)


COMMANDS = {
    "evaluate": (["evaluate", "FILES", "--checkpoint", "MODEL"], "lower --patches-per-batch"),
    "classify": (["classify", "MODEL", "FILES"], "lower --patches-per-batch"),
    "generate": (
        ["generate", "--checkpoint", "MODEL", "--count", "9000", "--max-batch", "9000", "--ext", "bin"],
        "lower --max-batch or --max-new-bytes, or set max_memory",
    ),
    "train": (
        ["train", "--data", "FILES", "--model.hidden-size", "256", "--training.device", "cpu"],
        "lower --patches-per-batch or --training.targets-per-step, or set activation_checkpointing",
    ),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_name_their_options(tmp_path: Path, files: Path, cli: CommandLine, command: str) -> None:
    wide = dataclasses.replace(CONFIG, hidden_size=256)
    stored = BGPTForClassification(wide, {"a": 0, "b": 1}) if command == "classify" else BGPT(wide)
    stored.save_pretrained(tmp_path / "model")
    words, advice = COMMANDS[command]
    words = [{"FILES": str(files), "MODEL": str(tmp_path / "model")}.get(word, word) for word in words]
    words += [] if command == "generate" else ["--patches-per-batch", "30000"]
    words += ["--output", str(tmp_path / "output")] if command in ("generate", "train") else []
    # More than the modules take that a command imports.
    with memory_limit(150):
        error = cli.run(*words, code=1).err
    assert f"bgpt-fast {command}: OutOfMemoryError: not enough memory for " in error
    assert advice in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (OSError(errno.ENOMEM, "x"), True),
        (OSError(errno.EMFILE, "x"), True),
        (OSError(errno.EIO, "x"), False),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("shape mismatch"), False),
        (ValueError("x"), False),
    ],
)
def test_a_shortage_is_no_damage(error: Exception, expected: bool) -> None:
    assert is_shortage(error) is expected


def test_what_libraries_say_of_memory_that_runs_out() -> None:
    zstandard = pytest.importorskip("zstandard")
    assert is_out_of_memory(zstandard.ZstdError("zstd compress error: Allocation error : not enough memory"))
    assert is_out_of_memory(OSError("out of memory error when reading image file"))
    assert not is_out_of_memory(FileNotFoundError(errno.ENOENT, "No such file or directory", "out of memory.txt"))
    assert not is_out_of_memory(ValueError("out of memory.txt: expected a number"))
    for text in ("create a primitive", "create a memory object", "execute a primitive"):  # oneDNN's
        assert is_out_of_memory(RuntimeError(f"could not {text}"))
    unsupported = "could not create a primitive descriptor for a matmul primitive"
    assert not is_out_of_memory(RuntimeError(unsupported))
    with pytest.raises(OutOfMemoryError, match="not enough memory for this"), named_out_of_memory(lambda: "this"):
        raise zstandard.ZstdError("zstd compress error: Allocation error : not enough memory")
