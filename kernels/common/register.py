"""Registers operators with torch from one description each: schema, implementations by device, fake and autograd."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch._functorch.utils import enable_single_level_autograd_function


def has_no_float64(*arguments: Any) -> bool:
    """Whether no tensor among the arguments, and no dtype, is float64."""
    for argument in arguments:
        if argument is torch.float64 or (isinstance(argument, torch.Tensor) and argument.dtype is torch.float64):
            return False
    return True


@dataclass(frozen=True)
class Triton:
    """An op's CUDA implementation by a Triton launcher, which is imported when first called: importing an op needs no
    Triton.

    Args:
        folder: the op's, below `bgpt_fast.kernels`.
        launcher: a function of its triton_kernels.py, with the op's arguments.
        reference: runs instead where `takes` is false.
        takes: whether the kernel supports these arguments.
    """

    folder: str
    launcher: str
    reference: Callable[..., Any]
    takes: Callable[..., bool] = has_no_float64

    def __call__(self, *arguments: Any) -> Any:
        return (self._launch if self.takes(*arguments) else self.reference)(*arguments)

    @functools.cached_property
    def _launch(self) -> Callable[..., Any]:
        return getattr(importlib.import_module(f"bgpt_fast.kernels.{self.folder}.triton_kernels"), self.launcher)


@dataclass(frozen=True)
class Op:
    """An operator `bgpt_fast::name`.

    Args:
        schema: "name(Tensor x, …) -> Tensor".
        fake: results without values, for torch.compile.
        reference: implementation for devices without one of their own.
        cpu, cuda: implementations of these devices.
        setup_context, backward: the gradient, as `torch.library.register_autograd` takes it. An op called …_backward
            needs none: it raises when it is differentiated, where torch alone would give zeros.
    """

    schema: str
    fake: Callable[..., Any]
    reference: Callable[..., Any] | None = None
    cpu: Callable[..., Any] | None = None
    cuda: Callable[..., Any] | None = None
    setup_context: Callable[..., None] | None = None
    backward: Callable[..., Any] | None = None

    @property
    def name(self) -> str:
        return self.schema.partition("(")[0]


def register(*ops: Op) -> torch.library.Library:
    """Registers the ops; they last as long as the library that is returned."""
    library = torch.library.Library("bgpt_fast", "FRAGMENT")
    for op in ops:
        library.define(op.schema)
        for key, implementation in (
            ("CompositeExplicitAutograd", op.reference),
            ("CPU", op.cpu),
            ("CUDA", op.cuda),
        ):
            if implementation is not None:
                library.impl(op.name, implementation, key)
        torch.library.register_fake(f"bgpt_fast::{op.name}", op.fake, lib=library)
        backward = op.backward
        if backward is None and op.name.endswith("_backward"):
            backward = _refusal(op.name)
        if backward is not None:
            overload = getattr(torch.ops.bgpt_fast, op.name).default
            library.impl(op.name, _differentiable(overload, op.setup_context, backward), "Autograd", with_keyset=True)
    return library


def _differentiable(
    op: torch._ops.OpOverload, setup_context: Callable[..., None] | None, backward: Callable[..., Any]
) -> Callable[..., Any]:
    """The implementation of an op that records its gradient.

    It is `torch.library.register_autograd` with two differences: torch.func's transforms accept it, and a call without
    gradient costs less. The op's schema has no default values and no keyword-only arguments.
    """
    after_autograd = torch._C._after_autograd_keyset

    def call(keyset: Any, *arguments: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keyset & after_autograd, *arguments)

    class Gradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            *arguments, keyset = inputs
            output = call(keyset, *arguments)
            if setup_context is not None:
                setup_context(ctx, arguments, output)
            return output

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            result = backward(ctx, *gradients)
            return (*result, None) if isinstance(result, tuple) else (result, None)

    # Below the dispatcher's front a transform has done its part; `Function.apply` would refuse a transform here.
    apply = super(torch.autograd.Function, Gradient).apply

    def implementation(keyset: Any, *arguments: Any) -> Any:
        if not (torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments)):
            return call(keyset, *arguments)
        if not is_transformed():
            return apply(*arguments, keyset)
        with enable_single_level_autograd_function():
            return apply(*arguments, keyset)

    return implementation


def is_transformed() -> bool:
    """Whether a transform of torch.func is active."""
    return torch._C._are_functorch_transforms_active()


def _refusal(name: str) -> Callable[..., None]:
    def refuse(ctx: Any, *gradients: Any) -> None:
        raise RuntimeError(f"bgpt_fast::{name} cannot be differentiated: ReferenceBGPT has second derivatives")

    return refuse
