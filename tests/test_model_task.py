"""What a model was trained for is stored with its weights, and read back; weights without it load."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.cli import CONFIG

from bgpt_fast import BGPT, BGPTForClassification
from bgpt_fast.checkpoint import CheckpointError, ModelTask, load_weights
from bgpt_fast.checkpoint.task import parse_task
from bgpt_fast.data import FileSource, LabelledSource, MixedSource, PairSource
from bgpt_fast.tasks.cpu_states import CPUStateSource

MACHINE = ModelTask.of("cpu-states", extensions=["bin"], machine=(2, 64))
TEXT = ModelTask.of("generation", extensions=["txt", "", "txt"])


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    folder.mkdir()
    for index in range(20):
        (folder / f"one_{index}.abc").write_bytes(b"a" * 20)
        (folder / f"one_{index}.mid").write_bytes(b"b" * 20)
    return folder


def test_sources_state_their_task(files: Path) -> None:
    single = FileSource([files], CONFIG, 16)
    assert single.task == ModelTask(("generation",), ("abc", "mid"))
    assert PairSource([files], "abc->mid", CONFIG, 16).task.conversions == ("abc->mid",)
    assert PairSource([files], "abc&mid", CONFIG, 16).task.conversions == ("abc->mid", "mid->abc")
    assert LabelledSource([files], CONFIG, 16).task.tasks == ("classification",)
    machine = CPUStateSource(CONFIG, num_registers=2, memory_size=16, max_program=4)
    assert machine.task.machines == ((2, 16),)
    mixed = MixedSource([single, machine], [1, 1]).task
    assert mixed == ModelTask(("cpu-states", "generation"), ("abc", "bin", "mid"), (), machine.task.machines)


@pytest.mark.parametrize("task", [MACHINE, TEXT, MACHINE | TEXT, None])
def test_the_task_is_saved_with_the_weights(task: ModelTask | None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    for model in (BGPT(CONFIG), BGPTForClassification(CONFIG, {"a.txt": 0})):
        model.task = task
        model.save_pretrained(tmp_path)
        assert load_weights(tmp_path).task == task
        assert load_weights(tmp_path / "model.safetensors").task == task
        (tmp_path / "alone.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes())
        assert type(model).from_pretrained(tmp_path / "alone.safetensors").task == task
    manifest = json.loads((tmp_path / "config.json").read_text())
    assert ("task" in manifest) == (task is not None), "weights of unknown task are written as by earlier versions"


def test_a_changed_task_is_damage(tmp_path: Path) -> None:
    model = BGPT(CONFIG)
    model.task = TEXT
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"txt"', '"wav"'))
    with pytest.raises(CheckpointError, match=r"task: expected generation .* the file was changed"):
        load_weights(tmp_path)


@pytest.mark.parametrize(
    "fields",
    [
        *([], "generation", {}, {**TEXT.to_dict(), "more": 1}, {**TEXT.to_dict(), "tasks": ["flying"]}),
        *({**TEXT.to_dict(), "tasks": []}, {**TEXT.to_dict(), "extensions": [1]}),
        *({**TEXT.to_dict(), "machines": [{"num_registers": "2", "memory_size": 64}]},),
        *({**TEXT.to_dict(), "machines": [{"num_registers": 2}]}, {**TEXT.to_dict(), "extensions": None}),
    ],
)
def test_other_forms_are_refused(fields: object) -> None:
    with pytest.raises(CheckpointError, match=r"file: task: .*restore the file"):
        parse_task(fields, "file")
    assert parse_task(TEXT.to_dict(), "file") == TEXT


def test_text_of_tasks() -> None:
    assert (
        str(MACHINE | TEXT) == "cpu-states (2 registers, 64 bytes of memory) and generation (no extension, .bin, .txt)"
    )
    assert str(ModelTask.of("conversion", conversions=["abc->mid"])) == "conversion (abc->mid)"
    many = ModelTask.of("generation", extensions=map(str, range(300)))
    assert many.extensions == (), "too many to store"
    assert (many | TEXT).extensions == ()
