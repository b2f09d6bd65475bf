"""Checkpoints: what is saved is what is loaded, the released layout, runs, and hub ids."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from support.checkpoints import (
    LABELS,
    OTHER,
    SMALL,
    Weights,
    assert_refused,
    make_classifier_weights,
    make_weights,
    released_weights,
    same,
)
from support.hub import LocalHub

from benchmarks.hugging_face import HuggingFaceBGPT
from bgpt_fast import BGPT, BGPTConfig, PackedPatches
from bgpt_fast.checkpoint.load import load_weights
from bgpt_fast.checkpoint.save import safetensors_parts, save_released, save_weights, to_released
from bgpt_fast.checkpoint.schema import LM_HEAD, WTE, CheckpointError, validate_state_dict


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_round_trip(tmp_path: Path, weights: Weights, dtype: torch.dtype | None) -> None:
    save_weights(tmp_path / "new" / "model", SMALL, weights, dtype=dtype)
    config, loaded, labels = load_weights(tmp_path / "new" / "model")
    assert config == SMALL
    assert labels is None
    assert same(loaded, {name: tensor.to(dtype or torch.float32) for name, tensor in weights.items()})
    assert loaded[LM_HEAD] is loaded[WTE]
    stored = safetensors.torch.load_file(tmp_path / "new" / "model" / "model.safetensors")
    assert LM_HEAD not in stored, "the tied weight is stored once"
    with safetensors.safe_open(tmp_path / "new" / "model" / "model.safetensors", "pt") as file:
        assert json.loads(file.metadata()["bgpt_config"]) == SMALL.to_dict(), "no label map"
    assert "labels" not in json.loads((tmp_path / "new" / "model" / "config.json").read_bytes())
    assert sorted(path.name for path in (tmp_path / "new" / "model").iterdir()) == ["config.json", "model.safetensors"]


def test_strided_and_shared_tensors_are_stored_as_they_read(tmp_path: Path, weights: Weights) -> None:
    strided = {name: tensor.t().contiguous().t() if tensor.dim() == 2 else tensor for name, tensor in weights.items()}
    flat = torch.cat([tensor.flatten() for tensor in weights.values()])
    pieces = flat.split([tensor.numel() for tensor in weights.values()])
    shared = {name: piece.view(weights[name].shape) for name, piece in zip(weights, pieces, strict=True)}
    for number, variant in enumerate((strided, shared)):
        save_weights(tmp_path / str(number), SMALL, variant)
        assert same(load_weights(tmp_path / str(number)).state_dict, weights)


def test_the_same_weights_make_the_same_file(tmp_path: Path, weights: Weights) -> None:
    save_weights(tmp_path / "a", SMALL, weights)
    save_weights(tmp_path / "b", SMALL, dict(reversed(weights.items())))
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_saving_over_another_model(folder: Path) -> None:
    save_weights(folder, OTHER, make_weights(OTHER))
    assert load_weights(folder).config == OTHER
    assert json.loads((folder / "config.json").read_text())["previous"] is None


def test_safetensors_files_by_themselves(tmp_path: Path, folder: Path, weights: Weights) -> None:
    inside = load_weights(folder / "model.safetensors")
    assert inside.config == SMALL
    lone = tmp_path / "lone.safetensors"
    lone.write_bytes((folder / "model.safetensors").read_bytes())
    config, loaded, _ = load_weights(str(lone))
    assert config == SMALL, "the metadata carry the config, heads included"
    assert same(loaded, weights)
    bare = tmp_path / "bare.safetensors"
    safetensors.torch.save_file(weights, bare)
    inferred = load_weights(bare).config
    assert inferred.to_dict() == {**SMALL.to_dict(), "num_heads": 1, "byte_num_heads": 1}
    (folder / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"config\.json: expected the fields"):
        load_weights(folder / "model.safetensors")


@pytest.mark.parametrize("metadata", [None, {"a é": 'text "\\\n\x01\x7f\u2028'}])
def test_files_are_those_of_the_safetensors_library(metadata: dict[str, str] | None) -> None:
    integers = (
        torch.uint8,
        torch.int8,
        torch.uint16,
        torch.int16,
        torch.uint32,
        torch.int32,
        torch.uint64,
        torch.int64,
    )
    floats = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    values = torch.tensor([[0, 1, 3], [2, 100, 5]])
    tensors: dict[str, torch.Tensor] = {}
    for index, dtype in enumerate((torch.bool, *integers, *floats)):
        for shape, tensor in (
            ("m", values.to(dtype)),
            ("scalar", values[0, 1].to(dtype)),
            ('é"/', values[:0].to(dtype)),
        ):
            tensors[f"{index * 7 % 13}.{shape}"] = tensor.clone()
    for some in (tensors, dict(list(tensors.items())[:4]), {}):
        assert b"".join(safetensors_parts(some, metadata)) == safetensors.torch.save(some, metadata)


def test_parts_of_any_layout_are_stored_by_rows() -> None:
    weight = torch.arange(6.0).reshape(2, 3).requires_grad_()
    expected = safetensors.torch.save({"a": weight.T.contiguous().detach(), "b": weight.detach()})
    assert b"".join(safetensors_parts({"a": weight.T, "b": weight})) == expected
    with pytest.raises(KeyError, match="complex64"):
        safetensors_parts({"a": torch.ones(1, dtype=torch.complex64)})


def test_a_run_and_its_pointers_name_their_checkpoints(tmp_path: Path, weights: Weights) -> None:
    checkpoints = tmp_path / "run" / "checkpoints"
    for name, change in (("step-00000001", 1.0), ("step-00000002", 0.0)):
        save_weights(checkpoints / name, SMALL, {key: tensor + change for key, tensor in weights.items()})
    (checkpoints / "latest").write_text("step-00000002\n")
    (checkpoints / "best").write_text("step-00000001\n")
    for path, name in (
        (tmp_path / "run", "step-00000002"),
        (checkpoints / "latest", "step-00000002"),
        (checkpoints / "best", "step-00000001"),
    ):
        expected = load_weights(checkpoints / name).state_dict
        loaded = load_weights(path).state_dict
        assert all(torch.equal(loaded[key], tensor) for key, tensor in expected.items()), path
    for text in ("step-00000003", "", "../checkpoints/step-00000001"):
        (checkpoints / "latest").write_text(text)
        assert_refused(tmp_path / "run", "latest: expected the name of a checkpoint folder beside it")


@pytest.mark.parametrize("positions", [512, 1024])
@pytest.mark.parametrize("style", ["model", "bare", "module"])
def test_released_files_of_any_style(tmp_path: Path, positions: int, style: str) -> None:
    config = BGPTConfig(patch_length=positions, hidden_size=64, patch_num_layers=2, byte_num_layers=1)
    weights = make_weights(config)
    released = {**weights, LM_HEAD: weights[WTE]}
    released["byte_level_decoder.base.transformer.h.0.attn.bias"] = torch.ones(1, 1, 17, 17, dtype=torch.bool)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(3))]).state_dict()
    others = {"lr_sched": {"last_epoch": 1, "lr_lambdas": [None]}, "epoch": 3, "min_eval_loss": 0.5}
    path = tmp_path / "weights-cpu.pth"
    torch.save(released_weights(released, style, optimizer=optimizer, **others), path)
    loaded = load_weights(path)
    assert loaded.config == config
    assert loaded.config.patch_length == positions
    assert same(loaded.state_dict, weights)


def test_the_papers_model_takes_the_export_strictly(tmp_path: Path) -> None:
    config = BGPTConfig(
        patch_size=4, patch_length=24, hidden_size=32, patch_num_layers=2, byte_num_layers=2, num_heads=4
    )
    weights = make_weights(config)
    exported = to_released(config, weights)
    paper = HuggingFaceBGPT(config).eval()
    paper.load_state_dict(exported, strict=True)
    assert list(exported.keys() - paper.state_dict().keys()) == []
    save_released(tmp_path / "out" / "weights.pth", config, weights)
    saved = torch.load(tmp_path / "out" / "weights.pth", weights_only=True)
    HuggingFaceBGPT(config).load_state_dict(saved["model"], strict=True)
    assert load_weights(tmp_path / "out" / "weights.pth").config == config, "the file carries the heads"
    torch.save({"model": paper.state_dict()}, tmp_path / "paper.pth")
    assert same(load_weights(tmp_path / "paper.pth").state_dict, weights)
    model = BGPT(config).eval()
    model.load_state_dict(exported)
    batch = PackedPatches.from_bytes([("bin", bytes(range(9))), ("", b""), ("txt", bytes(range(100, 133)))], config)
    assert torch.allclose(paper(batch), model(batch).loss, rtol=1e-5, atol=0)
    with pytest.raises(RuntimeError, match="Missing key"):
        paper.load_state_dict({name: exported[name] for name in exported if name != WTE}, strict=True)


def test_right_weights_are_valid(weights: Weights) -> None:
    validate_state_dict(SMALL, weights)
    validate_state_dict(SMALL, {**weights, LM_HEAD: weights[WTE].clone()})
    nan = {name: torch.full_like(tensor, torch.nan) for name, tensor in weights.items()}
    validate_state_dict(SMALL, {**nan, LM_HEAD: nan[WTE].clone()})


@pytest.mark.parametrize("style", ["pth", "safetensors", "save"])
@pytest.mark.parametrize("tied", [(WTE,), (LM_HEAD,), (WTE, LM_HEAD)])
@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"module.{name}",
        lambda name: f"_orig_mod.module.{name}",
        lambda name: f"module._orig_mod.module.{name}",
        lambda name: f"_orig_mod.trainer.module.model.{name}",
        lambda name: name.replace("base.", "_orig_mod.base.module."),
        lambda name: name.replace(".h.0.", ".h.0._checkpoint_wrapped_module._fsdp_wrapped_module."),
    ],
)
def test_names_of_wrapped_models_and_either_tied_name(
    tmp_path: Path, weights: Weights, style: str, tied: tuple[str, ...], rename: Callable[[str], str]
) -> None:
    complete = {
        **weights,
        LM_HEAD: weights[WTE].clone(),
        "patch_level_decoder.base.h.1.attn.masked_bias": torch.ones(1),
    }
    stored = {rename(name): value for name, value in complete.items() if name in tied or name not in (WTE, LM_HEAD)}
    path = tmp_path / f"a.{style}"
    if style == "save":
        save_weights(path, SMALL, stored)
    else:
        safetensors.torch.save_file(stored, path) if style == "safetensors" else torch.save({"model": stored}, path)
    loaded = load_weights(path)
    assert same(loaded.state_dict, weights)
    assert loaded.state_dict.keys() == {*weights, LM_HEAD}


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict"])
def test_weights_beside_other_things(tmp_path: Path, weights: Weights, key: str) -> None:
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    stored = {f"model.{name}": value for name, value in weights.items()}
    torch.save({"epoch": 3, key: stored, "optimizer_state_dict": optimizer}, tmp_path / "a.pth")
    assert same(load_weights(tmp_path / "a.pth").state_dict, weights)


def test_hub_ids(hub: LocalHub, weights: Weights) -> None:
    save_weights(hub.root / "owner" / "folder", SMALL, weights)
    save_released(hub.root / "owner" / "single" / "weights.pth", SMALL, weights)
    for name in ("weights-cpu.pth", "weights-text.pth"):
        save_released(hub.root / "owner" / "bgpt" / name, SMALL, weights)
    for source in ("owner/folder", "owner/single", "owner/bgpt/weights-cpu.pth"):
        assert same(load_weights(source).state_dict, weights), source
    assert_refused("owner/bgpt", r"owner/bgpt: .*2 \(weights-cpu.pth, weights-text.pth\); name one")
    assert_refused("owner/none", r"owner/none: .*no such path, and the hub says: 404")
    assert_refused("owner/bgpt/other.pth", r"(?s)the hub says: .*other\.pth")
    for source in ("owner", "runs/model.pth", "../owner/folder", "/owner/folder", Path("owner/folder")):
        assert_refused(source, "got nothing there")
    (hub.root / "owner" / "folder" / "config.json").write_text("{}")
    assert_refused("owner/folder", "owner/folder, in the cache: .*expected the fields")


def test_a_lone_file_of_a_hub_id_loads_from_the_cache_without_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: Weights
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    assert_refused("owner/bgpt", r"no such path, and the hub says")
    repository = tmp_path / "cache" / "models--owner--bgpt"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    save_released(repository / "snapshots" / ("0" * 40) / "weights.pth", SMALL, weights)
    assert same(load_weights("owner/bgpt").state_dict, weights)
    save_released(repository / "snapshots" / ("0" * 40) / "other.pth", SMALL, weights)
    assert_refused("owner/bgpt", r"got 2 \(other.pth, weights.pth\); name one")


def test_classifiers_round_trip_with_their_labels(tmp_path: Path, classifier: Path) -> None:
    lone = tmp_path / "lone.safetensors"
    lone.write_bytes((classifier / "model.safetensors").read_bytes())
    for source in (classifier, classifier / "model.safetensors", lone):
        config, loaded, labels = load_weights(source)
        assert config == SMALL
        assert same(loaded, make_classifier_weights())
        assert labels == LABELS, "names that are not UTF-8 too"
    assert json.loads((classifier / "config.json").read_bytes())["labels"] == LABELS
    save_weights(tmp_path / "other", SMALL, make_classifier_weights(), labels=dict(reversed(LABELS.items())))
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "other" / name).read_bytes() == (classifier / name).read_bytes(), "one map, one file"
