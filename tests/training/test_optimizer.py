"""Which parameter is updated how, and the optimisers' state by name."""

from __future__ import annotations

import pytest
import torch
from support.training import RandomSource, make_model

from bgpt_fast.model import BGPT
from bgpt_fast.training import TrainConfig
from bgpt_fast.training.optimizer import Optimizers, is_decayed


def _optimizers(model: BGPT, kind: str) -> Optimizers:
    return Optimizers(model.named_parameters(), TrainConfig(optimizer=kind))  # type: ignore[arg-type]


def _stepped(kind: str, steps: int = 2) -> tuple[BGPT, Optimizers]:
    model = make_model()
    optimizers = _optimizers(model, kind)
    source = RandomSource()
    for _ in range(steps):
        _step(model, optimizers, source)
    return model, optimizers


def _step(model: BGPT, optimizers: Optimizers, source: RandomSource) -> None:
    optimizers.zero_grad()
    model.eval()
    model(source.next_batch()).loss.backward()
    optimizers.step()


def test_decay_spares_vectors_and_positions() -> None:
    names = {name: is_decayed(name, parameter) for name, parameter in make_model().named_parameters()}
    assert names["patch_level_decoder.patch_embedding.weight"]
    assert names["byte_level_decoder.base.transformer.h.0.mlp.c_fc.weight"]
    for spared in ("patch_level_decoder.base.wpe.weight", "byte_level_decoder.base.transformer.wpe.weight"):
        assert not names[spared]
    assert not any(decayed for name, decayed in names.items() if "ln_" in name or name.endswith("bias"))


def test_muon_takes_the_layers_matrices_alone() -> None:
    _, optimizers = _stepped("muon", 0)
    assert len(optimizers.muon_names) == 8
    assert all(".h.0." in name and name.endswith("weight") and "ln_" not in name for name in optimizers.muon_names)
    assert _stepped("adamw", 0)[1].muon_names == []


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_state_goes_on_bit_for_bit(kind: str) -> None:
    model, optimizers = _stepped(kind)
    copy, fresh = make_model(), make_model()
    for other in (copy, fresh):
        other.load_state_dict(model.state_dict())
    resumed, forgetful = _optimizers(copy, kind), _optimizers(fresh, kind)
    # As a file gives them back: contiguous, whatever the strides of the parameter.
    state = {
        name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in optimizers.state_tensors().items()
    }
    resumed.load_state_tensors(state)
    for one, its in ((model, optimizers), (copy, resumed), (fresh, forgetful)):
        _step(one, its, RandomSource(seed=5))
    weights = [torch.cat([p.detach().flatten() for p in one.parameters()]) for one in (model, copy, fresh)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_foreign_state_is_refused() -> None:
    model, optimizers = _stepped("muon")
    state = optimizers.state_tensors()
    plain = Optimizers(model.named_parameters(), TrainConfig())
    with pytest.raises(ValueError, match="fit no parameter"):
        plain.load_state_tensors(state)
    name = next(name for name in state if name.endswith("momentum_buffer"))
    with pytest.raises(ValueError, match="expected shape"):
        optimizers.load_state_tensors({**state, name: torch.zeros(3, 3)})
    name = next(name for name in state if name.endswith("exp_avg_sq"))
    with pytest.raises(ValueError, match="exp_avg_sq"):
        optimizers.load_state_tensors({key: value for key, value in state.items() if key != name})
