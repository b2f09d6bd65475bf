"""The machine as an endless source of training batches on the GPU.

Everything except the two kernels of `generate_on_gpu` is torch, and is tested on the CPU against
`CPUStateSource`. Letters: n traces, P patches, S bytes per patch, M bytes of memory, C bytes per state.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from bgpt_fast.config import EOP, BGPTConfig
from bgpt_fast.documents import patch_positions
from bgpt_fast.patches import PackedPatches
from bgpt_fast.tasks.cpu_states.gpu import generate_on_gpu
from bgpt_fast.tasks.cpu_states.options import StreamOptions
from bgpt_fast.tasks.cpu_states.packing import EXTENSION, trace_layout
from bgpt_fast.tasks.cpu_states.source import CPUStateSource

_EVAL_SHARE = 64  # one program in this many is for evaluation


class DeviceTraces(NamedTuple):
    """Traces in a buffer on a device: trace i is `data[starts[i] : starts[i] + sizes[i]]`."""

    data: Tensor
    starts: Tensor
    sizes: Tensor


class GPUStateSource(CPUStateSource):
    """`CPUStateSource` on a GPU: the same batches, generated and packed on the GPU, without a copy from the host.

    Args:
        config: the model's patch size and context.
        device: a CUDA device.
        options: the other arguments of `CPUStateSource`.

    Raises:
        TypeError, ValueError: a wrong argument, or traces that the context cannot hold.
        RuntimeError: raised by `next_batch`: bgpt_fast was built without CUDA, or a launch failed.
    """

    def __init__(self, config: BGPTConfig, *, device: torch.device | str = "cuda", **options: Any) -> None:
        super().__init__(config, **options)
        self.device = torch.device(device)

    def next_batch(self) -> PackedPatches:
        """This rank's next programs, the long ones first, on the device."""
        R, M = self.options.num_registers, self.options.memory_size
        long = self._long_documents * self.world_size
        rest = self.documents_per_batch * self.world_size - long
        batches = []
        for count, min_program, name in (
            (long, self.options.max_program, "_long_start"),
            (rest, self.options.min_program, "_any_start"),
        ):
            options = StreamOptions(**{**self.options.to_dict(), "min_program": min_program})
            chunks, start = self._select(count, options, getattr(self, name))
            setattr(self, name, start)
            own = count // self.world_size
            for chunk in _slice(chunks, own * self.rank, own):
                batches.append(pack_on_device(chunk, self.config, R, M, states_only=self.states_only))
        return PackedPatches.concatenate(batches)

    def _select(self, count: int, options: StreamOptions, start: int) -> tuple[list[DeviceTraces], int]:
        """The next `count` instances of the split, in chunks, and the index at which the stream continues."""
        chunks = []
        while count:
            generated = {None: count, "train": count + count // _EVAL_SHARE + 8, "eval": count * _EVAL_SHARE}[
                self.split
            ]
            data, offsets, in_eval = generate_on_gpu(
                generated,
                options=options,
                seed=self.seed,
                start=start,
                small_values=self.small_values,
                device=self.device,
            )
            if self.split is None:
                indices = torch.arange(generated, device=self.device)
            else:
                indices = (in_eval == (self.split == "eval")).nonzero()[:, 0]
            indices = indices[:count]
            chunks.append(DeviceTraces(data, offsets[:-1][indices], offsets.diff()[indices]))
            count -= len(indices)
            # Continue after the batch's last instance, so that the index does not depend on the chunk size.
            start += generated if count else int(indices[-1]) + 1
        return chunks, start


def pack_on_device(
    traces: DeviceTraces, config: BGPTConfig, num_registers: int, memory_size: int, *, states_only: bool = True
) -> PackedPatches:
    """As `pack_traces`, in torch, on the traces' device.

    Args:
        traces: at least one, each within the context.
        config: patch size and context.
        num_registers, memory_size: the machine's.
        states_only: as `pack_traces`.
    """
    S, device = config.patch_size, traces.data.device
    layout = trace_layout(traces.sizes, config, num_registers, memory_size, states_only)
    document, position = patch_positions(layout.cu_seqlens, layout.num_patches)
    byte = (position[:, None] - 1) * S + torch.arange(S, device=device)
    is_data = (byte >= 0) & (byte < traces.sizes[document][:, None])
    index = traces.starts[document][:, None] + byte
    patches = torch.where(is_data, traces.data[index.clamp(0, len(traces.data) - 1)].to(torch.int16), EOP)
    extension = EXTENSION.encode()[:S]
    patches[layout.cu_seqlens[:-1].long(), : len(extension)] = torch.tensor(
        list(extension), dtype=torch.int16, device=device
    )
    return PackedPatches.unchecked(patches, *layout)


def _slice(chunks: list[DeviceTraces], start: int, count: int) -> list[DeviceTraces]:
    """Returns the traces start … start + count - 1 of the concatenated chunks."""
    chosen = []
    for chunk in chunks:
        part = slice(max(start, 0), max(start + count, 0))
        if len(chunk.starts[part]):
            chosen.append(DeviceTraces(chunk.data, chunk.starts[part], chunk.sizes[part]))
        start -= len(chunk.starts)
    return chosen
