"""Traces as packed patches, without a Python object a document.

Letters: B documents, P patches, S bytes a patch, C bytes a state.
"""

from __future__ import annotations

import numpy as np
import torch

from bgpt_fast import _C
from bgpt_fast.config import BGPTConfig
from bgpt_fast.patches import PackedPatches
from bgpt_fast.tasks.cpu_states.machine import state_size
from bgpt_fast.tasks.cpu_states.traces import Traces, thread_count

EXTENSION = "bin"


def pack_traces(
    traces: Traces, config: BGPTConfig, *, states_only: bool = True, threads: int | None = None
) -> PackedPatches:
    """The traces as documents with the extension "bin", as `PackedPatches.from_bytes` makes them.

    Args:
        traces: any number of traces.
        config: patch size and context.
        states_only: targets are the patches that hold a byte behind the memory and the first state, and the end-of-file
            patch; False: all but the extension patch.
        threads: C++ threads; None means one a core.

    Returns:
        PackedPatches on the CPU.

    Raises:
        ValueError: a trace is longer than the context.
    """
    S = config.patch_size
    sizes = np.diff(traces.offsets)
    lengths = 2 + -(-sizes // S)
    check_context(int(lengths.max(initial=0)), config)
    extension = EXTENSION.encode()[:S]
    P = int(lengths.sum())
    patches = torch.empty(P, S, dtype=torch.int16, device="cpu")
    cu_seqlens = torch.empty(len(traces) + 1, dtype=torch.int32, device="cpu")
    _C.cpu_states_pack(
        traces.data.ctypes.data,
        traces.offsets.ctypes.data,
        len(traces),
        extension,
        S,
        patches.data_ptr(),
        P,
        cu_seqlens.data_ptr(),
        thread_count(threads),
    )
    targets = None
    if states_only:
        starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
        targets = torch.from_numpy(np.arange(P) - starts >= first_target(traces, config))
    return PackedPatches(patches, cu_seqlens, int(lengths.max(initial=0)), targets)


def first_target(traces: Traces, config: BGPTConfig) -> int:
    """Which patch of a document, the extension patch being 0, holds the first byte behind memory and first state."""
    return 1 + (traces.memory_size + state_size(traces.num_registers)) // config.patch_size


def check_context(patches: int, config: BGPTConfig) -> None:
    """Raises ValueError unless a document of so many patches fits the context."""
    if patches > config.patch_length:
        raise ValueError(
            f"cpu_states: the longest trace is {patches} patches of {config.patch_size} bytes, with the extension's "
            f"and the end-of-file patch, and the context is {config.patch_length}; use shorter programs (max_program), "
            "a smaller machine, or a model with a longer context"
        )
