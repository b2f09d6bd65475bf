"""A full disk is named with the file that could not be written, whoever writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.write_faults import largest_file

from bgpt_fast import BGPT, BGPTConfig
from bgpt_fast.checkpoint.save import save_released
from bgpt_fast.files import write_json
from bgpt_fast.tasks.cpu_states import generate
from bgpt_fast.tasks.cpu_states.chunk_journal import ChunkJournal
from bgpt_fast.tasks.cpu_states.export import write_folder, write_parquet
from bgpt_fast.tasks.cpu_states.predictions import write_predictions
from bgpt_fast.tasks.cpu_states.trace import PredictedTrace
from bgpt_fast.training.checkpoint_store import CheckpointStore, RunState
from bgpt_fast.training.logs import RunLog, write_batches

CONFIG = BGPTConfig(patch_size=2, patch_length=4, hidden_size=4, patch_num_layers=1, byte_num_layers=1, num_heads=1)
TRACES = generate(2, num_registers=2, memory_size=64, max_program=4)

PREDICTED = PredictedTrace(bytes(100), True, num_registers=2, memory_size=64)


def _log(path: Path) -> None:
    log = RunLog(path)
    log.open_at(0, 0)
    log.write({"loss": 1.0, "text": "x" * 100})


def _journal(path: Path) -> None:
    with ChunkJournal(path, TRACES) as journal:
        journal.add(0, PREDICTED, 1.0)


def _predictions(path: Path) -> None:
    write_predictions(path, [trace.name for trace in TRACES], [PREDICTED] * 2)


def _checkpoint(path: Path) -> None:
    CheckpointStore(path).save(1, RunState(CONFIG, BGPT(CONFIG).state_dict()))


@pytest.mark.parametrize(
    "write",
    [
        _log,
        _journal,
        _predictions,
        _checkpoint,
        lambda path: BGPT(CONFIG).save_pretrained(path),
        lambda path: save_released(path, CONFIG, BGPT(CONFIG).state_dict()),
        lambda path: write_json(path, list(range(100))),
        lambda path: write_batches(path, [{"a": torch.zeros(100)}], {}),
        lambda path: write_folder(TRACES, path),
        lambda path: write_parquet(TRACES, path),
    ],
)
def test_the_error_names_the_file(tmp_path: Path, write: Callable[[Path], object]) -> None:
    target = tmp_path / "target"
    with largest_file(40), pytest.raises(OSError, match="File too large") as caught:
        write(target)
    assert str(target) in str(caught.value)
    write(tmp_path / "whole")
    assert any(path.is_file() for path in (tmp_path / "whole", *(tmp_path / "whole").rglob("*")))
