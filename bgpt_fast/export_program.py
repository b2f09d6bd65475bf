"""torch.export of a model: its forward pass or its scoring as a graph of torch's and this package's ops.

Shape letters: B documents, P packed patches, S bytes a patch, T target patches.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from bgpt_fast.model import BGPT
from bgpt_fast.patches import PackedPatches

_EXAMPLE = (b"", b"two patches and more of an example")


class _Packed(nn.Module):
    """A method of a model as a module that takes the tensors of a batch."""

    def __init__(self, model: BGPT, method: str) -> None:
        super().__init__()
        self.model = model
        self.method = method

    def forward(self, patches: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, ...]:
        batch = PackedPatches.unchecked(patches, cu_seqlens, self.model.config.patch_length)
        if self.method == "forward":
            return tuple(self.model(batch))
        return tuple(self.model.log_likelihood(batch))


def export_program(model: BGPT, method: Literal["forward", "log_likelihood"] = "forward") -> ExportedProgram:
    """Exports a method of a model for batches of any number of patches and documents.

    The program's module takes `patches`, int16 [P, S], and `cu_seqlens`, int32 [B + 1], of a `PackedPatches`, each
    document of at most `patch_length` patches, on the model's device; "log_likelihood" takes two documents or more
    (torch makes graphs for sizes of at least 2, and its results are of size B: add an empty document to a single one).
    It returns the tensors of the method: (loss, nats [T, S],
    indices [T]) or (nats [B], num_bytes [B]). `torch.export.save` and `load` store it; a process that loads it must
    import `bgpt_fast`, which registers the ops.

    Args:
        model: in evaluation mode. The program has its weights.
        method: "forward" or "log_likelihood", as in `BGPT`.

    Raises:
        TypeError, ValueError: not a BGPT, a model in training mode, or another method.
    """
    if not isinstance(model, BGPT):
        raise TypeError(f"export_program: model: expected a BGPT, got {type(model).__name__}")
    if model.training:
        raise ValueError("export_program: model: expected evaluation mode, got training mode; call model.eval()")
    if method not in ("forward", "log_likelihood"):
        raise ValueError(f'export_program: method: expected "forward" or "log_likelihood", got {method!r}')
    batch = PackedPatches.from_bytes([("bin", content) for content in _EXAMPLE], model.config)
    batch = batch.to(model.byte_level_decoder.base.lm_head.weight.device)
    return torch.export.export(
        _Packed(model, method), (batch.patches, batch.cu_seqlens), dynamic_shapes=({0: Dim.DYNAMIC}, {0: Dim.DYNAMIC})
    )
