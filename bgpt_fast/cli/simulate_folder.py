"""The output folder of `bgpt-fast simulate`: new, resumed, or complete."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bgpt_fast.cli.outputs import remove_leftovers
from bgpt_fast.files import write_json
from bgpt_fast.folder_lock import LOCK, FolderLock

REPORT = "report.json"
UNFINISHED = "unfinished"
_PLAN = "plan.json"


class SimulationFolder:
    """The folder of one simulation, which resumes from it after a stop; locked against other processes.

    Until the simulation is complete, OUTPUT/unfinished/ has the plan and a file for each chunk (`ChunkJournal`).

    Args:
        path: new, empty, or of the same simulation.
        plan: the options that decide the results, JSON-ready.

    Attributes:
        resumed: whether the folder has a part of the simulation.
        complete: whether the folder has all of it.

    Raises:
        FileExistsError: the folder has other contents.
        FolderInUseError: another process uses it.
        OSError: it cannot be created or read.
    """

    def __init__(self, path: Path, plan: Mapping[str, Any]) -> None:
        self.path = path
        self._plan = json.loads(json.dumps(plan))
        self._unfinished = path / UNFINISHED
        self._lock = FolderLock(path, "a simulation")
        try:
            self.resumed, self.complete = self._status()
            if self.complete:
                shutil.rmtree(self._unfinished, ignore_errors=True)
            else:
                remove_leftovers(path)
                if not self.resumed:
                    write_json(self._unfinished / _PLAN, self._plan)
        except BaseException:
            self.close()
            raise

    @staticmethod
    def plan_of(path: Path) -> dict[str, Any] | None:
        """The plan of the simulation that a folder has, complete or not; None without one."""
        return _json(path / UNFINISHED / _PLAN) or _json(path / REPORT).get("plan")

    def chunk(self, index: int) -> Path:
        """Returns the path of the file in which a chunk's predictions are saved during the simulation."""
        return chunk_path(self.path, index)

    def finish(self, report: Mapping[str, Any]) -> None:
        """Writes report.json, which marks the simulation as complete, and removes the saved chunks."""
        write_json(self.path / REPORT, {**report, "plan": self._plan})
        (self._unfinished / _PLAN).unlink(missing_ok=True)  # first: chunks without a plan are ignored
        shutil.rmtree(self._unfinished, ignore_errors=True)

    def close(self) -> None:
        """Releases the folder for other processes."""
        self._lock.release()

    def _status(self) -> tuple[bool, bool]:
        unfinished, complete = _json(self._unfinished / _PLAN), _json(self.path / REPORT).get("plan")
        for plan in (unfinished, complete):
            if plan == self._plan:
                return plan is unfinished, plan is complete
            if plan:
                raise FileExistsError(
                    f"{self.path}: this one was made by other options or another model "
                    f"({', '.join(_changed(plan, self._plan))} differ); choose another --output or remove it"
                )
        others = {entry.name for entry in self.path.iterdir()} - {LOCK}
        if others - {UNFINISHED}:
            raise FileExistsError(
                f"{self.path}: expected a new or empty folder for the predicted traces, or that of an earlier run; "
                "choose another --output or remove it"
            )
        return False, False


def chunk_path(output: Path, index: int) -> Path:
    """The file in which a chunk's predictions are saved during the simulation into `output`."""
    return output / UNFINISHED / f"{index:06d}.piece"


def check_same_plan(output: Path, plan: Mapping[str, Any], main_plan: Mapping[str, Any], rank: int) -> None:
    """Checks that a rank has the first rank's plan, and sees its folder.

    Raises:
        ValueError: it has other options or another model.
        FileNotFoundError: it sees another folder, or none.
    """
    plan, main_plan = (json.loads(json.dumps(one)) for one in (plan, main_plan))
    if plan != main_plan:
        raise ValueError(f"simulate: rank {rank} and rank 0 differ in {', '.join(_changed(plan, main_plan))}")
    if SimulationFolder.plan_of(output) != plan:
        raise FileNotFoundError(f"{output}: rank {rank} does not see the folder of rank 0; expected a shared one")


def _changed(plan: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return sorted(name for name in plan.keys() | other.keys() if plan.get(name) != other.get(name))


def _json(path: Path) -> dict[str, Any]:
    """Returns a JSON file's object; {} if there is no file."""
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
