"""Checkpoint folders of a training run: written atomically, checked by SHA-256, never overwritten in place.

    checkpoints/step-00001234/   config.json, {model,optimizer,rng}.safetensors, state.json, manifest.json
                                 an FSDP run also has optimizer/*.safetensors, the optimiser state by rank
    checkpoints/{latest,best}    text files with the name of a folder

A folder is written under a temporary name, every file flushed; then it is renamed, the rename flushed, and finally
`latest` is updated. `BGPT.from_pretrained` accepts such a folder directly.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from bgpt_fast.checkpoint.load import load_weights
from bgpt_fast.checkpoint.save import safetensors_parts, save_weights
from bgpt_fast.checkpoint.schema import PATCH_EMBEDDING, CheckpointError
from bgpt_fast.checkpoint.task import ModelTask
from bgpt_fast.config import BGPTConfig
from bgpt_fast.files import atomic_write, exchange, fsync_folder, open_regular, read_file, write_json
from bgpt_fast.memory import is_out_of_memory, is_shortage
from bgpt_fast.parsing import MAX_BYTES, parse_json, read_json

FORMAT = 2
"""Format 1: AdamW's averages for the patch embedding are [D, S·V], like its weight in released checkpoints; format 2:
[S·V, D], like the parameter."""
_REPLACED = ".old"
_NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)
_MAX_POINTER_BYTES = 4096
_MAX_STATE_BYTES = 1 << 26
_FOLDER = re.compile(r"step-(\d{8,})")
_FILES = ("config.json", "model.safetensors", "optimizer.safetensors", "rng.safetensors", "state.json")
_MANIFEST = "manifest.json"
_SHARDS = "optimizer"
_SHARD_FILE = re.compile(_SHARDS + r"/[\w-]+\.safetensors")


class CheckpointDamagedError(CheckpointError):
    """A training checkpoint is incomplete, or differs from what was saved."""


class CheckpointWriteError(OSError):
    """A training checkpoint could not be written; earlier checkpoints are intact."""


@dataclass
class RunState:
    """The complete state for resuming a run.

    Args:
        model_config: the model's sizes.
        weights: the model's `state_dict`.
        optimizer: tensors of the optimisers' state by name.
        rng: states of the random generators, uint8 tensors by name.
        state: everything else, JSON-serialisable: step, seconds, the source's position, the training config.
        write_shards: writes the optimiser tensors that are sharded over ranks into a folder, called on all ranks; in a
            loaded state they are in `optimizer`, unsharded.
        labels: a classifier's label map; None for a generative model.
        task: what the model is trained for; None if that is not known.
    """

    model_config: BGPTConfig
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    rng: dict[str, Tensor] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    write_shards: Callable[[Path], None] | None = None
    labels: dict[str, int] | None = None
    task: ModelTask | None = None


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        folder: the parent of the checkpoint folders; created by the first save.
        keep_last: number of latest checkpoints to keep, besides the best one.
    """

    def __init__(self, folder: str | os.PathLike[str], keep_last: int = 2) -> None:
        if keep_last < 1:
            raise ValueError(f"CheckpointStore: keep_last: expected at least 1, got {keep_last}")
        self.folder = Path(folder)
        self.keep_last = keep_last

    def path(self, step: int) -> Path:
        """The folder of the checkpoint at `step`."""
        return self.folder / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """Steps that have a checkpoint folder, even a damaged one; ascending."""
        if not self.folder.is_dir():
            return []
        names = (_FOLDER.fullmatch(entry.name) for entry in self.folder.iterdir() if entry.is_dir())
        return sorted(int(name[1]) for name in names if name)

    def save(self, step: int, checkpoint: RunState, *, best: bool = False) -> Path:
        """Writes a checkpoint, then points `latest` (and `best`) at it, then deletes old ones.

        Raises:
            CheckpointWriteError: writing failed, e.g. on a full disk or without memory; `latest` still names a complete
                checkpoint.
        """
        target = self.path(step)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._restore()
            self._remove_leftovers()
            temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=self.folder))
            try:
                os.chmod(temporary, 0o755)
                _write_files(temporary, checkpoint)
                self._replace(temporary, target)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
            fsync_folder(self.folder)
            self._point("latest", target.name)
            if best:
                self._point("best", target.name)
        except (OSError, MemoryError, RuntimeError) as error:
            if isinstance(error, MemoryError | RuntimeError) and not is_out_of_memory(error):
                raise
            raise CheckpointWriteError(
                f"checkpoint of step {step} not written to {self.folder}: {error}; the earlier checkpoints are intact"
            ) from error
        self._prune()
        return target

    def load(self, step: int) -> RunState:
        """Reads the checkpoint at `step` onto the CPU, after verifying it against its manifest.

        Raises:
            CheckpointDamagedError: names the file that is missing, incomplete or altered, or the weight that is NaN.
            OutOfMemoryError, OSError: memory or file descriptors ran out.
        """
        folder = self.path(step)
        version = _verify(folder)
        try:
            weights = load_weights(folder)
            optimizer = safetensors.torch.load_file(folder / "optimizer.safetensors") | _shards(folder / _SHARDS)
            return RunState(
                weights.config,
                weights.state_dict,
                _upgraded(optimizer) if version == 1 else optimizer,
                safetensors.torch.load_file(folder / "rng.safetensors"),
                read_json(folder / "state.json", _MAX_STATE_BYTES),
                labels=weights.labels,
                task=weights.task,
            )
        except (OSError, ValueError, safetensors.SafetensorError) as error:
            if is_shortage(error):
                raise
            raise CheckpointDamagedError(f"{folder}: {error}") from error

    def load_latest(self) -> tuple[int, RunState] | None:
        """The step of the newest intact checkpoint, and the checkpoint; None if the run has no checkpoints.

        Tries `latest`, then the other folders, newest first; warns about each damaged one.

        Raises:
            CheckpointDamagedError: there are checkpoints, but all are damaged.
        """
        self._restore()
        steps = self.steps()
        pointed = self.pointed("latest")
        if not steps and pointed is None:
            return None
        order = sorted(steps, reverse=True)
        if pointed in order:
            order.remove(pointed)
            order.insert(0, pointed)
        elif steps:
            warnings.warn(f"{self.folder / 'latest'} names no checkpoint; trying step {order[0]}", stacklevel=2)
        problems: list[str] = []
        for step in order:
            try:
                checkpoint = self.load(step)
            except CheckpointDamagedError as error:
                problems.append(str(error))
                continue
            for problem in problems:
                warnings.warn(f"damaged checkpoint passed over, going on from step {step}: {problem}", stacklevel=2)
            return step, checkpoint
        raise CheckpointDamagedError(
            f"{self.folder}: no intact checkpoint: {'; '.join(problems) or 'no folder step-*'}. "
            "Restore one from a backup, or start another run folder"
        )

    def latest_settings(self) -> dict[str, Any]:
        """The training settings in the latest checkpoint, unverified; empty without a readable one."""
        step = self.pointed("latest")
        if step is None:
            return {}
        try:
            settings = read_json(self.path(step) / "state.json", _MAX_STATE_BYTES)["config"]
        except (OSError, ValueError, LookupError, TypeError):
            return {}
        return settings if isinstance(settings, dict) else {}

    def pointed(self, name: str) -> int | None:
        """The step that the pointer `latest` or `best` names; None without a readable pointer."""
        try:
            match = _FOLDER.fullmatch(read_file(self.folder / name, _MAX_POINTER_BYTES).decode("ascii").strip())
        except (OSError, ValueError):
            return None
        return int(match[1]) if match else None

    def _replace(self, temporary: Path, target: Path) -> None:
        """Renames a complete folder to `target`; an older one of the same step is exchanged, then deleted."""
        if not target.exists():
            os.rename(temporary, target)
            return
        try:
            exchange(temporary, target)
        except OSError as error:
            if error.errno not in _NO_EXCHANGE:
                raise
            # Between the two, `_restore` finds the old one.
            aside = self.folder / f".{target.name}{_REPLACED}"
            os.rename(target, aside)
            try:
                os.rename(temporary, target)
            except BaseException:
                os.rename(aside, target)
                raise
        fsync_folder(self.folder)
        shutil.rmtree(temporary, ignore_errors=True)

    def _restore(self) -> None:
        """Restores a folder that a killed save had moved away but not replaced yet."""
        for aside in self.folder.glob(f".step-*{_REPLACED}"):
            target = self.folder / aside.name.removeprefix(".").removesuffix(_REPLACED)
            if not target.exists():
                with contextlib.suppress(FileNotFoundError):  # another rank was faster
                    os.rename(aside, target)

    def _point(self, name: str, folder: str) -> None:
        with atomic_write(self.folder / name) as file:
            file.write(folder.encode() + b"\n")

    def _prune(self) -> None:
        latest = self.pointed("latest")
        steps = self.steps()
        # Steps after `latest` are left over from before the run fell back to an earlier checkpoint.
        past = [step for step in steps if latest is None or step <= latest]
        retained = {latest, self.pointed("best"), *past[-self.keep_last :]}
        for step in steps:
            if step not in retained:
                shutil.rmtree(self.path(step), ignore_errors=True)
        self._remove_leftovers()

    def _remove_leftovers(self) -> None:
        for entry in self.folder.glob(".step-*"):
            shutil.rmtree(entry, ignore_errors=True)
        for name in ("latest", "best"):
            for entry in self.folder.glob(f".{name}.*.part"):
                with contextlib.suppress(OSError):
                    entry.unlink()


