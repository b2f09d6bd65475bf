"""The CPU-state machine on the null GPU: its kernels' launches. A whole batch needs the sizes that they compute."""

from __future__ import annotations

import torch

from bgpt_fast import _C
from bgpt_fast.tasks.cpu_states.options import StreamOptions
from tools.null_gpu.log import Log


def test_the_machines_kernels_are_launched(log: Log) -> None:
    count, native, stream = 1000, StreamOptions().to_native(), torch.cuda.current_stream().cuda_stream
    offsets = torch.zeros(count + 1, dtype=torch.int64, device="cuda")
    data, in_eval = (torch.empty(size, dtype=torch.uint8, device="cuda") for size in (count, count))
    first = len(log)
    _C.cpu_states_sizes_cuda(native, 1, 0, count, offsets[1:].data_ptr(), stream)
    addresses = offsets.data_ptr(), data.data_ptr(), data.numel(), in_eval.data_ptr()
    _C.cpu_states_write_cuda(native, 1, 0, count, *addresses, stream)
    sizes, write = log.events(first)
    assert "sizes" in sizes.name
    assert "write" in write.name
    for event in (sizes, write):
        assert event.grid[0] * event.threads >= count
