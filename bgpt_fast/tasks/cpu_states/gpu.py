"""Generation of the Philox stream's programs on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from bgpt_fast import _C
from bgpt_fast.checks import check_int
from bgpt_fast.tasks.cpu_states.options import StreamOptions


def generate_on_gpu(
    count: int,
    *,
    options: StreamOptions,
    seed: int = 0,
    start: int = 0,
    small_values: float = 0.0,
    device: torch.device | str = "cuda",
) -> tuple[Tensor, Tensor, Tensor]:
    """Generates the instances `start` … `start + count - 1` of the Philox stream, with the same bytes as `generate`.

    Args:
        count: number of instances.
        options: the machine and its programs.
        seed: 0…2⁶⁴ − 1.
        start: the first index.
        small_values: as in `generate`.
        device: a CUDA device; its current stream is used.

    Returns:
        data: uint8, concatenated traces; offsets: int64 [count + 1], trace i is `data[offsets[i] : offsets[i + 1]]`;
        in_eval: bool [count], whether a program is in the evaluation split. All on `device`.

    Raises:
        TypeError, ValueError: a wrong argument, or a device that is not CUDA.
        RuntimeError: bgpt_fast was built without CUDA, or a launch failed.
    """
    check_int("generate_on_gpu: count", count, 0)
    check_int("generate_on_gpu: seed", seed, 0, 2**64 - 1)
    check_int("generate_on_gpu: start", start, 0, 2**62)
    if torch.device(device).type != "cuda":
        raise ValueError(f"generate_on_gpu: device: expected a CUDA device, got {device}; use generate on the CPU")
    if not _C.with_cuda:
        raise RuntimeError("generate_on_gpu: bgpt_fast was built without CUDA; build it where nvcc is")
    native = options.to_native(small_values)
    with torch.cuda.device(device):
        stream = torch.cuda.current_stream().cuda_stream
        offsets = torch.zeros(count + 1, dtype=torch.int64, device=device)
        _C.cpu_states_sizes_cuda(native, seed, start, count, offsets[1:].data_ptr(), stream)
        torch.cumsum(offsets[1:], 0, out=offsets[1:])
        data = torch.empty(int(offsets[-1]), dtype=torch.uint8, device=device)
        in_eval = torch.empty(count, dtype=torch.bool, device=device)
        _C.cpu_states_write_cuda(
            native,
            seed,
            start,
            count,
            offsets.data_ptr(),
            data.data_ptr(),
            data.numel(),
            in_eval.data_ptr(),
            stream,
        )
    return data, offsets, in_eval
