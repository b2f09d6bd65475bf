"""Packs traces as patches, without a Python object for each document.

Letters: B documents, P patches, S bytes per patch, C bytes per state.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bgpt_fast import _C
from bgpt_fast.config import BGPTConfig
from bgpt_fast.documents import Layout, document_layout
from bgpt_fast.patches import PackedPatches
from bgpt_fast.tasks.cpu_states.machine import state_size
from bgpt_fast.tasks.cpu_states.traces import Traces, thread_count

EXTENSION = "bin"


def pack_traces(
    traces: Traces, config: BGPTConfig, *, states_only: bool = True, threads: int | None = None
) -> PackedPatches:
    """Packs traces as documents with the extension "bin", with the same result as `PackedPatches.from_bytes`.

    Args:
        traces: any number of traces.
        config: patch size and context.
        states_only: targets are the patches with a byte after the memory and the first state, and the end-of-file
            patch; if False, all but the extension patch.
        threads: C++ threads; None means one per core.

    Returns:
        PackedPatches on the CPU.

    Raises:
        ValueError: a trace is longer than the context.
    """
    S = config.patch_size
    layout = trace_layout(
        torch.from_numpy(np.diff(traces.offsets)), config, traces.num_registers, traces.memory_size, states_only
    )
    check_context(layout.max_seqlen, config)
    extension = EXTENSION.encode()[:S]
    patches = torch.empty(layout.num_patches, S, dtype=torch.int16, device="cpu")
    _C.cpu_states_pack(
        traces.data.ctypes.data,
        traces.offsets.ctypes.data,
        len(traces),
        extension,
        S,
        patches.data_ptr(),
        len(patches),
        layout.cu_seqlens.data_ptr(),
        thread_count(threads),
    )
    return PackedPatches.unchecked(patches, *layout)


def trace_layout(sizes: Tensor, config: BGPTConfig, num_registers: int, memory_size: int, states_only: bool) -> Layout:
    """The layout of traces of `sizes` bytes, int64 [B]; targets as `pack_traces` describes them."""
    first = first_target(config, num_registers, memory_size) if states_only else 1
    return document_layout(sizes, config.patch_size, first_target=first)


def first_target(config: BGPTConfig, num_registers: int, memory_size: int) -> int:
    """Index of the patch (the extension patch is 0) that has the first byte after memory and first state."""
    return 1 + (memory_size + state_size(num_registers)) // config.patch_size


def check_context(patches: int, config: BGPTConfig) -> None:
    """Raises ValueError unless a document of `patches` patches fits the context."""
    if patches > config.patch_length:
        raise ValueError(
            f"cpu_states: the longest trace is {patches} patches of {config.patch_size} bytes, with the extension's "
            f"and the end-of-file patch, and the context is {config.patch_length}; use shorter programs (max_program), "
            "a smaller machine, or a model with a longer context"
        )
