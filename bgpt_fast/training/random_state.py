"""torch's random generators on all ranks: each rank has its own seed, and checkpoints contain all states."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def seed_rank(seed: int, rank: int, step: int) -> None:
    """Seeds torch on a rank that starts at `step`; rank 0 of a new run gets `seed` itself."""
    if rank or step:
        seed = int(np.random.SeedSequence([seed, rank, step]).generate_state(1, np.uint64)[0])
    torch.manual_seed(seed)


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The generators' states, uint8 tensors: "torch", and "cuda" for a GPU."""
    states = {"torch": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_random_state(states: dict[str, Tensor], device: torch.device) -> None:
    """Restores states returned by `random_state`."""
    torch.set_rng_state(states["torch"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def join_ranks(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Merges the states of all ranks into one dict: "rank1/torch" and so on; those of rank 0 have no prefix."""
    return {_prefix(rank) + name: value for rank, own in enumerate(states) for name, value in own.items()}


def states_of(joined: dict[str, Tensor], rank: int) -> dict[str, Tensor]:
    """Extracts a rank's states from a dict made by `join_ranks`."""
    prefix = _prefix(rank)
    names = {name: name.removeprefix(prefix) for name in joined if name.startswith(prefix)}
    return {own: joined[name] for name, own in names.items() if "/" not in own}


def _prefix(rank: int) -> str:
    return f"rank{rank}/" if rank else ""
