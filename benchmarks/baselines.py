"""Baselines from other libraries, each either installed or missing with the reason."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import shutil

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.names import BASELINES, CACHED, COMPILED, FLASH, FLEX, LIGER, MEGABYTE, PLAIN_COMPILED, RELEASED
from benchmarks.op_cases import Function
from bgpt_fast import BGPTConfig
from bgpt_fast.config import VOCAB_SIZE

_PACKAGES = {
    RELEASED: ("transformers", "transformers"),
    CACHED: ("transformers", "transformers"),
    MEGABYTE: ("MEGABYTE-pytorch", "MEGABYTE_pytorch"),
    FLEX: ("torch", "torch.nn.attention.flex_attention"),
    FLASH: ("flash-attn", "flash_attn"),
    LIGER: ("liger-kernel", "liger_kernel"),
}
"""The package of a baseline and the module to import; torch for all others."""
_GPU_ONLY = (FLEX, FLASH, LIGER)


def missing(baseline: str, device: torch.device) -> str | None:
    """Why a baseline cannot run here; None where it can."""
    is_compiled = baseline in (COMPILED, PLAIN_COMPILED)
    if is_compiled and device.type == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
        return "torch.compile needs a C++ compiler for the CPU"
    if baseline in _GPU_ONLY and device.type != "cuda":
        return "needs a GPU"
    package, module = _PACKAGES.get(baseline, ("torch", ""))
    return f"not installed: pip install {package}" if module and not importlib.util.find_spec(module) else None


def status(device: torch.device) -> dict[str, str]:
    """Every baseline with its package's version, or "missing: " and the reason."""
    states = {}
    for baseline in BASELINES:
        reason, package = missing(baseline, device), _PACKAGES.get(baseline, ("torch",))[0]
        states[baseline] = f"missing: {reason}" if reason else f"{package} {importlib.metadata.version(package)}"
    return states


@functools.cache
def _flex_of(patches: int, length: int) -> tuple[Function, object]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def causal_in_document(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (i >= j) & (i // length == j // length)

    mask = create_block_mask(causal_in_document, None, None, patches, patches, device="cuda")
    return torch.compile(flex_attention, dynamic=False), mask


def _flex_documents(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, length: int) -> Tensor:
    attention, mask = _flex_of(len(q), length)
    q, k, v = (t.transpose(0, 1)[None] for t in (q, k, v))
    return attention(q, k, v, block_mask=mask)[0].transpose(0, 1)


def _flash_documents(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, length: int) -> Tensor:
    from flash_attn import flash_attn_varlen_func

    return flash_attn_varlen_func(q, k, v, cu_seqlens, cu_seqlens, length, length, causal=True)


def _liger_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    from liger_kernel.transformers.functional import liger_cross_entropy

    return liger_cross_entropy(F.linear(x, weight), targets.long(), reduction="none")


OF_OPS: dict[str, dict[str, Function]] = {
    "patch_attention": {FLEX: _flex_documents, FLASH: _flash_documents},
    "linear_cross_entropy": {LIGER: _liger_cross_entropy},
}
"""Additional baselines of ops, which are not in op_cases.py, by the op's name."""


def megabyte(config: BGPTConfig) -> torch.nn.Module:
    """MEGABYTE of about the size of a bGPT: the same patches, width, depths and heads, but its own weights."""
    from MEGABYTE_pytorch import MEGABYTE as Megabyte

    return Megabyte(
        num_tokens=VOCAB_SIZE,
        dim=(config.hidden_size, config.hidden_size),
        depth=(config.patch_num_layers, config.byte_num_layers),
        max_seq_len=(config.patch_length, config.patch_size),
        dim_head=config.hidden_size // config.patch_heads,
        heads=config.patch_heads,
        pos_emb=True,
        flash_attn=True,
    )
