"""patch_embed in the plainest torch."""

from torch import Tensor
from torch.nn import functional as F

from bgpt_fast.config import VOCAB_SIZE


def patch_embed_reference(patches: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """One-hot of each byte, concatenated, through a linear layer: [P, S], [D, S·257], [D] → [P, D]."""
    one_hot = F.one_hot(patches.long(), VOCAB_SIZE).to(weight.dtype)
    return F.linear(one_hot.flatten(1), weight, bias)
