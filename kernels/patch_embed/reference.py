"""patch_embed in the plainest torch."""

from torch import Tensor
from torch.nn import functional as F


def patch_embed_reference(patches: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """One-hot of each byte, concatenated, through a linear layer: [P, S], [D, S·257], [D] → [P, D]."""
    one_hot = F.one_hot(patches.long(), 257).to(weight.dtype)
    return F.linear(one_hot.flatten(1), weight, bias)
