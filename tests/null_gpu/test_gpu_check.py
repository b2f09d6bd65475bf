"""Each piece of gpu_check on the null GPU: an item that compares values fails by that, and by nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.host_faults import HOST_FAULTS

from tools.gpu_check.items import ITEMS
from tools.gpu_check.pieces import PIECES, Setting, run_item
from tools.null_gpu.log import Log

pytestmark = pytest.mark.usefixtures("whole_patches")
SETTING = Setting(torch.device("cuda"), quick=True, peak={})


@pytest.mark.parametrize(("piece", "item"), [(piece, item) for piece in sorted(PIECES) for item in ITEMS[piece]])
def test_a_piece_runs(piece: str, item: str, log: Log, tmp_path: Path) -> None:
    result, _ = run_item(PIECES[piece], item, SETTING._replace(output=tmp_path))
    assert not any(fault in result.get("reason", "") for fault in HOST_FAULTS), result
