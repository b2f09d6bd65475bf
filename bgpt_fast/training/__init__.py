"""Training: the step loop, optimisers, schedules, and checkpoints with bit-identical resumption."""

from bgpt_fast.training.checkpoint_store import CheckpointDamagedError, CheckpointWriteError
from bgpt_fast.training.config import TrainConfig
from bgpt_fast.training.distributed import rank_and_world_size
from bgpt_fast.training.errors import NonFiniteLossError, RankFailedError, TrainingInterrupted
from bgpt_fast.training.evaluation import likelihood_evaluation
from bgpt_fast.training.trainer import Trainer, TrainResult

__all__ = [
    "CheckpointDamagedError",
    "CheckpointWriteError",
    "NonFiniteLossError",
    "RankFailedError",
    "TrainConfig",
    "TrainResult",
    "Trainer",
    "TrainingInterrupted",
    "likelihood_evaluation",
    "rank_and_world_size",
]
