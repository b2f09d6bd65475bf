"""The output folder of `bgpt-fast simulate`: begun, gone on with after a kill, or found complete."""

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
    """A folder that one simulation fills, however often it is killed and run again; nobody else may meanwhile.

    Until the end, OUTPUT/unfinished/ holds what was asked for and a file a piece (`SavedPiece`).

    Args:
        path: new, empty, or begun by the same simulation.
        plan: what decides the simulation's results, JSON-ready.

    Attributes:
        resumed: whether a simulation that was stopped goes on here.
        complete: whether it is there already, whole.

    Raises:
        FileExistsError: the folder holds something else.
        FolderInUseError: another process works in it.
        OSError: it cannot be made or read.
    """

    def __init__(self, path: Path, plan: Mapping[str, Any]) -> None:
        self.path = path
        self._plan = json.loads(json.dumps(plan))
        self._unfinished = path / UNFINISHED
        self._lock = FolderLock(path, "a simulation")
        try:
            self.resumed, self.complete = self._look()
            if self.complete:
                shutil.rmtree(self._unfinished, ignore_errors=True)
            else:
                remove_leftovers(path)
                if not self.resumed:
                    write_json(self._unfinished / _PLAN, self._plan)
        except BaseException:
            self.close()
            raise

    def piece(self, index: int) -> Path:
        """Where a piece is saved while it is made."""
        return self._unfinished / f"{index:06d}.piece"

    def finish(self, report: Mapping[str, Any]) -> None:
        """Writes report.json, which says that all else is there, and clears the saved pieces away."""
        write_json(self.path / REPORT, {**report, "plan": self._plan})
        (self._unfinished / _PLAN).unlink(missing_ok=True)  # first: without their plan the others are leftovers
        shutil.rmtree(self._unfinished, ignore_errors=True)

    def close(self) -> None:
        """Lets others in."""
        self._lock.release()

    def _look(self) -> tuple[bool, bool]:
        begun = self._unfinished / _PLAN
        made = self.path / REPORT
        for file, found in ((begun, _json(begun)), (made, _json(made).get("plan"))):
            if found == self._plan:
                return file == begun, file == made
            if found:
                changed = sorted(name for name in self._plan if found.get(name) != self._plan[name])
                raise FileExistsError(
                    f"{self.path}: this one was made by other options or another model ({', '.join(changed)} differ); "
                    "choose another --output or remove it"
                )
        others = {entry.name for entry in self.path.iterdir()} - {LOCK}
        if others - {UNFINISHED}:
            raise FileExistsError(
                f"{self.path}: expected a new or empty folder for the predicted traces, or the one that the same "
                "command began; choose another --output or remove it"
            )
        return False, False


def _json(path: Path) -> dict[str, Any]:
    """A JSON file's object; empty where there is none."""
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
