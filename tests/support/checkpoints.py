"""Small models' weights, released files, and what is expected of a refused checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bgpt_fast import BGPT, BGPTConfig, BGPTForClassification
from bgpt_fast.checkpoint.load import load_weights
from bgpt_fast.checkpoint.schema import LM_HEAD, CheckpointError

Weights = dict[str, Tensor]
SMALL = BGPTConfig(patch_size=2, patch_length=5, hidden_size=8, patch_num_layers=2, byte_num_layers=1, num_heads=2)
OTHER = BGPTConfig(patch_size=3, patch_length=9, hidden_size=16, patch_num_layers=1, byte_num_layers=2, num_heads=1)
LABELS = {"a.bin": 0, "caf\udce9.txt": 1, "µ.md": 2}
EMBEDDING = "patch_level_decoder.patch_embedding.weight"
PATCH_WPE = "patch_level_decoder.base.wpe.weight"


def make_weights(config: BGPTConfig = SMALL, seed: int = 0) -> Weights:
    torch.manual_seed(seed)
    weights = BGPT(config).state_dict()
    noisy = {name: tensor + 0.1 * torch.rand_like(tensor) for name, tensor in weights.items() if name != LM_HEAD}
    return {name: tensor.contiguous() for name, tensor in noisy.items()}


def make_classifier_weights() -> Weights:
    torch.manual_seed(0)
    weights = BGPTForClassification(SMALL, LABELS).state_dict()
    return {name: (tensor + 0.1 * torch.rand_like(tensor)).contiguous() for name, tensor in weights.items()}


def same(a: Weights, b: Weights) -> bool:
    a, b = ({k: v for k, v in weights.items() if k != LM_HEAD} for weights in (a, b))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def assert_refused(source: Path | str, message: str = "") -> None:
    """Checks that the error has this message and names the source."""
    with pytest.raises(CheckpointError, match=message) as caught:
        load_weights(source)
    assert str(source) in str(caught.value)


def is_refused(path: Path) -> bool:
    try:
        load_weights(path)
    except CheckpointError:
        return True
    return False


def change_config(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(change(json.loads(path.read_bytes()))))


def released_weights(weights: dict[str, Tensor], style: str, **others: Any) -> dict[str, Any]:
    """The content of a released checkpoint: the weights of an old transformers, with its masks.

    Args:
        weights: of two patch layers.
        style: "bare", "model" (below that key, beside `others`) or "module" (so, and names begin with it).
    """
    weights = {name: tensor.contiguous() for name, tensor in weights.items()}
    for layer in range(2):
        weights[f"patch_level_decoder.base.h.{layer}.attn.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.uint8)
        weights[f"patch_level_decoder.base.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    if style == "module":
        weights = {f"module.{name}": tensor for name, tensor in weights.items()}
    return weights if style == "bare" else {"model": weights, **others}
