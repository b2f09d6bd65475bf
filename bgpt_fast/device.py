"""Devices by name."""

from __future__ import annotations

import torch


def resolve_device(name: str) -> torch.device:
    """The device that a user names; "auto" is the current GPU where there is one, else the CPU.

    Raises:
        ValueError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device: expected 'auto', 'cpu' or a GPU of this machine, got {name!r}: {reason}") from error
    return torch.device("cuda", torch.cuda.current_device()) if device == torch.device("cuda") else device
