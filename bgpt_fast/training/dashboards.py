"""Logs a run's figures to TensorBoard and Weights & Biases."""

from __future__ import annotations

import json
import math
import secrets
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from bgpt_fast.files import atomic_write


class Dashboards:
    """Writes a run's figures to TensorBoard and W&B; a resumed run continues the curves without duplicate points.

    TensorBoard's files are in `run_dir/tensorboard`; if its package is missing, a warning names it and the run goes on.
    W&B's files are in `run_dir/wandb`, and its run id, with which a resumed run continues, in `run_dir/wandb-id`.
    A dashboard that fails is disabled with a warning: `log.jsonl` has all figures anyway.

    Args:
        run_dir: the run's folder; created if missing.
        tensorboard: whether to write for TensorBoard.
        wandb: whether to log to W&B. If a run resumes from an earlier step, W&B keeps the first figures logged for the
            repeated steps; a deterministic run gives the same figures again.
        project: the W&B project.
        config: the run's settings, JSON-serialisable; shown in both.
        step: steps done before this session. TensorBoard hides figures that were logged earlier for later steps.

    Raises:
        ImportError: `wandb` is True and the package is not installed.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        tensorboard: bool,
        wandb: bool,
        project: str,
        config: dict[str, Any],
        step: int = 0,
    ) -> None:
        self._boards: list[_Board] = []
        # W&B first: if it raises, nothing else is open.
        if wandb:
            self._boards.append(_WandB(run_dir, project, config))
        if tensorboard:
            try:
                self._boards.append(_TensorBoard(run_dir / "tensorboard", config, step))
            except ImportError as error:
                warnings.warn(
                    f"no curves for TensorBoard: {error}; pip install '.[train]' in the repository, or switch it off",
                    stacklevel=2,
                )
            # No failure of a dashboard (e.g. a full disk, an expired login, a folder that is not UTF-8) may end a run.
            except Exception as error:
                _warn_dropped(_TensorBoard, error)

    def write(self, step: int, figures: Mapping[str, float], prefix: str) -> None:
        """Logs the figures of a step as `prefix/name`; omits non-finite ones."""
        finite = {f"{prefix}/{name}": float(value) for name, value in figures.items() if math.isfinite(value)}
        if finite:
            self._each(lambda board: board.write(step, finite))

    def flush(self) -> None:
        """Flushes to disk; called before a checkpoint, so that a crash leaves no gap in the curves."""
        self._each(lambda board: board.flush())

    def close(self) -> None:
        """Flushes and closes; may be called twice."""
        self._each(lambda board: board.close())
        self._boards = []

    def _each(self, act: Callable[[_Board], None]) -> None:
        for board in list(self._boards):
            try:
                act(board)
            except Exception as error:
                self._boards.remove(board)
                _warn_dropped(board, error)


class _Board(Protocol):
    name: str

    def write(self, step: int, figures: dict[str, float]) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


def _warn_dropped(board: _Board | type[_Board], error: Exception) -> None:
    warnings.warn(f"{board.name}: dropped: {type(error).__name__}: {error}", stacklevel=4)


class _TensorBoard:
    name = "TensorBoard"

    def __init__(self, folder: Path, config: dict[str, Any], step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=step + 1)
        text = "".join(f"    {line}\n" for line in json.dumps(config, indent=2).splitlines())
        self._writer.add_text("config", text, step)

    def write(self, step: int, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _WandB:
    name = "W&B"

    def __init__(self, run_dir: Path, project: str, config: dict[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ImportError(
                f"logging to W&B needs wandb: pip install '.[wandb]' in the repository ({error})"
            ) from error
        path = run_dir / "wandb-id"
        if not path.exists():
            with atomic_write(path) as file:
                file.write(secrets.token_hex(8).encode())
        self._run = wandb.init(
            project=project,
            name=run_dir.resolve().name,
            id=path.read_text().strip(),
            resume="allow",
            dir=str(run_dir),
            config=config,
        )

    def write(self, step: int, figures: dict[str, float]) -> None:
        self._run.log(figures, step=step)

    def flush(self) -> None:
        """Nothing to do: W&B sends figures from another process."""

    def close(self) -> None:
        self._run.finish()
