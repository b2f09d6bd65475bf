"""Checkpoints: weights, configs and paths that are not a model's are refused by name."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from support.checkpoints import (
    EMBEDDING,
    LABELS,
    PATCH_WPE,
    SMALL,
    Weights,
    assert_refused,
    change_config,
    make_classifier_weights,
    make_weights,
    same,
)
from support.hub import LocalHub

from bgpt_fast.checkpoint.load import load_weights
from bgpt_fast.checkpoint.save import save_released, save_weights
from bgpt_fast.checkpoint.schema import LM_HEAD, WTE, CheckpointError, validate_state_dict


def without(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda entries: {key: value for key, value in entries.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without(WTE), rf"1 \({WTE}\) missing and none unexpected"),
        (lambda w: {**w, "extra": torch.ones(1)}, r"none missing and 1 \(extra\) unexpected"),
        (lambda w: {}, r"missing: expected|\d+ \(.*, …\) missing"),
        (lambda w: {**w, EMBEDDING: w[EMBEDDING][:, 1:]}, r"patch_embedding\.weight: expected shape \[8, 514\], got"),
        (lambda w: {**w, WTE: w[WTE].int()}, r"wte\.weight: expected a float of 16 to 64 bits, got torch\.int32"),
        (lambda w: {**w, WTE: [1.0]}, r"wte\.weight: expected a tensor, got list"),
        (lambda w: {**w, LM_HEAD: w[WTE] + 1}, r"lm_head\.weight: expected the values of .*wte\.weight"),
        (lambda w: {**w, LM_HEAD: w[WTE][:1]}, r"lm_head\.weight: expected shape \[257, 8\], got \[1, 8\]"),
    ],
)
def test_wrong_weights_are_named_and_never_saved(
    tmp_path: Path, weights: Weights, change: Callable[[Weights], Weights], message: str
) -> None:
    wrong = change(weights)
    with pytest.raises(CheckpointError, match=message):
        validate_state_dict(SMALL, wrong)
    with pytest.raises(CheckpointError, match=message):
        save_weights(tmp_path / "model", SMALL, wrong)
    with pytest.raises(CheckpointError, match=message):
        save_released(tmp_path / "model" / "a.pth", SMALL, wrong)
    assert not (tmp_path / "model").exists()


def test_a_part_of_weights_in_several_files_is_named(tmp_path: Path, weights: Weights, hub: LocalHub) -> None:
    names = sorted(weights)
    folder = hub.root / "owner" / "bgpt"
    folder.mkdir(parents=True)
    parts = [f"model-0000{part}-of-00002.safetensors" for part in (1, 2)]
    for part, its in zip(parts, (names[:3], names[3:]), strict=True):
        safetensors.torch.save_file({name: weights[name] for name in its}, folder / part)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {}}))
    message = r"expected the weights in one file, got model\S+ of several \(shards\); write them as one"
    for path in ("owner/bgpt", folder, index, *(folder / part for part in parts)):
        assert_refused(path, message)
    whole = tmp_path / "run-1-of-3.safetensors"
    safetensors.torch.save_file(weights, whole)
    assert same(load_weights(whole).state_dict, weights), "a name alone is no fault"


def test_two_tensors_of_one_name_are_refused_unless_equal(tmp_path: Path, weights: Weights) -> None:
    path = tmp_path / "a.pth"
    twice = {**weights, f"module.{PATCH_WPE}": weights[PATCH_WPE].clone()}
    torch.save(twice, path)
    assert same(load_weights(path).state_dict, weights)
    twice[f"module.{PATCH_WPE}"] += 1
    torch.save(twice, path)
    assert_refused(path, rf"{PATCH_WPE}: expected one tensor, got several .* as module\.")


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_are_not_finite_are_named(
    tmp_path: Path, weights: Weights, value: float, dtype: torch.dtype
) -> None:
    weights = {name: tensor.to(dtype) for name, tensor in weights.items()}
    weights[PATCH_WPE][1, :3] = value
    message = rf"{PATCH_WPE}: expected finite weights, got 3 of 40 that are NaN or infinite; .*diverged"
    with pytest.raises(CheckpointError, match=f"save: {message}"):
        save_weights(tmp_path / "model", SMALL, weights)
    with pytest.raises(CheckpointError, match=f"save: {message}"):
        save_released(tmp_path / "model.pth", SMALL, weights)
    assert not list(tmp_path.iterdir())
    safetensors.torch.save_file(weights, tmp_path / "a.safetensors")
    torch.save(weights, tmp_path / "a.pth")
    for path in tmp_path.iterdir():
        assert_refused(path, message)
    weights[EMBEDDING][0, 0] = value
    torch.save(weights, tmp_path / "a.pth")
    assert_refused(tmp_path / "a.pth", "others in 1 .* more tensors")


def test_storage_dtypes_that_do_not_hold_the_values(tmp_path: Path, weights: Weights) -> None:
    weights[WTE] = weights[WTE] * 1e6
    with pytest.raises(CheckpointError, match=r"wte\.weight: expected values that torch\.float16 holds"):
        save_weights(tmp_path / "model", SMALL, weights, dtype=torch.float16)
    with pytest.raises(CheckpointError, match=r"dtype: expected float32.*got torch\.int8"):
        save_weights(tmp_path / "model", SMALL, weights, dtype=torch.int8)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("style", ["safetensors", "pth"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without(EMBEDDING), r"patch_embedding\.weight: expected a tensor.*got none"),
        (lambda w: {**w, EMBEDDING: torch.ones(8, 513)}, r"expected shape \[D, S·257\], got \[8, 513\]"),
        (lambda w: {**w, EMBEDDING: torch.ones(8)}, r"patch_embedding\.weight: expected shape \[·, ·\], got \[8\]"),
        (lambda w: {**w, EMBEDDING: torch.ones(0, 514)}, r"expected shape \[·, ·\], got \[0, 514\]"),
        (lambda w: {**w, EMBEDDING: torch.ones(8, 257)}, r"wpe\.weight: expected shape \[2, 8\], got \[3, 8\]"),
        (lambda w: {**w, PATCH_WPE: torch.ones(1, 8)}, r"patch_length: expected 2…2,147,483,647, got 1"),
        (lambda w: {k.replace("h.1.", "h.7."): v for k, v in w.items()}, r"h\.1\..* missing and .*h\.7\..* unexpected"),
    ],
)
def test_files_of_other_models_are_named(
    tmp_path: Path, weights: Weights, change: Callable[[Weights], Weights], message: str, style: str
) -> None:
    path = tmp_path / f"other.{style}"
    wrong = change(weights)
    safetensors.torch.save_file(wrong, path) if style == "safetensors" else torch.save(wrong, path)
    assert_refused(path, message)


def test_a_config_that_the_tensors_contradict(tmp_path: Path, weights: Weights) -> None:
    path = tmp_path / "a.safetensors"
    for field, value, message in (
        ("patch_num_layers", 4000, "patch_num_layers: expected 4000 as its config says, got tensors of 2"),
        ("hidden_size", 16, "hidden_size: expected 16 as its config says, got tensors of 8"),
        ("dropout", 2.0, "dropout: expected 0 ≤ dropout < 1"),
        ("unheard_of", 1, "unknown fields"),
    ):
        text = json.dumps({**SMALL.to_dict(), field: value})
        safetensors.torch.save_file(weights, path, metadata={"bgpt_config": text})
        assert_refused(path, message)
    for text, message in (
        ("[" * 10**5, "64 deep"),
        ("{", "bgpt_config: expected JSON.*damaged"),
        ("[]", "expected the fields of BGPTConfig, got list"),
    ):
        safetensors.torch.save_file(weights, path, metadata={"bgpt_config": text})
        assert_refused(path, message)


def test_paths_that_are_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"text")
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "empty.safetensors").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe.pth")
    for name, message in (
        ("a.txt", "got a file of another kind"),
        ("pipe.pth", "got a file of another kind"),
        ("gone", "got nothing there"),
        ("gone.pth", "got nothing there"),
        ("empty.pth", "expected a zip archive"),
        ("empty.safetensors", "expected a safetensors file"),
        ("folder", r"config\.json: expected a file as save_pretrained writes it, got none"),
    ):
        assert_refused(tmp_path / name, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("sha256"), "expected the fields"),
        (lambda m: {**m, "more": 1}, "expected the fields"),
        (lambda m: {**m, "format": "other"}, "expected the fields"),
        (lambda m: [m], "expected the fields"),
        (lambda m: {**m, "version": 2}, "version: expected 1, got 2; update"),
        (lambda m: {**m, "previous": 3}, "previous: expected null"),
        (lambda m: {**m, "sha256": "0" * 64}, "expected SHA-256 000.* damaged"),
        (lambda m: {**m, "sha256": None}, "expected SHA-256 None"),
        (lambda m: {**m, "config": {**m["config"], "dropout": 0.1}}, "config: expected .*restore it"),
        (lambda m: {**m, "config": {**m["config"], "num_heads": 3}}, "num_heads: expected a divisor"),
        (lambda m: {**m, "config": 1}, "config: expected the fields of BGPTConfig, got int"),
        (lambda m: {**m, "labels": {"a.bin": 0}}, "labels: expected None as in"),
    ],
)
def test_a_changed_config_json_is_refused(folder: Path, change: Callable[[dict[str, Any]], Any], message: str) -> None:
    change_config(folder, change)
    assert_refused(folder, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["labels"].update({"a.bin": 2, "µ.md": 0}) or m, "labels: expected .* as in model.*, got {'µ"),
        (without("labels"), r"labels: expected .* as in model.*, got None"),
        (lambda m: {**m, "labels": {"a.bin": 0}}, "labels: expected .* as in"),
        (lambda m: {**m, "labels": {"a.bin": 0, "b": 2}}, "labels: expected class names with the indices"),
        (lambda m: {**m, "labels": None}, "labels: expected a dict, got NoneType"),
    ],
)
def test_changed_labels_in_config_json_are_refused(
    classifier: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    change_config(classifier, change)
    assert_refused(classifier, message)


def test_config_json_that_is_no_json_or_huge(folder: Path) -> None:
    path = folder / "config.json"
    for content in (b"", b"\xff", b"{", b"[" * 10**5):
        path.write_bytes(content)
        assert_refused(folder, "expected JSON|expected text in UTF-8|64 deep")
    os.truncate(path, 2**40)
    assert_refused(folder, "expected at most 1,048,576 bytes")


def test_missing_weights_are_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert_refused(folder, r"model\.safetensors: expected the weights")


@pytest.mark.parametrize("content", [3, ["model"], {"model": 3}, {"model": {1: torch.ones(1)}}, {"weights": {}}, {}])
def test_released_files_without_weights(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "a.pth"
    torch.save(content, path)
    assert_refused(path, r"a\.pth.*expected")


@pytest.mark.parametrize(
    ("labels", "change", "message"),
    [
        (None, dict, r"the \d+ tensors of a bGPT model, .* and 2 \(classifier\.weight, classifier\.bias\) unexpected"),
        ({"a": 0}, dict, r"classifier\.weight: expected shape \[1, 8\], got \[3, 8\]"),
        ({"a": 1}, dict, "save: labels: expected class names"),
        (LABELS, lambda w: {**w, "classifier.bias": torch.ones(2)}, r"bias: expected shape \[3\], got \[2\]"),
        (LABELS, lambda w: {**w, LM_HEAD: torch.ones(257, 8)}, "1 .*lm_head.* unexpected"),
        (LABELS, lambda w: {**w, WTE: torch.ones(257, 8)}, "1 .*wte.* unexpected"),
        (LABELS, lambda w: make_weights(), r"tensors of a bGPT classifier, got 2 \(classifier"),
    ],
)  # fmt: skip
def test_wrong_classifiers_are_named_and_never_saved(
    tmp_path: Path, labels: dict[str, int] | None, change: Callable[[Weights], Weights], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        save_weights(tmp_path / "model", SMALL, change(make_classifier_weights()), labels=labels)
    assert not (tmp_path / "model").exists()


def test_bare_classifier_files_want_their_labels(tmp_path: Path, hub: LocalHub) -> None:
    weights = make_classifier_weights()
    safetensors.torch.save_file(weights, tmp_path / "bare.safetensors")
    (hub.root / "owner" / "single").mkdir(parents=True)
    torch.save({"model": weights}, hub.root / "owner" / "single" / "weights.pth")
    for source in (tmp_path / "bare.safetensors", "owner/single", "owner/single/weights.pth"):
        assert_refused(source, "expected a label map beside the weights of a classifier")
        loaded = load_weights(source, labels=LABELS)
        assert loaded.labels == LABELS
        assert same(loaded.state_dict, weights)
