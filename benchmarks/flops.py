"""The floating-point operations that bGPT must do, by counting: what MFU is measured against.

Shape letters: L patches of a document, S bytes a patch, D width, V = 257 tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from bgpt_fast import BGPTConfig
from bgpt_fast.config import VOCAB_SIZE

PEAK_BF16 = 989e12
"""Dense bfloat16 FLOP/s of an H100 or H200 by its datasheet."""


def forward_flops(config: BGPTConfig, lengths: Sequence[int], *, causal: bool = True) -> dict[str, int]:
    """Operations of one forward pass, a multiplication and an addition being two.

    The patch embedding counts as nothing: it is a sum of S rows a patch, and no product. Vector work (norms, GELU,
    softmax) is not counted either.

    Args:
        config: the model.
        lengths: patches of each document; all but the first of each are targets.
        causal: count only the scores that causal attention needs; False counts whole squares, as a library's plain
            products compute them.

    Returns:
        FLOPs by part; their sum is the whole.
    """
    S, D = config.patch_size, config.hidden_size
    patches, targets = sum(lengths), sum(lengths) - len(lengths)
    linears = 2 * 12 * D * D  # c_attn 3·D², c_proj D², c_fc and its c_proj 4·D² each

    def scores(length: int) -> int:
        return length * (length + 1) // 2 if causal else length * length

    return {
        "patch linears": patches * linears * config.patch_num_layers,
        "patch attention": 4 * D * sum(scores(length) for length in lengths) * config.patch_num_layers,
        "byte linears": targets * S * linears * config.byte_num_layers,
        "byte attention": 4 * D * targets * scores(S) * config.byte_num_layers,
        "head": 2 * D * VOCAB_SIZE * targets * S,
    }


def training_flops(config: BGPTConfig, lengths: Sequence[int]) -> int:
    """Operations of a training step: the forward pass and twice as many in the backward pass."""
    return 3 * sum(forward_flops(config, lengths).values())


def memory_target(patches: int) -> float:
    """Bytes that training on a batch of so many patches may take: 0.25 MB a patch and 6 GB."""
    return 0.25e6 * patches + 6e9
