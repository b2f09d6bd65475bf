"""Checkpoints of models: `load_weights`, `save_weights`, `save_released`, and checks of their content."""

from bgpt_fast.checkpoint.load import Checkpoint, load_weights
from bgpt_fast.checkpoint.model_card import ModelCard
from bgpt_fast.checkpoint.save import save_released, save_weights, to_released
from bgpt_fast.checkpoint.schema import CheckpointError, validate_state_dict
from bgpt_fast.checkpoint.task import Machine, ModelTask

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Machine",
    "ModelCard",
    "ModelTask",
    "load_weights",
    "save_released",
    "save_weights",
    "to_released",
    "validate_state_dict",
]
