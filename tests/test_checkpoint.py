"""Checkpoints: round trips, the released layout, damage, malice, and failing disks."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import pickle
import random
import shutil
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import safetensors.torch
import torch
from conftest import TINY, random_documents, released_weights
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from support.write_faults import dies_in_step, disk_full, flip, step_fails
from torch import Tensor

from benchmarks.hugging_face import HuggingFaceBGPT
from bgpt_fast import BGPT, BGPTConfig, BGPTForClassification, PackedPatches
from bgpt_fast.checkpoint.load import load_weights
from bgpt_fast.checkpoint.save import save_released, save_weights, to_released
from bgpt_fast.checkpoint.schema import LM_HEAD, WTE, CheckpointError, validate_state_dict
from bgpt_fast.memory import OutOfMemoryError

Weights = dict[str, Tensor]
SMALL = BGPTConfig(patch_size=2, patch_length=5, hidden_size=8, patch_num_layers=2, byte_num_layers=1, num_heads=2)
OTHER = BGPTConfig(patch_size=3, patch_length=9, hidden_size=16, patch_num_layers=1, byte_num_layers=2, num_heads=1)
LABELS = {"a.bin": 0, "caf\udce9.txt": 1, "µ.md": 2}
EMBEDDING = "patch_level_decoder.patch_embedding.weight"
PATCH_WPE = "patch_level_decoder.base.wpe.weight"


def make_weights(config: BGPTConfig = SMALL, seed: int = 0) -> Weights:
    torch.manual_seed(seed)
    weights = BGPT(config).state_dict()
    noisy = {name: tensor + 0.1 * torch.rand_like(tensor) for name, tensor in weights.items() if name != LM_HEAD}
    return {name: tensor.contiguous() for name, tensor in noisy.items()}


def make_classifier_weights() -> Weights:
    torch.manual_seed(0)
    weights = BGPTForClassification(SMALL, LABELS).state_dict()
    return {name: (tensor + 0.1 * torch.rand_like(tensor)).contiguous() for name, tensor in weights.items()}


def same(a: Weights, b: Weights) -> bool:
    a, b = ({k: v for k, v in weights.items() if k != LM_HEAD} for weights in (a, b))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def weights() -> Weights:
    return make_weights()


@pytest.fixture
def folder(tmp_path: Path, weights: Weights) -> Path:
    save_weights(tmp_path / "model", SMALL, weights)
    return tmp_path / "model"


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    save_weights(tmp_path / "classifier", SMALL, make_classifier_weights(), labels=LABELS)
    return tmp_path / "classifier"


def assert_refused(source: Path | str, message: str = "") -> None:
    """Checks that the error has this message and names the source."""
    with pytest.raises(CheckpointError, match=message) as caught:
        load_weights(source)
    assert str(source) in str(caught.value)


def is_refused(path: Path) -> bool:
    try:
        load_weights(path)
    except CheckpointError:
        return True
    return False


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
    config = TINY
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
    batch = PackedPatches.from_bytes(random_documents(1, [9, 0, 33]), config)
    assert torch.allclose(paper(batch), model(batch).loss, rtol=1e-5, atol=0)
    with pytest.raises(RuntimeError, match="Missing key"):
        paper.load_state_dict({name: exported[name] for name in exported if name != WTE}, strict=True)


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


@pytest.mark.parametrize("style", ["pth", "safetensors", "save"])
@pytest.mark.parametrize("tied", [(WTE,), (LM_HEAD,), (WTE, LM_HEAD)])
@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"module.{name}",
        lambda name: f"_orig_mod.module.{name}",
        lambda name: f"module._orig_mod.module.{name}",
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


def test_files_longer_than_their_header_says_are_not_read(tmp_path: Path, folder: Path) -> None:
    sparse = tmp_path / "sparse.safetensors"
    for start, message in (
        (b"", "a header of 0 bytes in a file of 1,099,511,627,776"),
        ((folder / "model.safetensors").read_bytes(), r"1,099,511,627,776 bytes, where its header says [\d,]+;"),
        ((1 << 40).to_bytes(8, "little"), "a header of 1,099,511,627,776 bytes"),
        (b"\x02" + bytes(7) + b"[]", "got damage"),
        ((10**5).to_bytes(8, "little") + b"[" * 10**5, "64 deep"),
    ):
        sparse.write_bytes(start)
        os.truncate(sparse, 1 << 40)
        assert_refused(sparse, message)
    os.truncate(folder / "model.safetensors", 1 << 40)
    with pytest.raises(CheckpointError, match="where its header says"):
        load_weights(folder)


def test_pipes_where_files_are_meant_end_at_once(tmp_path: Path, folder: Path) -> None:
    for name in ("model.safetensors", "config.json"):
        copied = tmp_path / f"with {name}"
        shutil.copytree(folder, copied)
        (copied / name).unlink()
        os.mkfifo(copied / name)
        with pytest.raises((CheckpointError, OSError), match=name):
            load_weights(copied)
    checkpoints = tmp_path / "run" / "checkpoints"
    checkpoints.mkdir(parents=True)
    with (checkpoints / "latest").open("wb") as file:
        file.truncate(10 << 30)
    with pytest.raises(CheckpointError, match="latest: expected at most 4,096 bytes, got 10,737,418,240"):
        load_weights(tmp_path / "run")


def test_memory_that_runs_out_is_no_damage(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_released(tmp_path / "a.pth", SMALL, make_weights())

    def full(*_: Any, **__: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes.")

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "load", full)
        patch.setattr(torch, "load", full)
        for path in (folder, folder / "model.safetensors", tmp_path / "a.pth"):
            with pytest.raises(OutOfMemoryError, match=rf"weights in .*{path.name}, [\d,]+ bytes: 64 bytes more"):
                load_weights(path)
    assert same(load_weights(folder).state_dict, load_weights(tmp_path / "a.pth").state_dict)


def test_right_weights_are_valid(weights: Weights) -> None:
    validate_state_dict(SMALL, weights)
    validate_state_dict(SMALL, {**weights, LM_HEAD: weights[WTE].clone()})
    nan = {name: torch.full_like(tensor, torch.nan) for name, tensor in weights.items()}
    validate_state_dict(SMALL, {**nan, LM_HEAD: nan[WTE].clone()})


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
        (lambda w: {**w, PATCH_WPE: torch.ones(1, 8)}, r"patch_length: expected at least 2, got 1"),
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
        ("patch_num_layers", 10**9, "patch_num_layers: expected 1000000000 as its config says, got tensors of 2"),
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


def change_config(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(change(json.loads(path.read_bytes()))))


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


def spells_the_same(damaged: bytes, content: bytes) -> bool:
    """Whether the JSON has the same values, as "\\udcE9" and "\\udce9"."""
    with contextlib.suppress(ValueError):
        return json.loads(damaged) == json.loads(content)
    return False


def assert_damage_is_refused(path: Path, damage: Callable[[bytes], Iterable[bytes]]) -> None:
    """Checks that each damaged content of a file of a checkpoint folder is refused, and its own is not."""
    content = path.read_bytes()
    for number, damaged in enumerate(damage(content)):
        path.write_bytes(damaged)
        is_spelling = path.name == "config.json" and spells_the_same(damaged, content)
        assert is_spelling or is_refused(path.parent), number
    path.write_bytes(content)
    assert not is_refused(path.parent)


def truncations(content: bytes) -> Iterator[bytes]:
    stream = random.Random(0)
    last = len(content) - 1
    for size in {0, 1, 7, 8, last, *(stream.randrange(last) for _ in range(200))}:
        yield content[:size]


def bit_flips(content: bytes) -> Iterator[bytes]:
    stream = random.Random(1)
    return (flip(content, stream.randrange(8 * len(content))) for _ in range(1000))


def damaged_labels(content: bytes) -> Iterator[bytes]:
    stream = random.Random(0)
    start = 8 * content.index(b"a.bin")
    yield content[:-2]
    for _ in range(100):
        yield flip(content, stream.randrange(start, start + 8 * 40))
        yield flip(content, stream.randrange(8 * len(content)))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("damage", [truncations, bit_flips])
def test_damage_is_refused(folder: Path, name: str, damage: Callable[[bytes], Iterable[bytes]]) -> None:
    assert_damage_is_refused(folder / name, damage)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_damage_to_a_classifier_is_refused(classifier: Path, name: str) -> None:
    assert_damage_is_refused(classifier / name, damaged_labels)


def test_the_flips_escape_a_file_without_its_checksum(tmp_path: Path, folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (tmp_path / "lone.safetensors").write_bytes(flip(content, 8 * len(content) - 8))
    assert not is_refused(tmp_path / "lone.safetensors"), "so it is the SHA-256 that finds them"


def test_damaged_released_files_never_give_other_weights(tmp_path: Path, weights: Weights) -> None:
    path = tmp_path / "a.pth"
    save_released(path, SMALL, weights)
    content = path.read_bytes()
    stream = random.Random(2)
    for offset in (stream.randrange(len(content)) for _ in range(100)):
        path.write_bytes(content[:offset])
        assert is_refused(path), offset
    refusals = 0
    for _ in range(300):
        path.write_bytes(flip(content, stream.randrange(8 * len(content))))
        if is_refused(path):
            refusals += 1
        else:
            assert same(load_weights(path).state_dict, weights), "only padding of the archive may change unseen"
    assert refusals > 150


class Calls:
    """Calls a function of a given name when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def touches(marker: Path) -> Calls:
    """Runs a shell command when it is unpickled without restrictions."""
    return Calls(os.system, f"touch '{marker}'")


