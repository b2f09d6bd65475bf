"""The layers' parameters in the compute dtype."""

from __future__ import annotations

import pytest
import torch

from bgpt_fast.layers import Conv1D, LayerNorm, linears


def test_parameters_are_converted_together_as_one_by_one() -> None:
    layers = [Conv1D(6, 10), Conv1D(10, 4)]
    x = torch.randn(5, 6, dtype=torch.bfloat16)

    def gradients(together: bool) -> list[torch.Tensor]:
        for layer in layers:
            layer.zero_grad()
        if together:
            first, second = linears(layers, torch.bfloat16)
            y = second(first(x))
        else:
            y = x
            for layer in layers:
                y = torch.nn.functional.linear(y, layer.weight.t().bfloat16(), layer.bias.bfloat16())
        y.float().square().sum().backward()
        return [y.detach(), *(p.grad.clone() for layer in layers for p in layer.parameters() if p.grad is not None)]

    ours, expected = gradients(together=True), gradients(together=False)
    assert len(ours) == 5
    for one, other in zip(ours, expected, strict=True):
        assert torch.equal(one, other)
        assert one.dtype == other.dtype
    assert layers[0].weight.grad is not None
    assert layers[0].weight.grad.dtype == torch.float32


def test_parameters_of_the_dtype_stay_the_same_tensors() -> None:
    layer = Conv1D(3, 4)
    (linear,) = linears([layer], torch.float32)
    assert linear.weight is layer.weight
    assert linear.bias is layer.bias


def test_a_frozen_parameter_gets_no_gradient() -> None:
    layer = Conv1D(3, 4)
    layer.weight.requires_grad_(False)
    (linear,) = linears([layer], torch.bfloat16)
    linear(torch.ones(2, 3, dtype=torch.bfloat16)).sum().backward()
    assert layer.weight.grad is None
    assert layer.bias.grad is not None
    assert layer.bias.grad.tolist() == [2.0] * 4


@pytest.mark.parametrize("used", ["norm", "residual", "both"])
def test_norm_and_residual_have_the_gradients_of_each(used: str) -> None:
    norm = LayerNorm(12).double()
    torch.nn.init.normal_(norm.weight)
    x, dy, dresidual = (torch.randn(7, 12, dtype=torch.float64) for _ in range(3))
    x.requires_grad_()
    expected = norm(x), x
    ours = norm.split(x)
    assert torch.equal(ours[0], expected[0])
    assert torch.equal(ours[1], x)

    def gradients(y: torch.Tensor, residual: torch.Tensor) -> list[torch.Tensor | None]:
        total = ((y * dy).sum() if used != "residual" else 0) + ((residual * dresidual).sum() if used != "norm" else 0)
        assert isinstance(total, torch.Tensor)
        return list(torch.autograd.grad(total, [x, norm.weight, norm.bias], allow_unused=True))

    for one, other in zip(gradients(*ours), gradients(*expected), strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other)
