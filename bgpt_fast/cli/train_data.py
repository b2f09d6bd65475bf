"""What `bgpt-fast train` learns from: its options as sources, evaluations and a label map."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bgpt_fast.config import BGPTConfig
from bgpt_fast.data import ArrowSource, BatchSource, DataError, FileSource, LabelledSource, MixedSource, PairSource
from bgpt_fast.data.arrow_files import is_arrow_file, is_remote
from bgpt_fast.data.epochs import EpochSource
from bgpt_fast.data.packing import PackedSource
from bgpt_fast.tasks.classification import accuracy_evaluation
from bgpt_fast.tasks.cpu_states import CPUStateSource, generate
from bgpt_fast.tasks.cpu_states.training import teacher_forced_evaluation
from bgpt_fast.training import likelihood_evaluation, rank_and_world_size

if TYPE_CHECKING:
    from bgpt_fast.cli.train import Train

Task = Literal["generation", "conversion", "classification", "cpu-states"]
Evaluate = Callable[[Any], dict[str, float]]
CPU_STATES = "cpu-states"


def task_of(options: Train) -> Task:
    """What `--task auto` means.

    Raises:
        ValueError: the options contradict one another.
    """
    if options.task != "auto":
        task: Task = options.task
    elif options.conversion:
        task = "conversion"
    else:
        task = "generation" if options.data else "cpu-states"
    if task == "conversion" and not options.conversion:
        raise ValueError('--task conversion: expected --conversion, such as "abc->mid" or "abc&mid"')
    if task != "conversion" and options.conversion:
        raise ValueError(f"--conversion: expected --task conversion with it, got --task {task}")
    if task == "cpu-states" and options.data:
        raise ValueError(f"--task cpu-states: expected no --data, got {list(options.data)}")
    if task != "cpu-states" and not options.data:
        raise ValueError(f"--task {task}: expected --data, files and folders to learn from")
    if options.weights and task != "generation":
        raise ValueError(f"--weights: expected --task generation, whose --data they mix, got --task {task}")
    return task


class TrainData:
    """The sources of a run, each rank with its own share, and what the model is evaluated on.

    Args:
        options: of `bgpt-fast train`.
        config: patch size and context.
        labels: a classifier's map, where it is known before; None makes it of the files.

    Raises:
        DataError, ValueError: there is nothing to learn, or the options do not fit together.
    """

    def __init__(self, options: Train, config: BGPTConfig, labels: dict[str, int] | None = None) -> None:
        self._options = options
        self._config = config
        self._task = task_of(options)
        self._rank, self._world_size = rank_and_world_size()
        self.labels = labels
        if self._task == "classification" and labels is None:
            everything = LabelledSource([*options.data, *options.eval_data], config, self._room, split="all")
            self.labels = everything.labels
        self.source = self._source()

    @property
    def _room(self) -> int:
        return max(self._options.patches_per_batch, self._config.patch_length)

    def steps(self, epochs: float, accumulation: int) -> int:
        """Steps of so many epochs.

        Raises:
            ValueError: the data has no epochs of a known length: a mixture, Parquet or Arrow rows, or the machine.
        """
        if not isinstance(self.source, EpochSource):
            raise ValueError("--epochs: expected files, which have a known number; give --training.steps instead")
        batches = self.source.total_patches * epochs / self._room
        return max(1, round(batches / (accumulation * self._world_size)))

    def evaluation(self) -> Evaluate | None:
        """The evaluation on held-out data; None where nothing is held out."""
        options = self._options
        if self._task == "cpu-states":
            if options.eval_programs < 1:
                raise ValueError(f"--eval-programs: expected at least 1, got {options.eval_programs}")
            programs = generate(
                options.eval_programs,
                seed=options.training.seed,
                stream="parallel",
                split="test",
                **asdict(options.machine),
            )
            return teacher_forced_evaluation(programs)
        if not options.eval_data and options.eval_share == 0:
            return None
        batches = self._held_out()
        if not batches:
            return None
        return accuracy_evaluation(batches) if self._task == "classification" else likelihood_evaluation(batches)

    def _source(self) -> BatchSource[Any]:
        shard = {"rank": self._rank, "world_size": self._world_size}
        if self._task == "cpu-states":
            return self._machine(**shard)
        split = {"split": "all" if self._options.eval_data else "train", "eval_share": self._options.eval_share}
        if self._task != "generation" or not self._options.weights:
            kinds = {self._kind(path) for path in self._options.data}
            if len(kinds) == 1 and kinds != {"machine"}:
                return self._open(self._options.data, **split, **shard)
            raise ValueError(
                f"--data: {list(self._options.data)}: expected --weights, one for each, to mix "
                f"{' and '.join(sorted(kinds))}"
            )
        if len(self._options.weights) != len(self._options.data):
            raise ValueError(
                f"--weights: expected one for each of the {len(self._options.data)} --data, "
                f"got {len(self._options.weights)}"
            )
        # The mixture shards: its sources are those of a single process.
        parts = [
            self._machine() if self._kind(path) == "machine" else self._open([path], **split)
            for path in self._options.data
        ]
        seed = self._options.training.seed
        return MixedSource(parts, self._options.weights, seed=seed, **shard)

    def _held_out(self) -> list[Any]:
        """Batches of held-out documents, at most `eval_patches` patches and at least one batch."""
        paths = [path for path in self._options.eval_data or self._options.data if self._kind(path) != "machine"]
        share = 1.0 if self._options.eval_data else self._options.eval_share
        held_out = {"split": "eval", "eval_share": share}
        parts = [self._open([path], **held_out) for path in paths] if self._options.weights else []
        if not parts and paths:
            parts = [self._open(paths, **held_out)]
        # A part of each source, in turn, so that a limit cuts none off.
        taken: list[Any] = []
        patches = 0
        for batches in itertools.zip_longest(*(part.one_pass() for part in parts)):
            for batch in batches:
                if batch is not None and (not taken or patches < self._options.eval_patches):
                    taken.append(batch)
                    patches += (batch.batch if self._task == "classification" else batch).num_patches
            if patches >= self._options.eval_patches:
                break
        return taken

    def _kind(self, path: str) -> Literal["machine", "rows", "files"]:
        if path == CPU_STATES and not Path(path).exists():
            return "machine"
        holds_rows = (
            is_arrow_file(path)
            or is_remote(path)
            or (
                bool(self._options.column)
                and Path(path).is_dir()
                and any(is_arrow_file(found.name) for found in Path(path).rglob("*"))
            )
        )
        if holds_rows and not self._options.column:
            raise DataError(
                f"{path}: expected --column with Parquet and Arrow files, the column to learn; to learn the files' "
                "own bytes give the folder that they are in"
            )
        return "rows" if holds_rows else "files"

    def _open(self, paths: Sequence[str], **arguments: Any) -> PackedSource[Any, Any]:
        options = self._options
        common = (self._config, self._room)
        arguments["seed"] = options.training.seed
        if self._task == "conversion":
            return PairSource(paths, options.conversion, *common, **arguments)
        if self._task == "classification":
            return LabelledSource(paths, *common, labels=self.labels, split_by=options.split_by, **arguments)
        if self._kind(paths[0]) == "rows":
            extension: dict[str, Any] = {"extension": options.extension, "extension_column": options.extension_column}
            return ArrowSource(paths, options.column, self._config, self._room, **extension, **arguments)
        return FileSource(paths, *common, split_by=options.split_by, **arguments)

    def _machine(self, rank: int = 0, world_size: int = 1) -> CPUStateSource:
        return CPUStateSource(
            self._config,
            seed=self._options.training.seed,
            documents_per_batch=self._options.programs_per_batch,
            long_share=self._options.long_share,
            rank=rank,
            world_size=world_size,
            **asdict(self._options.machine),
        )
