"""Which parameter is updated how, and the optimisers' state by name."""

from __future__ import annotations

import pytest
import torch
from support.training import RandomSource, make_model
from torch import Tensor, nn

from bgpt_fast.model import BGPT
from bgpt_fast.training import TrainConfig
from bgpt_fast.training.muon import Muon, orthogonalised
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


SHAPES = [(24, 24), (24, 72), (96, 24), (24, 96), (96, 24)]


def _matrices(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def test_muon_is_torchs() -> None:
    """Five steps of both, within the noise of torch's bfloat16 products."""
    options = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.95}
    weights = {"float32": _matrices(0), "bfloat16": _matrices(0), "torch": _matrices(0)}
    named = {kind: [(str(i), nn.Parameter(m)) for i, m in enumerate(stack)] for kind, stack in weights.items()}
    ours = [Muon(named[kind], **options, dtype=getattr(torch, kind)) for kind in ("float32", "bfloat16")]
    theirs = torch.optim.Muon(named["torch"], **options, adjust_lr_fn="match_rms_adamw")
    for step in range(5):
        gradients = _matrices(step + 1)
        for parameters in named.values():
            for (_, parameter), gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient.clone()
        for optimizer in (*ours, theirs):
            optimizer.step()
    start = _matrices(0)
    for index, shape in enumerate(SHAPES):
        moved = {kind: parameters[index][1].detach() - start[index] for kind, parameters in named.items()}
        scale = moved["torch"].norm()
        assert scale > 0.02 * 0.2 * max(shape) ** 0.5  # of at least one step
        assert (moved["bfloat16"] - moved["torch"]).norm() < 0.02 * scale
        assert (moved["float32"] - moved["torch"]).norm() < 0.02 * scale


@pytest.mark.parametrize("shape", [(16, 16), (16, 64), (64, 16), (8, 200)])
def test_muons_products_of_the_gram_matrix_are_the_iterations(shape: tuple[int, int]) -> None:
    """Against the iteration as published, in float64, for singular values over five orders of magnitude.

    A rounding of the Gram matrix in float32 (6e-8) grows up to 3.4445² times in each of four iterations, to 1.2e-3.
    """
    generator = torch.Generator().manual_seed(3)
    spread = torch.logspace(-5, 0, min(shape), dtype=torch.float64)
    u, _, v = torch.linalg.svd(torch.randn(shape, generator=generator, dtype=torch.float64), full_matrices=False)
    matrix = u * spread @ v
    expected = matrix / matrix.norm()
    for _ in range(5):
        a, b, c = 3.4445, -4.775, 2.0315
        gram = expected @ expected.T
        expected = a * expected + b * gram @ expected + c * gram @ gram @ expected
    got = orthogonalised(matrix.float()[None])[0].double()
    assert (got - expected).abs().max() < 3e-3 * expected.abs().max()
    assert not torch.allclose(got, matrix / matrix.norm(), atol=0.1)
