"""Registers operators with torch from one description each: schema, implementations by device, fake and autograd."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


def has_no_float64(*arguments: Any) -> bool:
    """Whether no tensor among the arguments, and no dtype, is float64."""
    return all(getattr(argument, "dtype", argument) is not torch.float64 for argument in arguments)


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
        if not self.takes(*arguments):
            return self.reference(*arguments)
        module = importlib.import_module(f"bgpt_fast.kernels.{self.folder}.triton_kernels")
        return getattr(module, self.launcher)(*arguments)


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
            torch.library.register_autograd(
                f"bgpt_fast::{op.name}", backward, setup_context=op.setup_context, lib=library
            )
    return library


def _refusal(name: str) -> Callable[..., None]:
    def refuse(ctx: Any, *gradients: Any) -> None:
        raise RuntimeError(f"bgpt_fast::{name} cannot be differentiated: ReferenceBGPT has second derivatives")

    return refuse
