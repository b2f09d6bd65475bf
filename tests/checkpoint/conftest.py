"""Fixtures: weights, a saved model, a saved classifier."""

from __future__ import annotations

from pathlib import Path

import pytest
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