def _write_files(folder: Path, checkpoint: RunState) -> None:
    labels, task = checkpoint.labels, checkpoint.task
    save_weights(folder, checkpoint.model_config, checkpoint.weights, labels=labels, task=task)
    for name, tensors in (("optimizer", checkpoint.optimizer), ("rng", checkpoint.rng)):
        with atomic_write(folder / f"{name}.safetensors") as file:
            file.writelines(safetensors_parts(tensors))
    write_json(folder / "state.json", checkpoint.state)
    shards: list[str] = []
    if checkpoint.write_shards is not None:
        (folder / _SHARDS).mkdir()
        checkpoint.write_shards(folder / _SHARDS)
        shards = _shard_names(folder)
        for name in shards:
            with open(folder / name, "rb") as shard:
                os.fsync(shard.fileno())
        fsync_folder(folder / _SHARDS)
    with atomic_write(folder / _MANIFEST) as file:
        file.write(_manifest({name: _digest(folder / name) for name in (*_FILES, *shards)}))
    fsync_folder(folder)


def _manifest(digests: dict[str, str], version: int = FORMAT) -> bytes:
    """The serialised manifest, including its own checksum; deterministic, so a file with other bytes is damaged."""
    body: dict[str, Any] = {"format": version, "sha256": digests}
    seal = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return (json.dumps({**body, "seal": seal}, sort_keys=True, indent=1) + "\n").encode()


