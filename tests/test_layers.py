"""The layers' parameters in the compute dtype."""

from __future__ import annotations

import torch

from bgpt_fast.layers import Conv1D, linears


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
