"""Names of weights as others store them: those of wrapped models, mask buffers, either name of tied weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bgpt_fast.checkpoint.schema import CLASSIFIER, LM_HEAD, WTE, CheckpointError

_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Parts of names that DataParallel, torch.compile, FSDP and activation checkpointing add, anywhere in a name."""
_PREFIX = re.compile(r"(.+\.)(?:patch_level_decoder|byte_level_decoder|char_level_decoder)\.")
"""What a model that is a part of another one has before its names, as "model." in Lightning's checkpoints."""
_NOTAGEN_BYTE_DECODER, _BYTE_DECODER = "char_level_decoder.", "byte_level_decoder."
_MASK_BUFFER = re.compile(r"\.h\.\d+\.attn\.(bias|masked_bias)$")


def released_names(state_dict: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The weights under their released names.

    Args:
        state_dict: the weights of a model, possibly wrapped or a part of another one, with or without the mask buffers
            that old transformers versions stored, and with either or both names of the tied `wte` and `lm_head`.
        source: prefix of error messages.

    Returns:
        The weights without wrappers' parts of names, what precedes the decoders' names, and mask buffers, those of
        NotaGen under bGPT's names; a generative model's have `wte` if either of the tied ones is there.

    Raises:
        CheckpointError: two weights get the same name and are not equal.
    """
    weights: dict[str, Any] = {}
    unwrapped = {name: ".".join(part for part in name.split(".") if part not in _WRAPPERS) for name in state_dict}
    prefixes = {match[1] for plain in unwrapped.values() if (match := _PREFIX.match(plain))}
    for name, tensor in state_dict.items():
        plain = unwrapped[name]
        plain = plain.removeprefix(next(filter(plain.startswith, prefixes), ""))
        if plain.startswith(_NOTAGEN_BYTE_DECODER):
            plain = _BYTE_DECODER + plain.removeprefix(_NOTAGEN_BYTE_DECODER)
        if _MASK_BUFFER.search(plain):
            continue
        if plain in weights and not _is_same(weights[plain], tensor):
            raise CheckpointError(
                f"{source}: {plain}: expected one tensor, got several with other values, one of them as {name}; keep "
                "those of one model"
            )
        weights[plain] = tensor
    if LM_HEAD in weights and WTE not in weights and f"{CLASSIFIER}.weight" not in weights:
        weights[WTE] = weights.pop(LM_HEAD)
    return weights


def notagen_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under bGPT's names, under those of NotaGen."""
    return {name.replace(_BYTE_DECODER, _NOTAGEN_BYTE_DECODER, 1): tensor for name, tensor in state_dict.items()}


def _is_same(one: object, other: object) -> bool:
    return isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other)