def _verify(folder: Path) -> int:
    """Verifies a checkpoint's files and returns its format; raises CheckpointDamagedError if any file has changed."""
    try:
        stored = read_file(folder / _MANIFEST, MAX_BYTES)
        manifest = parse_json(stored, _MANIFEST)
        version, digests = manifest["format"], manifest["sha256"]
        shards = sorted(set(digests) - set(_FILES))
        whole = len(digests) == len(_FILES) + len(shards) and all(_SHARD_FILE.fullmatch(name) for name in shards)
        if (
            version not in (1, FORMAT)
            or _manifest(digests, version) != stored
            or not whole
            or shards != _shard_names(folder)
        ):
            raise ValueError("not as it was written")
    except (OSError, ValueError, KeyError, TypeError) as error:
        if is_shortage(error):
            raise
        raise CheckpointDamagedError(f"{folder / _MANIFEST}: {error}") from error
    for name in (*_FILES, *shards):
        try:
            digest = _digest(folder / name)
        except OSError as error:
            if is_shortage(error):
                raise
            raise CheckpointDamagedError(f"{folder / name}: {error}") from error
        if digest != digests[name]:
            raise CheckpointDamagedError(f"{folder / name}: SHA-256 expected {digests[name]}, got {digest}")
    return int(version)


def _upgraded(optimizer: dict[str, Tensor]) -> dict[str, Tensor]:
    """Converts the optimiser state of a format 1 checkpoint to format 2."""
    transposed = {f"{PATCH_EMBEDDING}/{average}" for average in ("exp_avg", "exp_avg_sq")}
    return {name: value.t().contiguous() if name in transposed else value for name, value in optimizer.items()}


def _shard_names(folder: Path) -> list[str]:
    return sorted(f"{_SHARDS}/{path.name}" for path in (folder / _SHARDS).glob("*"))


def _shards(folder: Path) -> dict[str, Tensor]:
    if not folder.is_dir():
        return {}
    # Imported lazily: torch.distributed.checkpoint takes a second to import, and few runs use it.
    from bgpt_fast.training.shards import load_shards

    return load_shards(folder)


def _digest(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
