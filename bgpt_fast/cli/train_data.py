"""The data of `bgpt-fast train`: its sources, evaluation and label map, from the options."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch

from bgpt_fast import _C
from bgpt_fast.cli.train_options import Train
from bgpt_fast.config import BGPTConfig
from bgpt_fast.data import ArrowSource, BatchSource, DataError, FileSource, LabelledSource, MixedSource, PairSource
from bgpt_fast.data.arrow_files import is_arrow_file, is_remote
from bgpt_fast.data.epochs import EpochSource
from bgpt_fast.data.packing import PackedSource
from bgpt_fast.data.source import EmptySplitError
from bgpt_fast.device import resolve_device
from bgpt_fast.documents import extension_of
from bgpt_fast.generation import Prompt
from bgpt_fast.tasks.classification import accuracy_evaluation
from bgpt_fast.tasks.cpu_states import CPUStateSource, Trace, generate
from bgpt_fast.tasks.cpu_states.gpu_source import GPUStateSource
from bgpt_fast.tasks.cpu_states.training import teacher_forced_evaluation
from bgpt_fast.training import likelihood_evaluation, rank_and_world_size

Task = Literal["generation", "conversion", "classification", "cpu-states"]
Evaluate = Callable[[Any], dict[str, float]]
CPU_STATES = "cpu-states"
SAMPLES = 3
"""Number of held-out programs or pairs that samples during training use."""


def task_of(options: Train) -> Task:
    """Returns the task; `--task auto` derives it from the other options.

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
    if options.column and task != "generation":
        raise ValueError(f"--column: expected Parquet or Arrow files to learn as they are, got --task {task}")
    if options.eval_data and not options.data:
        raise ValueError(f"--eval-data: expected --data with it, got {list(options.eval_data)} alone")
    if task == "conversion" and options.split_by == "content":
        raise ValueError("--split-by content: expected single files; pairs are held out by their path")
    for name in ("extension", "extension_column"):
        if not options.column and getattr(options, name) != getattr(type(options), name):
            raise ValueError(
                f"--{name.replace('_', '-')}: expected --column with it, a column of Parquet or Arrow files"
            )
    return task


