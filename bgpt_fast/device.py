"""Devices by name, and CUDA graphs."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

Replay = Callable[[], None]
Record = Callable[[Replay], Replay]
"""Turns a function into one that repeats its work: a CUDA graph, or in tests the function itself."""


def resolve_device(name: str) -> torch.device:
    """The device of a name; "auto" is the current GPU where there is one, else the CPU.

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


def cuda_graph(step: Replay) -> Replay:
    """Runs `step` three times on a side stream, as CUDA graphs need it, then records it; returns the replay."""
    side = _side_stream(torch.cuda.current_device())
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # Other threads, such as those that prepare batches, may allocate meanwhile.
    with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
        step()
    return graph.replay


@functools.cache
def _side_stream(device: int) -> torch.cuda.Stream:
    """One stream for each GPU: torch's own recording stream belongs to the first GPU, and cuBLAS keeps a workspace for
    every stream that it has run on."""
    return torch.cuda.Stream(device)