def rewritten(source: Path, target: Path, change: Callable[[bytes], bytes]) -> None:
    """Copies an archive of torch.save with another data.pkl."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            new.writestr(entry.filename, change(content) if entry.filename.endswith("data.pkl") else content)


def test_pickled_calls_are_refused_and_do_nothing(tmp_path: Path, weights: Weights) -> None:
    marker = tmp_path / "ran"
    for number, content in enumerate(
        [
            touches(marker),
            {"model": weights, "epoch": touches(marker)},
            {"model": {**weights, "x": touches(marker)}},
            {"model": weights, "x": Calls(eval, f"open({str(marker)!r}, 'w')")},
            {"model": weights, "x": Calls(bytearray, 10**11)},
            {"model": weights, "x": Calls(torch.FloatTensor, 10**11)},
        ]
    ):
        path = tmp_path / f"{number}.pth"
        torch.save(content, path)
        assert_refused(path, r"\.pth: expected plain tensors, got a call of")
        assert not marker.exists()
    torch.load(tmp_path / "0.pth", weights_only=False)
    assert marker.exists(), "the payload does run where it is let"


def test_other_pickles_and_archives_are_refused(tmp_path: Path, weights: Weights) -> None:
    marker = tmp_path / "ran"
    path = tmp_path / "a.pth"
    torch.save({"model": weights}, path)
    hostile: dict[str, bytes] = {"raw pickle": pickle.dumps(touches(marker)), "junk": random.Random(0).randbytes(5000)}
    old = io.BytesIO()
    torch.save({"model": weights, "x": touches(marker)}, old, _use_new_zipfile_serialization=False)
    hostile["torch.save of old"] = old.getvalue()
    for compression, label in ((zipfile.ZIP_STORED, "stored"), (zipfile.ZIP_DEFLATED, "bomb")):
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", compression) as archive:
            archive.writestr("a/data.pkl", pickle.dumps(touches(marker)))
            archive.writestr("a/data/0", bytes(10**7 if label == "bomb" else 10))
        hostile[label] = packed.getvalue()
    overlapping = io.BytesIO(path.read_bytes())
    with zipfile.ZipFile(overlapping, "a") as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
        for number in range(100):
            twin = copy.copy(largest)
            twin.filename = f"{twin.filename}{number}"
            archive.filelist.append(twin)
            archive.NameToInfo[twin.filename] = twin
        archive.writestr("a/last", b"")
    for label, twin in (("two of one name", "archive/data.pkl"), ("in upper case", "archive/DATA/0")):
        doubled = io.BytesIO((tmp_path / "a.pth").read_bytes())
        with zipfile.ZipFile(doubled, "a") as archive, warnings.catch_warnings(action="ignore"):
            prefix = archive.namelist()[0].split("/")[0]
            archive.writestr(twin.replace("archive", prefix), pickle.dumps({"model": {}}))
        hostile[label] = doubled.getvalue()
    hostile["entries over one another"] = overlapping.getvalue()
    for label, content in hostile.items():
        path.write_bytes(content)
        assert is_refused(path), label
        assert not marker.exists(), label


def test_storages_and_views_larger_than_the_file_are_refused(tmp_path: Path, weights: Weights) -> None:
    honest, hostile = tmp_path / "honest.pth", tmp_path / "hostile.pth"
    name = "patch_level_decoder.base.ln_f.weight"
    torch.save({"model": {**weights, name: torch.arange(8.0)}}, honest)
    assert not is_refused(honest)

    def replaced(before: bytes, after: bytes) -> Callable[[bytes], bytes]:
        def change(content: bytes) -> bytes:
            assert before in content
            return content.replace(before, after)

        return change

    for label, change in (
        ("storage", replaced(b"K\x08tq", b"J\xff\xff\xff\x7ftq")),
        ("view", replaced(b"K\x08\x85", b"J\xff\xff\xff\x7f\x85")),
    ):
        rewritten(honest, hostile, change)
        assert is_refused(hostile), label
    for label, tensor in (
        ("stride 0", torch.ones(1).expand(10**6, 514)),
        ("sparse", torch.sparse_coo_tensor([[0], [0]], [1.0], (10**9, 514), check_invariants=True)),
        ("meta", torch.empty(10**6, 514, device="meta")),
    ):
        torch.save({"model": {**weights, EMBEDDING: tensor}}, hostile)
        assert is_refused(hostile), label


@pytest.mark.parametrize("content", [3, ["model"], {"model": 3}, {"model": {1: torch.ones(1)}}, {"weights": {}}, {}])
def test_released_files_without_weights(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "a.pth"
    torch.save(content, path)
    assert_refused(path, r"a\.pth.*expected")


def save_attempts(
    folder: Path, config: BGPTConfig, weights: Weights, labels: dict[str, int] | None = None
) -> Iterator[int]:
    """Saves again and again, a later step failing each time, until a save succeeds."""
    for number in range(100):
        with step_fails(number, disk_full) as steps, contextlib.suppress(OSError):
            save_weights(folder, config, weights, labels=labels)
        yield number
        if len(steps) <= number:
            return


@pytest.mark.parametrize(
    ("config", "new", "labels"),
    [(OTHER, make_weights(OTHER, seed=1), None), (SMALL, make_classifier_weights(), LABELS)],
    ids=["another config", "another kind"],
)
def test_every_failing_step_leaves_a_whole_checkpoint(
    folder: Path, weights: Weights, config: BGPTConfig, new: Weights, labels: dict[str, int] | None
) -> None:
    is_new = []
    for number in save_attempts(folder, config, new, labels):
        loaded = load_weights(folder)
        is_new.append((loaded.config, loaded.labels) == (config, labels))
        assert is_new[-1] or (loaded.config, loaded.labels) == (SMALL, None), number
        assert same(loaded.state_dict, new if is_new[-1] else weights), number
        assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"], number
    assert is_new.count(False) >= 8, "the old one stays through the writing of both files"
    assert is_new[-1]
    assert is_new == sorted(is_new)


def test_a_failing_save_is_named(folder: Path, weights: Weights, tmp_path: Path) -> None:
    with step_fails(1, disk_full), pytest.raises(OSError, match=r"No space left.*not saved.*model") as caught:
        save_weights(folder, SMALL, weights)
    assert caught.value.filename == str(folder)
    with step_fails(1, disk_full), pytest.raises(OSError, match=r"No space left.*not saved.*a\.pth"):
        save_released(tmp_path / "a.pth", SMALL, weights)
    assert not (tmp_path / "a.pth").exists()


def test_a_first_save_that_fails_leaves_nothing_that_loads_wrongly(tmp_path: Path, weights: Weights) -> None:
    loads = []
    for _ in save_attempts(tmp_path / "model", SMALL, weights):
        loads.append(not is_refused(tmp_path / "model"))
    assert loads == sorted(loads), "refused until it is whole"
    assert loads.count(False) >= 8
    assert same(load_weights(tmp_path / "model").state_dict, weights)


def test_a_crash_in_every_step_leaves_a_whole_checkpoint(folder: Path, weights: Weights) -> None:
    old, new = weights, make_weights(seed=1)
    got_through, saves = False, 0
    for number in range(100):
        # Each round saves over what the crash before left, leftovers included.
        if not same(load_weights(folder).state_dict, old):
            old, new = new, old
        got_through = not dies_in_step(number, lambda new=new: save_weights(folder, SMALL, new))
        loaded = load_weights(folder).state_dict
        assert same(loaded, new) or (not got_through and same(loaded, old)), number
        saves += same(loaded, new)
        if got_through:
            break
    assert got_through
    assert number >= 12, "both files' steps were gone through"
    assert saves >= 2


def test_the_crash_test_catches_weights_that_config_json_does_not_know(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(safetensors.torch.save(make_weights(seed=1)))
    assert is_refused(folder)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub in a folder: owner/name/file."""
    root = tmp_path / "hub"

    def download(repository: str, filename: str) -> str:
        if not (root / repository).is_dir():
            raise LocalEntryNotFoundError(f"cannot reach {repository}")
        if not (root / repository / filename).is_file():
            raise EntryNotFoundError(f"no {filename}")
        return str(root / repository / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda repository: sorted(os.listdir(root / repository)))
    monkeypatch.chdir(tmp_path)
    return root


