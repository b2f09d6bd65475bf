"""The paper machine's recipe: parts of documents hold what targets need; a stopped run goes on as it would have."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from support.paths import EXAMPLES

from bgpt_fast import BGPT, BGPTConfig, PackedPatches
from bgpt_fast.config import EOP
from bgpt_fast.tasks.cpu_states import generate, split_of
from bgpt_fast.tasks.cpu_states.machine import OPERATIONS

FOLDER = EXAMPLES / "cpu_states" / "paper_machine"
TINY = {
    "patch_size": 16,
    "patch_length": 322,
    "hidden_size": 288,
    "patch_num_layers": 1,
    "byte_num_layers": 1,
    "num_heads": 4,
    "byte_num_heads": 16,
    "position_init": "sinusoidal",
}


@pytest.fixture
def documents(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("paper_documents")


@pytest.fixture
def learner(documents: ModuleType) -> ModuleType:
    return importlib.import_module("paper_learner")


def tiny_recipe() -> dict[str, Any]:
    recipe = json.loads((FOLDER / "recipe.json").read_text())
    recipe["model"] = TINY
    recipe["precision"] = "fp32"
    recipe["watched_programs"] = 2
    for stage in recipe["stages"]:
        stage["targets"] = 16
        stage["steps"] = 6
        for part in stage["documents"]:
            part["patches"] = 60
    return recipe


@pytest.mark.parametrize(("kind", "width"), [("whole", 0), ("window", 8), ("window", 256), ("placed", 12)])
def test_what_a_target_fetches_is_in_its_document(documents: ModuleType, kind: str, width: int) -> None:
    stream = documents.Stream(BGPTConfig.from_dict(TINY), 5)
    sample = stream.take(kind, 700, width)
    lengths = sample.cu_seqlens.diff().long()
    document = torch.arange(len(lengths)).repeat_interleave(lengths)
    place_of = {pair: row for row, pair in enumerate(zip(document.tolist(), sample.positions.tolist(), strict=True))}
    fetched = 0
    for row in sample.targets.nonzero().flatten().tolist():
        if (sample.patches[row] == EOP).any():
            continue
        step = int(sample.positions[row]) - documents.FIRST_STATE
        memory = sample.patches[place_of[int(document[row]), 1 + (step - 1) // 4]].view(4, 4)
        assert torch.equal(memory[(step - 1) % 4], sample.patches[row, 2:6])
        assert int(sample.patches[row, 0]) == min(step, 255)
        fetched += 1
    assert fetched > 20


def test_small_initial_values_are_common(documents: ModuleType) -> None:
    stream = documents.Stream(BGPTConfig.from_dict(TINY), 5)
    patches = stream.take("placed", 2000, 6, small=1.0).patches
    x, y = documents.operand_values(patches[patches[:, 0] < EOP].numpy())
    assert (np.maximum(x, y) < 16).mean() > 0.3


def test_drawn_programs_hold_the_chosen_operations_and_registers(documents: ModuleType) -> None:
    shares = np.zeros((21, 4))
    shares[9, 1], shares[20, 2] = 0.75, 0.25  # PUSH of a register, MOV with two
    rng = np.random.default_rng(3)
    programs = [documents.draw_program(9, shares, 2, rng) for _ in range(50)]
    assert {split_of(program) for program in programs} == {"train"}
    rows = np.frombuffer(b"".join(programs), np.uint8).reshape(50, 10, 4)
    assert (rows[:, -1] == 0).all()
    assert set(rows[:, :-1, 1].flatten()) == {1, 2}
    assert 0.65 < (rows[:, :-1, 0] == 9).mean() < 0.85
    assert ((rows[:, :-1, 2] > 0) == (rows[:, :-1, 0] == 20)).all()


def test_released_shares_draw_as_the_released_generator_does(documents: ModuleType) -> None:
    rng = np.random.default_rng(4)
    shares = documents.RELEASED_SHARES
    ours = np.frombuffer(b"".join(documents.draw_program(15, shares, 10, rng) for _ in range(400)), np.uint8)
    theirs = generate(400, min_program=16, max_program=16, seed=4)  # HLT counts
    released = np.concatenate([np.frombuffer(trace.program_bytes, np.uint8) for trace in theirs])
    for column in range(4):
        counts = [np.bincount(code.reshape(-1, 4)[:, column], minlength=256)[:21] / 6400 for code in (ours, released)]
        np.testing.assert_allclose(*counts, atol=0.015)


def test_features_of_a_whole_document_are_the_models(documents: ModuleType, learner: ModuleType) -> None:
    config = BGPTConfig.from_dict(TINY)
    model = learner.new_model(config, 3).eval()
    sample = documents.Stream(config, 5).take("whole", 400, 0)
    ours = learner.features(model, sample, torch.device("cpu"))
    batch = PackedPatches(sample.patches, sample.cu_seqlens)
    theirs = model.patch_level_decoder(batch.patches, batch.cu_seqlens, batch.max_seqlen)
    torch.testing.assert_close(ours, theirs)


def test_bytes_left_out_of_the_loss_change_no_other(documents: ModuleType, learner: ModuleType) -> None:
    one = learner.Learner(tiny_recipe(), learner.new_model(BGPTConfig.from_dict(TINY), 1), torch.device("cpu"))
    sample = documents.Stream(one.model.config, 5).take("placed", 80, 9)
    indices = sample.targets.nonzero().flatten()
    patches = sample.patches[indices]
    stage = {"column_weights": [0, *[1] * 15], "repeated_share": 0.3}
    counted = one._counted(sample, indices, stage)
    changed = patches != sample.patches[indices - 1]
    assert not counted[:, 0].any()
    assert counted[:, 6:][changed[:, 6:]].all()
    assert 0.2 < counted[:, 2:][~changed[:, 2:]].float().mean() < 0.4
    with torch.no_grad():
        hidden = learner.features(one.model, sample, torch.device("cpu"), rows=indices - 1)
        every = one.model.byte_level_decoder.nats(hidden, patches)
        few = learner.byte_nats(one.model.byte_level_decoder, hidden, patches, counted)
    torch.testing.assert_close(few, every[counted])
    torch.testing.assert_close(one._nats(sample, indices, counted).detach(), few)
    assert one._counted(sample, indices, stage | {"repeated_share": 1.0})[:, 1:].all()


def test_initial_weights_copy_and_fetch_and_are_a_bgpt(documents: ModuleType, learner: ModuleType) -> None:
    weights = importlib.import_module("initial_weights")
    config = BGPTConfig.from_dict(json.loads((FOLDER / "recipe.json").read_text())["model"])
    model = learner.new_model(config, 3).eval()
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    weights.copy_and_fetch(model, 3, copies=True, fetches=True)
    assert {name: value.shape for name, value in model.state_dict().items()} == shapes
    sample = documents.Stream(config, 5).take("whole", 700, 0)
    targets = sample.targets.nonzero().flatten()
    targets = targets[sample.patches[targets, 0] < EOP]
    with torch.no_grad():
        hidden = learner.features(model, sample, torch.device("cpu"))
        choice = model.byte_level_decoder.logits(hidden[targets - 1], sample.patches[targets]).argmax(-1)
    assert (choice == sample.patches[targets])[:, 2:6].float().mean() > 0.9
    assert (choice == sample.patches[targets - 1])[:, 6:].float().mean() > 0.9


def test_the_curriculum_widens_windows_and_moves_on(learner: ModuleType) -> None:
    recipe = json.loads((FOLDER / "from_random.json").read_text())
    recipe["model"] = TINY
    recipe["stages"][0]["until"] = ["right", 0.0]
    for stage in recipe["stages"]:
        stage["targets"] = 8
        stage["documents"] = [{**part, "patches": 20} for part in stage["documents"]]
    one = learner.Learner(recipe, learner.new_model(BGPTConfig.from_dict(TINY), 1), torch.device("cpu"))
    places = []
    for _ in range(7):
        one.step()
        places.append((one.place.stage, one.place.width))
    assert places == [(0, 16), (0, 32), (0, 64), (0, 128), (0, 256), (1, 0), (1, 0)]


def test_a_stopped_run_goes_on_as_it_would_have(learner: ModuleType, tmp_path: Path) -> None:
    recipe = tiny_recipe()

    def fresh() -> Any:
        return learner.Learner(recipe, learner.new_model(BGPTConfig.from_dict(TINY), 1), torch.device("cpu"))

    through = fresh()
    losses = [through.step()["loss"] for _ in range(5)]
    stopped = fresh()
    for _ in range(2):
        stopped.step()
    stopped.save(tmp_path / "state.pt")
    again = fresh()
    again.load(tmp_path / "state.pt")
    assert [again.step()["loss"] for _ in range(3)] == losses[2:]
    for name, value in again.average.items():
        assert torch.equal(value, through.average[name]), name


def test_the_scripts_train_export_go_on_and_score(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(tiny_recipe()))
    run, model = tmp_path / "run", tmp_path / "run" / "model"
    script(["train.py", "--recipe", recipe, "--run", run])
    script(["export.py", "--run", run])
    weights = BGPT.from_pretrained(model)
    assert weights.config == BGPTConfig.from_dict(TINY)
    script(["train.py", "--recipe", recipe, "--run", tmp_path / "other", "--init-from", model])
    curves = [(folder / "curve.jsonl").read_text() for folder in (run, tmp_path / "other")]
    assert curves[1].startswith(curves[0])
    place = torch.load(tmp_path / "other" / "state.pt", weights_only=True)["place"]
    assert place["step"] == json.loads((model / "place.json").read_text())["step"]
    script(["evaluate.py", "--model", model, "--programs", "2", "--free-running", "1"])
    scores = json.loads((model / "scores.json").read_text())
    assert scores["programs"] == 2
    assert 0 <= scores["teacher_forced"]["accuracy"] <= 1


def script(arguments: list[Any]) -> None:
    first, *rest = arguments
    subprocess.run([sys.executable, str(FOLDER / first), *map(str, rest)], check=True, timeout=240)


def test_the_shipped_model_is_small_and_of_the_recipes_sizes() -> None:
    model = BGPT.from_pretrained(FOLDER)
    assert model.config == BGPTConfig.from_dict(json.loads((FOLDER / "recipe.json").read_text())["model"])
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}
    assert (FOLDER / "model.safetensors").stat().st_size < 30e6


def test_operations_that_are_often_wrong_come_most_often(learner: ModuleType) -> None:
    """Of CLR's 64 categories, most are of no instruction and stay at 1, which once made it come more often than ADD."""
    one = learner.Learner(tiny_recipe(), learner.new_model(BGPTConfig.from_dict(TINY), 1), torch.device("cpu"))
    numbers = {operation.name: operation.opcode for operation in OPERATIONS}
    errors = one.errors.view(len(OPERATIONS), 4, -1)
    errors[:, :, 0] = 0.01
    errors[numbers["ADD"], 2, :12] = 0.1
    errors[numbers["ADD"], 3, :12] = 0.3
    weights = one._operation_weights({})
    add, clear = weights[numbers["ADD"]], weights[numbers["CLR"]]
    assert weights.argmax() == 4 * numbers["ADD"] + 3
    assert add[3] > 2 * add[2] > 4 * clear[0]
    errors[numbers["MUL"]] = 1.0  # always wrong, or not seen yet
    assert one._operation_weights({}).argmax() // 4 == numbers["MUL"]
