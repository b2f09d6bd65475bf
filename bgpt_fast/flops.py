"""FLOP counts of bGPT and peak FLOP/s of GPUs: numerator and denominator of MFU (model FLOPs utilisation).

Shape letters: L patches of a document, S bytes per patch, D width, V tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bgpt_fast.config import BGPTConfig

_PEAKS = (
    (r"NVIDIA (H100 80GB HBM3|GH200 480GB|H200)", 989.4e12, 66.9e12),
    (r"NVIDIA (H100|H200) NVL", 835.5e12, 60e12),
    (r"NVIDIA H100 PCIe", 756.5e12, 51.2e12),
    (r"NVIDIA A100[- ]((SXM4|PCIE)-\d+GB|\d+GB PCIe)", 312e12, 19.5e12),
    (r"NVIDIA L40S", 362e12, 91.6e12),
    (r"NVIDIA GeForce RTX 4090", 165.2e12, 82.6e12),
    (r"NVIDIA B200", 2250e12, 75e12),
)


def forward_flops(
    config: BGPTConfig,
    lengths: Sequence[int] | NDArray[np.integer] | Tensor,
    targets: int | None = None,
    *,
    causal: bool = True,
) -> dict[str, int]:
    """FLOPs of one forward pass; a multiply-add counts as two.

    The patch embedding counts as 0, as it is a sum of S rows per patch. Vector operations (norms, GELU, softmax) are
    not counted either. All patches count in all layers, as in the reference; `BGPT` leaves out those of the last patch
    layer's products whose features no target needs.

    Args:
        config: the model.
        lengths: number of patches of each document, in any order; on the CPU.
        targets: patches that the byte decoder processes, 0 for a classifier; None: all but each document's first.
        causal: count only the attention scores that the causal mask keeps; False counts the full square matrices that
            plain matrix products compute.

    Returns:
        FLOPs by part of the model.
    """
    S, D = config.patch_size, config.hidden_size
    L = np.asarray(lengths, dtype=np.int64)
    patches = int(L.sum())
    if targets is None:
        targets = patches - len(L)
    linears = 2 * 12 * D * D  # c_attn 3·D², c_proj D², c_fc and its c_proj 4·D² each
    patch_scores, byte_scores = (
        (int((L * (L + 1) // 2).sum()), S * (S + 1) // 2) if causal else (int((L * L).sum()), S * S)
    )
    return {
        "patch linears": patches * linears * config.patch_num_layers,
        "patch attention": 4 * D * patch_scores * config.patch_num_layers,
        "byte linears": targets * S * linears * config.byte_num_layers,
        "byte attention": 4 * D * targets * byte_scores * config.byte_num_layers,
        "head": 2 * D * config.vocab_size * targets * S,
    }


def training_flops(
    config: BGPTConfig, lengths: Sequence[int] | NDArray[np.integer] | Tensor, targets: int | None = None
) -> int:
    """FLOPs of a training step: the forward pass, and twice as many for the backward pass.

    Recomputation by activation checkpointing does not count, as MFU is defined by the model's FLOPs.

    Args:
        config: the model.
        lengths: number of patches of each document in all batches of the step; on the CPU.
        targets: as in `forward_flops`; fewer if the step samples the targets.
    """
    return 3 * sum(forward_flops(config, lengths, targets).values())


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """A device's peak FLOP/s from its datasheet: matrix products without sparsity.

    Args:
        device: the device of the model.
        dtype: the compute dtype: bfloat16 or float16 (tensor cores), or float32 (without them, torch's default).

    Returns:
        Peak FLOP/s; None for a CPU, a GPU that is not in the table (MIG slices included), or another dtype.

    Source: NVIDIA's datasheets of H100, H200, GH200, A100, L40S and HGX B200 (tensor-core figures halved where they
    include sparsity), and the Ada architecture whitepaper for the RTX 4090 (float32 accumulation).
    """
    return peak_flops_of(torch.cuda.get_device_name(device), dtype) if device.type == "cuda" else None


def peak_flops_of(name: str, dtype: torch.dtype) -> float | None:
    """`peak_flops` by the GPU's name in torch."""
    for pattern, half, single in _PEAKS:
        if re.fullmatch(pattern, name):
            return {torch.bfloat16: half, torch.float16: half, torch.float32: single}.get(dtype)
    return None
