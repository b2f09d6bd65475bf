"""Dashboards show each figure once, whatever a run went through, and never end a run."""

from __future__ import annotations

import math
import subprocess
import sys
import time
import types
import warnings
from pathlib import Path
from typing import Any

import pytest

from bgpt_fast.training.dashboards import Dashboards


def open_dashboards(run: Path, *, tensorboard: bool = True, wandb: bool = False, step: int = 0) -> Dashboards:
    return Dashboards(
        run, tensorboard=tensorboard, wandb=wandb, project="bytes", config={"steps": 9, "betas": [0.9, 0.95]}, step=step
    )


def curve(run: Path, name: str, *, purge: bool = True) -> list[tuple[int, float]]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(run / "tensorboard"), purge_orphaned_data=purge)
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_curves(tmp_path: Path) -> None:
    board = open_dashboards(tmp_path)
    board.write(1, {"loss": 2.0, "grad_norm": math.inf}, "train")
    board.write(2, {"loss": math.nan, "grad_norm": 3.0}, "train")
    board.write(2, {"loss": 1.5}, "eval")
    board.close()
    board.close()
    assert curve(tmp_path, "train/loss") == [(1, 2.0)]
    assert curve(tmp_path, "train/grad_norm") == [(2, 3.0)]
    assert curve(tmp_path, "eval/loss") == [(2, 1.5)]


def test_a_resumed_run_has_no_double_points(tmp_path: Path) -> None:
    # The first session was killed after step 5, and its last checkpoint was of step 3.
    first = open_dashboards(tmp_path)
    for step in range(1, 6):
        first.write(step, {"loss": float(step)}, "train")
    first.flush()
    # TensorBoard reads its files in the order of their names, which begin with the second they were made in.
    time.sleep(1.1)
    second = open_dashboards(tmp_path, step=3)
    for step in range(4, 8):
        second.write(step, {"loss": 10.0 + step}, "train")
    second.close()
    expected = [(1, 1.0), (2, 2.0), (3, 3.0), (4, 14.0), (5, 15.0), (6, 16.0), (7, 17.0)]
    assert curve(tmp_path, "train/loss") == expected
    assert len(curve(tmp_path, "train/loss", purge=False)) == len(expected) + 2
    first.close()


def test_tensorboard_is_imported_only_when_used() -> None:
    program = "import sys, bgpt_fast.training.dashboards; print([m for m in sys.modules if 'tensorboard' in m])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_missing_tensorboard_is_named_and_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.warns(UserWarning, match="tensorboard") as warned:
        board = open_dashboards(tmp_path)
    assert len(warned) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        board.write(1, {"loss": 1.0}, "train")
        board.flush()
        board.close()


def test_a_dashboard_that_fails_is_dropped(tmp_path: Path, fake_wandb: list[dict[str, Any]]) -> None:
    board = open_dashboards(tmp_path, wandb=True)

    def fail(figures: dict[str, float], step: int) -> None:
        raise OSError("no space left")

    fake_wandb[0]["run"].log = fail
    with pytest.warns(UserWarning, match="W&B: dropped: OSError: no space left"):
        board.write(1, {"loss": 1.0}, "train")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        board.write(2, {"loss": 1.0}, "train")
        board.close()
    assert curve(tmp_path, "train/loss") == [(1, 1.0), (2, 1.0)]


class FakeRun:
    def __init__(self) -> None:
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.is_finished = False

    def log(self, figures: dict[str, float], step: int) -> None:
        self.logged.append((step, figures))

    def finish(self) -> None:
        self.is_finished = True


@pytest.fixture
def fake_wandb(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A `wandb` without a network; each `init`'s arguments, and its "run"."""
    runs: list[dict[str, Any]] = []

    def init(**settings: Any) -> FakeRun:
        runs.append({**settings, "run": FakeRun()})
        return runs[-1]["run"]

    module = types.ModuleType("wandb")
    module.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    return runs


def test_wandb_is_one_run_over_all_sessions(tmp_path: Path, fake_wandb: list[dict[str, Any]]) -> None:
    run = tmp_path / "my-run"
    for step in (0, 4):
        board = open_dashboards(run, tensorboard=False, wandb=True, step=step)
        board.write(step + 1, {"loss": 2.0, "bad": math.nan}, "train")
        board.write(step + 1, {"bad": math.nan}, "eval")
        board.flush()
        board.close()
    other = open_dashboards(tmp_path / "other", tensorboard=False, wandb=True)
    other.close()
    first, second, third = fake_wandb
    assert first["id"] == second["id"] != third["id"]
    assert first["id"] == (run / "wandb-id").read_text()
    assert first.items() >= {"project": "bytes", "name": "my-run", "resume": "allow", "dir": str(run)}.items()
    assert first["config"]["steps"] == 9
    assert second["run"].logged == [(5, {"train/loss": 2.0})]
    assert second["run"].is_finished
    assert not (run / "tensorboard").exists()


def test_a_missing_wandb_is_refused_before_anything_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r"pip install '\.\[wandb\]'"):
        open_dashboards(tmp_path, wandb=True)
    assert not list(tmp_path.iterdir())


def test_without_dashboards_nothing_is_on_the_disk(tmp_path: Path) -> None:
    board = open_dashboards(tmp_path, tensorboard=False)
    board.write(1, {"loss": 1.0}, "train")
    board.close()
    assert not list(tmp_path.iterdir())
