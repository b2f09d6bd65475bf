"""byte_embed in plain torch."""

import torch
from torch import Tensor
from torch.nn import functional as F


def byte_embed_reference(features: Tensor, patches: Tensor, wte: Tensor, wpe: Tensor) -> Tensor:
    """The byte decoder's input: [T, D], [T, S], [V, D], [≥ S, D] → [T, S, D]."""
    rows = torch.cat([features[:, None], wte[patches[:, :-1].long()]], dim=1)
    return (rows + wpe[: patches.shape[1]]).to(features.dtype)


def byte_embed_backward_reference(
    dx: Tensor, patches: Tensor, positions: int, vocab_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of features [T, D], wte [V, D] and wpe [positions, D]; the tables' in float32 or better."""
    exact = dx.to(torch.promote_types(dx.dtype, torch.float32))
    one_hot = F.one_hot(patches[:, :-1].flatten().long(), vocab_size).to(exact.dtype)
    dwpe = F.pad(exact.sum(0), (0, 0, 0, positions - dx.shape[1]))
    return dx[:, 0].clone(memory_format=torch.contiguous_format), one_hot.t() @ exact[:, 1:].flatten(0, 1), dwpe
