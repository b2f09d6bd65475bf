"""`bgpt-fast export`: a run's model as a folder, for transformers too, and on a hub."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.cli import CommandLine
from support.hub import LocalHub

from bgpt_fast import BGPT, BGPTConfig, BGPTForClassification

CONFIG = BGPTConfig(patch_size=4, patch_length=16, hidden_size=16, patch_num_layers=1, byte_num_layers=1, num_heads=2)
SIZES = ("--model.hidden-size", "16", "--model.patch-num-layers", "1", "--model.num-heads", "2")
STEPS = ("--training.steps", "2", "--training.max-minutes", "0", "--training.schedule-by", "steps")


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.fixture
def run(tmp_path: Path, cli: CommandLine) -> Path:
    files = tmp_path / "files"
    files.mkdir()
    for index in range(20):
        (files / f"{index}.md").write_bytes(b"hello world " * (index % 3 + 1))
    words = ("--data", files, "--output", tmp_path / "run", "--model.patch-length", "16", "--patches-per-batch", "32")
    cli.run("train", *words, "--eval-share", "0.3", *SIZES, *STEPS, "--training.device", "cpu")
    return tmp_path / "run"


def test_a_run_becomes_a_folder_and_a_repository_with_a_card(
    run: Path, tmp_path: Path, cli: CommandLine, hub: LocalHub
) -> None:
    options = ("--hf", "--license", "cc0-1.0", "--push-to-hub", "owner/mine")
    out = cli.run("export", run, *options, "--output", tmp_path / "folder").out
    assert f"uploaded: {hub.url}/owner/mine/commit/" in out
    expected = BGPT.from_pretrained(run)
    for source in (tmp_path / "folder", "owner/mine"):
        assert same(BGPT.from_pretrained(source), expected)
    card = (hub.root / "owner/mine/README.md").read_text()
    evaluation = json.loads(next(run.glob("checkpoints/step-*/state.json")).read_text())["evaluation"]
    for part in (
        "license: cc0-1.0",
        "# mine",
        "generation (.md)",
        f"{expected.num_parameters():,}",
        "2 steps in ",
        " s, muon, fp32",
        f"| bits per byte on held-out data | {evaluation['bits_per_byte']:.6g} |",
    ):
        assert part in card
    trained = json.loads((run / "run.json").read_text())["source"]["files"]
    assert f"**Data**: {trained} files, " in card
    assert str(tmp_path) not in card, "no path of this machine"
    assert json.loads((tmp_path / "folder/config.json").read_text())["extension"] == "md"
    cli.run("export", run, *options, "--revision", "other", "--dtype", "bfloat16", "--output", tmp_path / "narrow")
    assert next(BGPT.from_pretrained("owner/mine", revision="other").parameters()).dtype == torch.bfloat16
    assert same(BGPT.from_pretrained("owner/mine"), expected)


def test_without_hf_it_is_a_checkpoint_alone(tmp_path: Path, cli: CommandLine) -> None:
    model = BGPTForClassification(CONFIG, {"a": 0, "b": 1})
    model.save_pretrained(tmp_path / "model")
    cli.run("export", tmp_path / "model", "--output", tmp_path / "folder", "--dtype", "bfloat16")
    assert {path.name for path in (tmp_path / "folder").iterdir()} == {"config.json", "model.safetensors"}
    loaded = BGPTForClassification.from_pretrained(tmp_path / "folder")
    assert loaded.labels == model.labels
    assert same(loaded, model.bfloat16())


def test_wrong_use_is_named_before_anything_is_written(tmp_path: Path, cli: CommandLine) -> None:
    BGPT(CONFIG).save_pretrained(tmp_path / "model")
    words = ("export", tmp_path / "model", "--output")
    assert "add --hf" in cli.run(*words, tmp_path / "new", "--push-to-hub", "owner/mine", code=2).err
    assert "expected a new or empty folder" in cli.run(*words, tmp_path / "model", code=2).err
    assert "nothing there" in cli.run("export", tmp_path / "none", "--output", tmp_path / "new", code=2).err
    assert not (tmp_path / "new").exists()
