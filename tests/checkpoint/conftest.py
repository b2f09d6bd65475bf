"""Fixtures: weights, a saved model, a saved classifier, a hub's cache."""

from __future__ import annotations

import os
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from support.checkpoints import (
    LABELS,
    SMALL,
    Weights,
    make_classifier_weights,
    make_weights,
)

from bgpt_fast.checkpoint.save import save_weights


@pytest.fixture
def weights() -> Weights:
    return make_weights()


@pytest.fixture
def folder(tmp_path: Path, weights: Weights) -> Path:
    save_weights(tmp_path / "model", SMALL, weights)
    return tmp_path / "model"


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    save_weights(tmp_path / "classifier", SMALL, make_classifier_weights(), labels=LABELS)
    return tmp_path / "classifier"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub in a folder: owner/name/file."""
    root = tmp_path / "hub"

    def download(repository: str, filename: str) -> str:
        if not (root / repository).is_dir():
            raise LocalEntryNotFoundError(f"cannot reach {repository}")
        if not (root / repository / filename).is_file():
            raise EntryNotFoundError(f"no {filename}")
        return str(root / repository / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda repository: sorted(os.listdir(root / repository)))
    monkeypatch.chdir(tmp_path)
    return root
