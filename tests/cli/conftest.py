"""Fixtures of the command line's tests."""

from pathlib import Path

import pytest
import torch
from support.cli import CONFIG

from bgpt_fast import BGPT


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """The folder of a tiny random model."""
    torch.manual_seed(0)
    BGPT(CONFIG).save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"
