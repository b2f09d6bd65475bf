"""CPU-state instances made on a GPU, compared with the CPU's."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.op_measure import mismatch, wrong_result


def check_states(count: int, device: torch.device) -> None:
    """Compares the first instances of the parallel stream, byte for byte.

    Raises:
        WrongResultError: names the wrong sizes, or the first wrong instance and its first wrong bytes.
    """
    from bgpt_fast.tasks.cpu_states import StreamOptions, generate, generate_on_gpu

    data, offsets, _ = (t.cpu() for t in generate_on_gpu(count, options=StreamOptions(), seed=1, device=device))
    expected = [trace.to_bytes() for trace in generate(count, seed=1, stream="philox")]
    if wrong := mismatch("sizes", offsets.diff(), torch.tensor([len(one) for one in expected]), 0.0):
        raise wrong_result("CPU states", [wrong])
    for index, one in enumerate(expected):
        ours = data[int(offsets[index]) : int(offsets[index + 1])]
        if wrong := mismatch(f"instance {index}", ours, torch.from_numpy(np.frombuffer(one, np.uint8).copy()), 0.0):
            raise wrong_result("CPU states", [wrong])
