"""What every item of gpu_check is run with."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from bgpt_fast import BGPTConfig
from bgpt_fast.device import Replay
from tools.gpu_check.plan import ON_CPU

TINY = BGPTConfig(patch_size=4, patch_length=8, hidden_size=32, patch_num_layers=1, byte_num_layers=1, num_heads=4)


class NoGPUError(RuntimeError):
    """The item needs a GPU."""


class Setting(NamedTuple):
    """The device and sizes: `quick` means tiny sizes; `peak` has the measured peak rates and may be empty; `output` is
    the folder for traces."""

    device: torch.device
    quick: bool
    peak: dict[str, float]
    output: Path = Path()

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def require_gpu(self) -> None:
        if not self.on_gpu:
            raise NoGPUError(ON_CPU)


def unrecorded(step: Replay) -> Replay:
    """In place of a CUDA graph: the function itself."""
    return step
