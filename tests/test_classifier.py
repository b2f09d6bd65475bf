"""`BGPTForClassification`: its mean, where its weights come from, and what it refuses to be made of."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, random_documents, randomised
from support.checkpoints import released_weights
from torch import Tensor

from benchmarks.hugging_face import HuggingFaceBGPT
from bgpt_fast import BGPT, BGPTConfig, BGPTForClassification, PackedPatches, ReferenceBGPT
from bgpt_fast.checkpoint import CheckpointError, load_weights, save_released
from bgpt_fast.training.checkpoint_store import CheckpointStore, RunState

LABELS = {"cat.bmp": 0, "dog.bmp": 1, "bird.bmp": 2}


@pytest.fixture
def model() -> BGPTForClassification:
    torch.manual_seed(0)
    return randomised(BGPTForClassification(TINY, LABELS))


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float(((actual - expected).abs().max() / expected.abs().max()).detach())


def per_document(model: BGPTForClassification, batch: PackedPatches, skip: int = 0) -> Tensor:
    """Logits by the plain decoder, a document at a time; `skip` leaves patches out of the mean, which is wrong."""
    reference = ReferenceBGPT(model.config)
    reference.patch_level_decoder.load_state_dict(model.patch_level_decoder.state_dict(), strict=True)
    ends = batch.cu_seqlens.tolist()
    means = [
        reference.eval().patch_level_decoder(batch.patches[start:end])[skip:].mean(0)
        for start, end in itertools.pairwise(ends)
    ]
    return model.classifier(torch.stack(means))


@pytest.mark.parametrize("sizes", [[9, 0, 33, 1, 16, 64], [0], [88, 88], [5] * 7])
def test_logits_are_of_each_documents_mean(model: BGPTForClassification, sizes: list[int]) -> None:
    batch = PackedPatches.from_bytes(random_documents(1, sizes), TINY)
    assert relative_error(model(batch), per_document(model, batch)) < 1e-5
    # The mean that leaves the extension patch out is another one, and the tolerance sees it.
    assert relative_error(model(batch), per_document(model, batch, skip=1)) > 1e-3


def test_logits_equal_hugging_faces(model: BGPTForClassification, tiny_batch: PackedPatches) -> None:
    peer = HuggingFaceBGPT(TINY).eval()
    peer.patch_level_decoder.load_state_dict(model.patch_level_decoder.state_dict(), strict=True)
    _, mask, features = peer.features(tiny_batch)
    mean = (features * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    assert relative_error(model(tiny_batch), model.classifier(mean)) < 1e-5


def test_every_parameter_but_the_unused_wte_gets_a_gradient(
    model: BGPTForClassification, tiny_batch: PackedPatches
) -> None:
    torch.nn.functional.cross_entropy(model(tiny_batch), torch.arange(6) % 3).backward()
    missing = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert missing == {"patch_level_decoder.base.wte.weight"}


def test_the_mean_of_a_bfloat16_model_is_taken_in_float32(
    model: BGPTForClassification, tiny_batch: PackedPatches, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.to(torch.bfloat16)
    # 0.5 + 2⁻⁹ is 0.5 in bfloat16, however often it is added.
    features = torch.full((tiny_batch.num_patches, TINY.hidden_size), 2**-9)
    features[tiny_batch.cu_seqlens[:-1].long()] = 0.5
    monkeypatch.setattr(model.patch_level_decoder, "forward", lambda *_: features.bfloat16())
    logits = model(tiny_batch)
    assert logits.dtype == torch.bfloat16
    ends = tiny_batch.cu_seqlens.tolist()
    means = torch.stack([features[a:b].mean(0) for a, b in itertools.pairwise(ends)])
    assert torch.equal(logits, model.classifier(means.bfloat16()))
    documents = torch.arange(6).repeat_interleave(tiny_batch.cu_seqlens.diff())
    sums = torch.zeros_like(means, dtype=torch.bfloat16).index_add(0, documents, features.bfloat16())
    assert not torch.equal(logits, model.classifier(sums / tiny_batch.cu_seqlens.diff()[:, None]))


def test_a_batch_that_does_not_fit_is_named(model: BGPTForClassification) -> None:
    with pytest.raises(TypeError, match="expected PackedPatches, got str"):
        model("bytes")
    with pytest.raises(ValueError, match="patches of 4 bytes, got 16"):
        model(PackedPatches.from_bytes([("bin", b"abc")], BGPTConfig()))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (3, "labels: expected a dict, got int"),
        ({}, "indices 0…n − 1, each once, got {}"),
        ({"a": 1}, "indices 0…n − 1, each once"),
        ({"a": 0, "b": 0}, "indices 0…n − 1, each once"),
        ({"a": False, "b": True}, "indices 0…n − 1, each once"),
        ({1: 0}, "expected class names"),
    ],
)
def test_wrong_label_maps_are_named(tiny_model: BGPT, labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BGPTForClassification(TINY, labels)
    with pytest.raises(ValueError, match=message):
        BGPTForClassification.from_generative(tiny_model, labels)


def test_labels_are_in_the_order_of_their_indices() -> None:
    assert list(BGPTForClassification(TINY, {"b": 1, "a": 2, "c": 0}).labels) == ["c", "b", "a"]


def test_saved_and_loaded_is_the_same(tmp_path: Path, model: BGPTForClassification, tiny_batch: PackedPatches) -> None:
    model.save_pretrained(tmp_path / "model")
    state = torch.get_rng_state()
    lone = shutil.copy(tmp_path / "model/model.safetensors", tmp_path / "lone.safetensors")
    for source in (tmp_path / "model", str(lone)):
        loaded = BGPTForClassification.from_pretrained(source)
        assert (loaded.config, loaded.labels) == (TINY, LABELS)
        assert not loaded.training
        assert torch.equal(loaded(tiny_batch), model(tiny_batch))
    assert torch.equal(torch.get_rng_state(), state)
    assert BGPTForClassification.from_pretrained(tmp_path / "model", labels=LABELS).labels == LABELS
    half = BGPTForClassification.from_pretrained(tmp_path / "model", dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    assert load_weights(tmp_path / "half").state_dict["classifier.weight"].dtype == torch.bfloat16


def as_folder(folder: Path, model: BGPT) -> Path | BGPT:
    model.save_pretrained(folder / "model")
    return folder / "model"


def as_pth(folder: Path, model: BGPT) -> Path | BGPT:
    save_released(folder / "weights.pth", model.config, model.state_dict())
    return folder / "weights.pth"


def as_safetensors(folder: Path, model: BGPT) -> Path | BGPT:
    return Path(shutil.copy(as_folder(folder, model) / "model.safetensors", folder / "lone.safetensors"))


@pytest.mark.parametrize("prepare", [as_folder, as_pth, as_safetensors, lambda _, model: model])
def test_a_classifier_begins_with_a_generative_models_patch_decoder(
    tmp_path: Path, tiny_model: BGPT, prepare: Callable[[Path, BGPT], Path | BGPT]
) -> None:
    source = prepare(tmp_path, tiny_model)
    torch.manual_seed(5)
    model = BGPTForClassification.from_generative(source, LABELS)
    assert model.training
    assert (model.config, model.labels) == (TINY, LABELS)
    for name, tensor in model.patch_level_decoder.state_dict().items():
        expected = tiny_model.patch_level_decoder.state_dict()[name]
        assert torch.equal(tensor, expected)
        assert tensor.data_ptr() != expected.data_ptr()
    assert model.classifier.weight.std().item() == pytest.approx(0.02, rel=0.25)
    assert not model.classifier.bias.any()
    torch.manual_seed(5)
    again = BGPTForClassification.from_generative(source, LABELS)
    assert torch.equal(again.classifier.weight, model.classifier.weight), "the caller's seed makes the head"
    other = BGPTForClassification.from_generative(source, LABELS)
    assert not torch.equal(other.classifier.weight, model.classifier.weight)


def test_a_bfloat16_checkpoint_gives_a_classifier_of_its_dtype(tmp_path: Path, tiny_model: BGPT) -> None:
    tiny_model.save_pretrained(tmp_path, dtype=torch.bfloat16)
    for dtype in (None, torch.float32):
        model = BGPTForClassification.from_generative(tmp_path, LABELS, dtype=dtype)
        assert {parameter.dtype for parameter in model.parameters()} == {dtype or torch.bfloat16}


@pytest.mark.parametrize("style", ["model", "bare", "module"])
def test_a_released_classifier_loads_with_a_label_map(tmp_path: Path, style: str) -> None:
    torch.manual_seed(0)
    config = BGPTConfig(patch_length=20, hidden_size=64, patch_num_layers=2)
    model = randomised(BGPTForClassification(config, LABELS))
    path = tmp_path / "weights-cls.pth"
    torch.save(released_weights(model.state_dict(), style, epoch=3, best_epoch=1, max_eval_acc=0.5), path)
    loaded = BGPTForClassification.from_pretrained(path, labels=LABELS)
    batch = PackedPatches.from_bytes(random_documents(0, [9, 100, 300]), config)
    assert torch.equal(loaded(batch), model(batch))
    with pytest.raises(CheckpointError, match=r"weights-cls\.pth: labels: expected a label map .*got none.*labels="):
        BGPTForClassification.from_pretrained(path)
    with pytest.raises(CheckpointError, match=r"classifier\.weight: expected shape \[2, 64\], got \[3, 64\]"):
        BGPTForClassification.from_pretrained(path, labels={"a": 0, "b": 1})
    with pytest.raises(CheckpointError, match="labels: expected class names with the indices"):
        BGPTForClassification.from_pretrained(path, labels={"a": 0, "b": 1, "c": 3})
    with pytest.raises(CheckpointError, match=r"of a classifier.*BGPTForClassification"):
        BGPT.from_pretrained(path)


def test_models_of_the_other_kind_are_named(tmp_path: Path, model: BGPTForClassification, tiny_model: BGPT) -> None:
    model.save_pretrained(tmp_path / "cls")
    tiny_model.save_pretrained(tmp_path / "gen")
    with pytest.raises(CheckpointError, match=r"cls: expected a generative model, got a classifier of 3.*from_pretr"):
        BGPT.from_pretrained(tmp_path / "cls")
    with pytest.raises(CheckpointError, match=r"cls: expected a generative model, got a classifier of 3.*from_pretr"):
        BGPTForClassification.from_generative(tmp_path / "cls", LABELS)
    with pytest.raises(
        CheckpointError, match=r"gen: expected a classifier, got a generative.*train --task classification"
    ):
        BGPTForClassification.from_pretrained(tmp_path / "gen")
    with pytest.raises(CheckpointError, match="labels: expected none for a generative model, got 3"):
        BGPTForClassification.from_pretrained(tmp_path / "gen", labels=LABELS)
    with pytest.raises(CheckpointError, match="labels: expected those it was saved with"):
        BGPTForClassification.from_pretrained(tmp_path / "cls", labels={"dog.bmp": 0, "cat.bmp": 1, "bird.bmp": 2})


def test_a_training_checkpoint_keeps_the_labels(tmp_path: Path, model: BGPTForClassification, tiny_model: BGPT) -> None:
    store = CheckpointStore(tmp_path)
    folder = store.save(3, RunState(TINY, model.state_dict(), labels=model.labels))
    assert store.load(3).labels == LABELS
    assert BGPTForClassification.from_pretrained(folder).labels == LABELS
    store.save(4, RunState(TINY, tiny_model.state_dict()))
    assert store.load(4).labels is None
