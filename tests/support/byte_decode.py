"""Models and arguments for the tests of `byte_decode` and of the decoders."""

from __future__ import annotations

import torch
from torch import Tensor

from bgpt_fast import BGPT, BGPTConfig
from bgpt_fast.config import NOTAGEN_ALPHABET

SHAPES = {
    "plain": BGPTConfig(patch_length=20, hidden_size=64, patch_num_layers=2, byte_num_layers=2),
    "odd": BGPTConfig(5, 20, 33, 1, 2, num_heads=3, byte_num_heads=1),
    "one head a channel": BGPTConfig(
        patch_size=1, patch_length=20, hidden_size=8, patch_num_layers=1, byte_num_layers=1, num_heads=8
    ),
    "128 symbols": BGPTConfig(5, 20, 40, 1, 2, num_heads=2, **NOTAGEN_ALPHABET),
    "over a block of links": BGPTConfig(
        patch_size=3, patch_length=20, hidden_size=272, patch_num_layers=1, byte_num_layers=1, num_heads=4
    ),
}


def random_model(config: BGPTConfig, seed: int = 0) -> BGPT:
    """A model whose attention has scores of the same size at every width from 64 on.

    Scores of 40, which large weights give at a width of 272, make the softmax a near tie for a few rows: the rounding
    of one score then decides a row's error, ours or the plain version's, and the ratio of the two means nothing.
    """
    torch.manual_seed(seed)
    model = BGPT(config).eval()
    scale = min(1.0, (64 / config.hidden_size) ** 0.5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3).add_(0.05 * torch.randn_like(parameter))
            if parameter.ndim == 2:
                parameter.mul_(scale)
    return model


def rows(config: BGPTConfig, count: int, seed: int = 0) -> dict[str, Tensor]:
    """Arguments of `byte_decode` for random patches: prefixes and limits of all lengths."""
    stream = torch.Generator().manual_seed(seed)
    S = config.patch_size
    max_tokens = torch.randint(1, S + 1, (count,), generator=stream)
    tokens = torch.randint(0, config.vocab_size, (count, S), generator=stream, dtype=torch.int16)
    is_decoded = torch.arange(S) >= (max_tokens * torch.rand(count, generator=stream)).long()[:, None]
    return {
        "features": torch.randn(count, config.hidden_size, generator=stream),
        "prefix_tokens": tokens.masked_fill(is_decoded, -1),
        "max_tokens": max_tokens,
        "rng_streams": torch.randint(0, 2**62, (count,), generator=stream).to(torch.uint64),
        "byte_offsets": torch.randint(0, 2**40, (count,), generator=stream).to(torch.uint64),
    }


def decided_model(config: BGPTConfig, seed: int = 0, end: float = 7.5) -> BGPT:
    """A random model with large weights, so that its choices depend on its whole context.

    `end` is added to the logits of the config's `eop`, so that some files end before the context does.
    """
    torch.manual_seed(seed)
    model = BGPT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5)
        base = model.byte_level_decoder.base.transformer
        base.ln_f.bias += end * base.wte.weight[config.eop] / base.wte.weight[config.eop].square().sum()
    return model


def ending_model(config: BGPTConfig) -> BGPT:
    """A model that ends every file immediately."""
    model = random_model(config)
    with torch.no_grad():
        base = model.byte_level_decoder.base.transformer
        base.ln_f.weight.zero_()
        base.ln_f.bias.copy_(base.wte.weight[config.eop] * 100)
    return model
