"""Autograd rules that several ops share."""

from __future__ import annotations

from typing import Any

import torch


def refuse_second_derivative(op: str) -> None:
    """Makes a backward op raise when it is differentiated itself, where torch alone would give zeros.

    Args:
        op: its qualified name, "bgpt_fast::…_backward".
    """

    def refuse(ctx: Any, *gradients: Any) -> None:
        raise RuntimeError(f"{op} cannot be differentiated: second derivatives are to be had of ReferenceBGPT only")

    torch.library.register_autograd(op, refuse)
