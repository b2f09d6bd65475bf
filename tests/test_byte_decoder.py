"""The byte decoder in chunks: the same loss and gradients, and memory that a chunk bounds."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from conftest import TINY, random_documents
from torch import Tensor

from bgpt_fast import BGPT, BGPTConfig, PackedPatches, byte_decoder

PAPER = BGPTConfig(patch_size=16, patch_length=512, hidden_size=768, patch_num_layers=12, byte_num_layers=3)


def loss_and_gradients(
    model: BGPT, batch: PackedPatches, scale: float = 1.0
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    model.zero_grad()
    out = model(batch)
    (out.loss * scale).backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return out.loss.detach(), out.nats, gradients


@pytest.mark.parametrize("chunk", [1, 5, 28, 29])
def test_chunks_change_nothing(chunk: int, tiny_batch: PackedPatches, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = BGPT(TINY).double()
    assert len(tiny_batch.target_indices()) > 29
    loss, nats, gradients = loss_and_gradients(model, tiny_batch, scale=3.0)
    monkeypatch.setattr(byte_decoder, "CHUNK", chunk)
    in_chunks, nats_in_chunks, gradients_in_chunks = loss_and_gradients(model, tiny_batch, scale=3.0)
    torch.testing.assert_close(in_chunks, loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(nats_in_chunks, nats, rtol=1e-12, atol=0)
    assert gradients.keys() == gradients_in_chunks.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradients_in_chunks[name], gradient, rtol=1e-9, atol=1e-12, msg=name)
    first = gradients_in_chunks["byte_level_decoder.base.transformer.wte.weight"]
    assert not torch.equal(first, torch.zeros_like(first))


def test_a_lost_chunk_would_show(tiny_batch: PackedPatches, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: targets that leave the last chunk out give other gradients."""
    torch.manual_seed(0)
    model = BGPT(TINY).double()
    monkeypatch.setattr(byte_decoder, "CHUNK", 5)
    _, _, gradients = loss_and_gradients(model, tiny_batch)
    model.zero_grad()
    model(tiny_batch, tiny_batch.target_indices()[:-5]).loss.backward()
    for name, weight in model.byte_level_decoder.named_parameters():
        actual, expected = weight.grad, gradients[f"byte_level_decoder.{name}"]
        assert actual is not None
        if name != "base.transformer.wpe.weight":
            assert not torch.allclose(actual, expected, rtol=1e-9, atol=1e-12), name


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_no_byte_sees_a_later_one_with_dropout_either(dropout: float) -> None:
    torch.manual_seed(0)
    model = BGPT(dataclasses.replace(TINY, dropout=dropout)).train()
    features = torch.randn(6, TINY.hidden_size)
    patches = torch.randint(0, 256, (6, TINY.patch_size), dtype=torch.int16)

    def logits(last: int) -> Tensor:
        changed = patches.clone()
        changed[:, -2] = last
        torch.manual_seed(1)
        return model.byte_level_decoder.logits(features, changed)

    one, other = logits(3), logits(200)
    assert torch.equal(one[:, :-1], other[:, :-1]), "only the byte after the changed one is predicted from it"
    assert not torch.equal(one[:, -1], other[:, -1])


def test_frozen_weights_and_no_gradient(tiny_model: BGPT, tiny_batch: PackedPatches, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    expected = tiny_model(tiny_batch)
    monkeypatch.setattr(byte_decoder, "CHUNK", 7)
    frozen = tiny_model.byte_level_decoder.base.transformer.h[0].mlp.c_fc.weight.requires_grad_(False)
    _, _, gradients = loss_and_gradients(tiny_model, tiny_batch)
    assert frozen.grad is None
    assert "byte_level_decoder.base.transformer.h.1.mlp.c_fc.weight" in gradients
    with torch.no_grad():
        out = tiny_model(tiny_batch)
    assert out.loss.grad_fn is None
    torch.testing.assert_close(out.nats, expected.nats, rtol=1e-6, atol=1e-6)


def test_gradients_add_up_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a bfloat16 model a sum of 64 chunks in bfloat16 would lose the later ones."""
    torch.manual_seed(0)
    model = BGPT(TINY).bfloat16()
    batch = PackedPatches.from_bytes(random_documents(0, [80] * 24), TINY)
    _, _, whole = loss_and_gradients(model, batch)
    exact_model = BGPT(TINY).double()
    exact_model.load_state_dict({name: value.double() for name, value in model.state_dict().items()})
    _, _, exact = loss_and_gradients(exact_model, batch)
    monkeypatch.setattr(byte_decoder, "CHUNK", 8)
    _, _, chunks = loss_and_gradients(model, batch)
    for name, gradient in exact.items():
        if name.startswith("byte_level_decoder"):
            error = (chunks[name].double() - gradient).norm()
            assert error <= 2 * (whole[name].double() - gradient).norm() + 2**-8 * gradient.norm(), name


def saved_bytes(model: BGPT, patches: int) -> tuple[int, int]:
    """What a forward pass in bfloat16 keeps for backward, in bytes: by the patch decoder, and in all."""
    storages: dict[int, int] = {}
    own = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    alive: list[Tensor] = []  # so that no storage's address is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    batch = PackedPatches.from_bytes([("bin", bytes(16 * 30))] * (patches // 32), model.config)
    assert batch.num_patches == patches
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16),
    ):
        features, targets = model._inputs(batch, batch.target_indices())
        by_patch_decoder = sum(storages.values())
        model.byte_level_decoder.nats(features, targets)
    return by_patch_decoder, sum(storages.values())


def test_memory_of_training_at_the_papers_size() -> None:
    """At most 0.25 MB a patch and 6 GB (counted, not run on a GPU): the patch decoder's share grows with the batch, the
    byte decoder's with a chunk; the rest is weights, gradients, Adam's moments and the weights in bfloat16."""
    model = BGPT(PAPER)
    (patch_32, all_32), (patch_96, all_96) = saved_bytes(model, 32), saved_bytes(model, 96)
    a_patch = (patch_96 - patch_32) / 64
    of_bytes = ((all_96 - all_32) - (patch_96 - patch_32)) / 62  # targets: 31 of 32 patches
    fixed = model.num_parameters() * (4 + 4 + 8 + 2)
    assert 150e3 < a_patch <= 0.25e6
    # Backward's own needs come on top of a chunk's activations: twice as much is a bound with room.
    assert fixed + 2 * byte_decoder.CHUNK * of_bytes <= 6e9