def test_hub_ids(hub: Path, weights: Weights) -> None:
    save_weights(hub / "owner" / "folder", SMALL, weights)
    save_released(hub / "owner" / "single" / "weights.pth", SMALL, weights)
    for name in ("weights-cpu.pth", "weights-text.pth"):
        save_released(hub / "owner" / "bgpt" / name, SMALL, weights)
    for source in ("owner/folder", "owner/single", "owner/bgpt/weights-cpu.pth"):
        assert same(load_weights(source).state_dict, weights), source
    assert_refused("owner/bgpt", r"owner/bgpt: .*2 \(weights-cpu.pth, weights-text.pth\); name one")
    assert_refused("owner/none", r"owner/none: .*no such path, and the hub says: cannot reach")
    assert_refused("owner/bgpt/other.pth", r"the hub says: no other\.pth")
    for source in ("owner", "runs/model.pth", "../owner/folder", "/owner/folder", Path("owner/folder")):
        assert_refused(source, "got nothing there")
    (hub / "owner" / "folder" / "config.json").write_text("{}")
    assert_refused("owner/folder", "expected the fields")


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


def test_bare_classifier_files_want_their_labels(tmp_path: Path, hub: Path) -> None:
    weights = make_classifier_weights()
    safetensors.torch.save_file(weights, tmp_path / "bare.safetensors")
    (hub / "owner" / "single").mkdir(parents=True)
    torch.save({"model": weights}, hub / "owner" / "single" / "weights.pth")
    for source in (tmp_path / "bare.safetensors", "owner/single", "owner/single/weights.pth"):
        assert_refused(source, "expected a label map beside the weights of a classifier")
        loaded = load_weights(source, labels=LABELS)
        assert loaded.labels == LABELS
        assert same(loaded.state_dict, weights)