class TrainData:
    """The source of a run, with this rank's share of the data, and its evaluation.

    Args:
        options: those of `bgpt-fast train`.
        config: patch size and context.
        labels: the label map of a trained classifier; None derives one from the files.

    Attributes:
        evaluation_text: what `evaluation` scores, in words; "" before, and if there is none.
        sample_prompts: of held-out pairs, for samples during training; empty before `evaluation`, and of other tasks.
        sample_programs: held-out programs of the machine, likewise.

    Raises:
        DataError, ValueError: there is no data, or the options contradict each other.
    """

    def __init__(self, options: Train, config: BGPTConfig, labels: dict[str, int] | None = None) -> None:
        self._options = options
        self._config = config
        self._task = task_of(options)
        self._rank, self._world_size = rank_and_world_size()
        self.labels = labels
        self.evaluation_text = ""
        self.sample_prompts: list[Prompt] = []
        self.sample_programs: Sequence[Trace] = ()
        self._check_paths()
        if self._task != "cpu-states" and options.patches_per_batch < config.patch_length:
            warnings.warn(
                f"--patches-per-batch {options.patches_per_batch:,}: a batch holds at least the context of "
                f"{config.patch_length:,} patches, so that is its size; a smaller --model.patch-length helps",
                stacklevel=2,
            )
        if self._task == "classification" and labels is None:
            with warnings.catch_warnings(action="ignore"):  # the source of the run warns of the same
                everything = LabelledSource([*options.data, *options.eval_data], config, self._max_patches, split="all")
            self.labels = everything.labels
        self.source = self._source()
        unknown = self.source.describe()["skipped"].get("unknown label") if labels is not None else None
        if unknown:
            warnings.warn(
                f"--init-from: {unknown} files are of none of its classes, {list(labels or ())}, and left out; for "
                "other classes start from a generative checkpoint",
                stacklevel=2,
            )

    @property
    def _max_patches(self) -> int:
        return max(self._options.patches_per_batch, self._config.patch_length)

    def steps(self, epochs: float, accumulation: int) -> int:
        """Returns the number of training steps in a number of epochs.

        Raises:
            ValueError: an epoch has no known length: a mixture, Parquet or Arrow rows, or the machine; or
                `epochs` is not above 0.
        """
        if not 0 < epochs < math.inf:
            raise ValueError(f"--epochs: expected a number of passes above 0, or 0 for none, got {epochs}")
        if not isinstance(self.source, EpochSource):
            raise ValueError("--epochs: expected files, which have a known number; give --training.steps instead")
        return max(1, round(self.source.epoch_batches * epochs / (accumulation * self._world_size)))

    def evaluation(self) -> Evaluate | None:
        """Returns the evaluation on held-out data; None if there is none."""
        options = self._options
        if self._task == "cpu-states":
            if options.eval_programs < 1:
                raise ValueError(f"--eval-programs: expected at least 1, got {options.eval_programs}")
            programs = generate(
                options.eval_programs,
                seed=options.training.seed,
                stream="philox",
                split="eval",
                **asdict(options.machine),
            )
            self.evaluation_text = f"{len(programs):,} programs (--eval-programs)"
            self.sample_programs = programs[:SAMPLES]
            return teacher_forced_evaluation(programs)
        if not options.eval_data and options.eval_share == 0:
            return None
        if options.eval_patches < 1:
            raise ValueError(f"--eval-patches: expected at least 1, got {options.eval_patches}")
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
        # Ranks shard the mixture, not its sources.
        sources = [
            self._machine() if self._kind(path) == "machine" else self._open([path], **split)
            for path in self._options.data
        ]
        seed = self._options.training.seed
        return MixedSource(sources, self._options.weights, seed=seed, **shard)

    def _held_out(self) -> list[Any]:
        """Returns batches of held-out documents with about `eval_patches` patches, at least one batch."""
        paths = [path for path in self._options.eval_data or self._options.data if self._kind(path) != "machine"]
        share = 1.0 if self._options.eval_data else self._options.eval_share
        held_out = {"split": "eval", "eval_share": share}
        groups = [[path] for path in paths]
        if not self._options.weights:
            groups = [[path for path in paths if self._kind(path) == kind] for kind in ("rows", "files")]
        sources = []
        for group in filter(None, groups):
            with contextlib.suppress(EmptySplitError):
                sources.append(self._open(group, **held_out))
        if not sources:
            warnings.warn(
                f"--eval-share {self._options.eval_share}: no document falls into it, so nothing is evaluated; give a "
                "larger share, or --eval-data",
                stacklevel=3,
            )
        # Each source has the same share, so that the limit excludes none of them.
        share = max(self._options.eval_patches // max(len(sources), 1), 1)
        result = [batch for source in sources for batch in source.evaluation_batches(share)]
        self.evaluation_text = self._evaluation_text(sources, result)
        for source in sources:
            if isinstance(source, PairSource):
                self.sample_prompts = [_prompt(*pair) for pair in source.paths[:SAMPLES]]
        return result

    def _evaluation_text(self, sources: Sequence[PackedSource[Any, Any]], batches: Sequence[Any]) -> str:
        """How much is held out, and how much of that an evaluation scores."""
        packed = [batch.batch if self._task == "classification" else batch for batch in batches]
        documents, patches = sum(one.num_documents for one in packed), sum(one.num_patches for one in packed)
        counts = [len(source) for source in sources if isinstance(source, EpochSource)]
        kind = {"conversion": "pairs", "classification": "files"}.get(self._task, "files")
        of = f"{sum(counts):,} {kind}" if len(counts) == len(sources) else "rows and files"
        origin = "--eval-data" if self._options.eval_data else f"--eval-share {self._options.eval_share:g}"
        unit = "windows" if self._task == "generation" else "documents"
        over = sum(source.describe()["over_context"] for source in sources if isinstance(source, PairSource))
        of += f", {over:,} more over the context," if over else ""
        return f"{of} ({origin}); an evaluation scores {documents:,} {unit} of them, {patches:,} patches"

    def _check_paths(self) -> None:
        """Raises, or warns, if paths contradict the options or each other."""
        options = self._options
        if options.column and all(self._kind(path) != "rows" for path in (*options.data, *options.eval_data)):
            raise ValueError(f"--column: expected Parquet or Arrow files, got --data {list(options.data)}")
        if any(self._kind(path) == "machine" for path in options.eval_data):
            raise ValueError(f"--eval-data: expected files and folders, got {CPU_STATES}, and there is no such file")
        for path, data in itertools.product(options.eval_data, options.data):
            if _is_in(path, data) or _is_in(data, path):
                warnings.warn(
                    f"--eval-data {path}: is training data, too, with --data {data}; give other files, or none to hold "
                    "out a share of --data",
                    stacklevel=3,
                )
        if not options.weights or options.eval_data or options.eval_share == 0 or options.split_by == "content":
            return
        for path, data in itertools.permutations(options.data, 2):
            if self._kind(path) == self._kind(data) == "files" and _is_in(path, data) and not _is_in(data, path):
                raise ValueError(
                    f"--data: {path} is in {data}: each source of a mixture holds out files by their path below it, so "
                    "one may train on what the other holds out; give --split-by content or --eval-data"
                )

    def _kind(self, path: str) -> Literal["machine", "rows", "files"]:
        if path == CPU_STATES and not Path(path).exists():
            return "machine"
        holds_rows = (
            is_arrow_file(path)
            or is_remote(path)
            or (
                bool(self._options.column)
                and Path(path).is_dir()
                and any(is_arrow_file(file.name) for file in Path(path).rglob("*"))
            )
        )
        if holds_rows and not self._options.column:
            raise DataError(
                f"{path}: expected --column with Parquet and Arrow files, the column to learn; to learn the bytes of "
                "the files themselves give their folder"
            )
        return "rows" if holds_rows else "files"

    def _open(self, paths: Sequence[str], **arguments: Any) -> PackedSource[Any, Any]:
        options = self._options
        common = (self._config, self._max_patches)
        arguments["seed"] = options.training.seed
        if self._task == "conversion":
            return PairSource(paths, options.conversion, *common, **arguments)
        if self._task == "classification":
            return LabelledSource(paths, *common, labels=self.labels, split_by=options.split_by, **arguments)
        if self._kind(paths[0]) == "rows":
            extension: dict[str, Any] = {"extension": options.extension, "extension_column": options.extension_column}
            return ArrowSource(paths, options.column, self._config, self._max_patches, **extension, **arguments)
        return FileSource(paths, *common, split_by=options.split_by, **arguments)

    def _machine(self, rank: int = 0, world_size: int = 1) -> CPUStateSource:
        arguments: dict[str, Any] = {
            "seed": self._options.training.seed,
            "documents_per_batch": self._options.programs_per_batch,
            "long_share": self._options.long_share,
            "small_values": self._options.small_values,
            "rank": rank,
            "world_size": world_size,
            **asdict(self._options.machine),
        }
        gpu = self._machine_gpu()
        if gpu is None:
            return CPUStateSource(self._config, **arguments)
        return GPUStateSource(self._config, device=gpu, **arguments)

    def _machine_gpu(self) -> torch.device | None:
        """Returns the GPU that generates programs; None for the CPU.

        Raises:
            ValueError: `--machine-on gpu` is impossible; the message says why.
        """
        machine_on, training = self._options.machine_on, self._options.training
        if machine_on == "cpu":
            return None
        device = rank_device(training.device)
        problems = {
            f"--training.device cuda, got {device}": device.type != "cuda",
            "a build with CUDA, got one without: build bgpt_fast where nvcc is": not _C.with_cuda,
            "no --training.prefetch-process, whose batches come from the CPU": training.prefetch_process,
        }
        problem = next((text for text, applies in problems.items() if applies), None)
        if problem is not None and machine_on == "gpu":
            raise ValueError(f"--machine-on gpu: expected {problem}")
        return device if problem is None else None


def _prompt(source: str, target: str) -> Prompt:
    """The prompt of the conversion of a file of a pair."""
    return Prompt(extension_of(target), source=(extension_of(source), Path(source).read_bytes()))


def rank_device(name: str) -> torch.device:
    """Returns the device of this rank in `Trainer`, from a name that `resolve_device` accepts.

    It has an explicit index, since the thread that prepares batches does not set the current device.
    """
    rank, world_size = rank_and_world_size()
    if world_size > 1 and name in ("auto", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", rank)) % torch.cuda.device_count())
    return resolve_device(name)


def _is_in(path: str, folder: str) -> bool:
    if is_remote(path) or is_remote(folder):
        return path == folder
    return Path(path).resolve().is_relative_to(Path(folder).resolve())
