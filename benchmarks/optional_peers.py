"""Peers that need something which may not be there: each is either at hand, or missing with the reason.

FlexAttention, flash-attn and Liger-Kernel have not been run on a GPU yet.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import shutil
from dataclasses import dataclass

import torch
from op_cases import Function
from torch import Tensor
from torch.nn import functional as F

from bgpt_fast import BGPTConfig
from bgpt_fast.config import VOCAB_SIZE

RELEASED = "released way"
REFERENCE = "reference"
COMPILED = "reference, torch.compile"
CACHED = "KV-cached torch"
MEGABYTE = "MEGABYTE-pytorch"
FLEX = "FlexAttention"
FLASH = "flash-attn"
LIGER = "Liger-Kernel"
OURS = "bgpt_fast"


@dataclass(frozen=True)
class _Need:
    """What a peer needs: the module to import, its package, and whether a GPU."""

    module: str
    package: str
    gpu: bool = False


_NEEDS = {
    RELEASED: _Need("transformers", "transformers"),
    CACHED: _Need("transformers", "transformers"),
    MEGABYTE: _Need("MEGABYTE_pytorch", "MEGABYTE-pytorch"),
    FLEX: _Need("torch.nn.attention.flex_attention", "torch", gpu=True),
    FLASH: _Need("flash_attn", "flash-attn", gpu=True),
    LIGER: _Need("liger_kernel", "liger-kernel", gpu=True),
}


def missing(peer: str, device: torch.device) -> str | None:
    """Why a peer cannot run here; None where it can."""
    if peer == COMPILED and device.type == "cpu" and shutil.which("g++") is None and shutil.which("clang++") is None:
        return "torch.compile needs a C++ compiler for the CPU"
    need = _NEEDS.get(peer)
    if need is None:
        return None
    if need.gpu and device.type != "cuda":
        return "runs on a GPU alone"
    if importlib.util.find_spec(need.module) is None:
        return f"not installed: pip install {need.package}"
    return None


def status(device: torch.device) -> dict[str, str]:
    """Every peer with the version of its package, or "missing: " and the reason."""
    found = {}
    for peer in (RELEASED, REFERENCE, COMPILED, CACHED, MEGABYTE, FLEX, FLASH, LIGER):
        reason = missing(peer, device)
        package = _NEEDS[peer].package if peer in _NEEDS else "torch"
        found[peer] = f"{package} {importlib.metadata.version(package)}" if reason is None else f"missing: {reason}"
    return found


OF_OPS = {"patch_attention": (FLEX, FLASH), "linear_cross_entropy": (LIGER,)}
"""Peers of an op beside those of op_cases.py, by the op's name."""


def function_of(peer: str) -> Function:
    """The op of a peer that is not missing."""
    return {FLEX: _flex_documents, FLASH: _flash_documents, LIGER: _liger_cross_entropy}[peer]


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


def megabyte(config: BGPTConfig) -> torch.nn.Module:
    """MEGABYTE of about the size of a bGPT: the same patches, width, depths and heads, weights of its own."""
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
