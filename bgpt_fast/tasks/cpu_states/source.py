"""An endless source of training batches of random programs, without files."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Unpack

from bgpt_fast.checkpoint.task import ModelTask
from bgpt_fast.checks import check_int
from bgpt_fast.config import BGPTConfig
from bgpt_fast.data.source import check_rank
from bgpt_fast.deprecation import renamed_value
from bgpt_fast.documents import count_patches
from bgpt_fast.patches import PackedPatches
from bgpt_fast.tasks.cpu_states.options import MachineOptions, StreamOptions
from bgpt_fast.tasks.cpu_states.packing import EXTENSION, check_context, pack_traces
from bgpt_fast.tasks.cpu_states.streams import OLD_SPLITS, Split, generate
from bgpt_fast.tasks.cpu_states.traces import Traces

_MAX_SEED = 2**64 - 1
_LONG_START = 2**61


class CPUStateSource:
    """Endless batches of programs of the Philox stream, in order.

    Args:
        config: the model's patch size and context.
        seed: seed of the stream, 0…2⁶⁴ − 1.
        documents_per_batch: number of programs in a batch.
        long_share: share of a batch's programs that have max_program instructions; the others have any number from
            min_program on. A long program has more states to learn from in the same memory; from short ones the model
            learns where in memory the instruction is (examples/cpu_states/README.md).
        small_values: share of the programs whose start values and immediates are 0…15. In the released distribution,
            0, small operands are rare, and a model computes with them badly: 7 times 9 came out as 121.
        split: "train" programs are never "eval" programs, for any seeds; None gives all.
        states_only: leave memory and first state out of the loss: a random program cannot be predicted.
        rank, world_size: index and number of processes: of the programs of `world_size` batches, rank r gets the
            r-th part, so that all ranks together have the programs of one process with batches of `world_size` times
            the documents. The position is the same on all ranks, and is valid for any number of ranks.
        machine: the fields of `StreamOptions`.

    Raises:
        TypeError, ValueError: a wrong argument, or traces that the context cannot hold.
    """

    def __init__(
        self,
        config: BGPTConfig,
        *,
        seed: int = 0,
        documents_per_batch: int = 64,
        long_share: float = 0.0,
        small_values: float = 0.0,
        split: Split | None = "train",
        states_only: bool = True,
        rank: int = 0,
        world_size: int = 1,
        **machine: Unpack[MachineOptions],
    ) -> None:
        check_rank("CPUStateSource", rank, world_size)
        check_int("CPUStateSource: seed", seed, 0, _MAX_SEED)
        check_int("CPUStateSource: documents_per_batch", documents_per_batch, 1)
        if not 0.0 <= long_share <= 1.0:
            raise ValueError(f"CPUStateSource: long_share: expected a share from 0 to 1, got {long_share}")
        if not 0.0 <= small_values <= 1.0:
            raise ValueError(f"CPUStateSource: small_values: expected a share from 0 to 1, got {small_values}")
        self.options = StreamOptions(**machine)
        check_context(count_patches(self.options.max_trace_size, config.patch_size), config)
        self.config = config
        self.seed = seed
        self.documents_per_batch = documents_per_batch
        self.split = renamed_value("CPUStateSource: split", split, OLD_SPLITS)
        self.small_values = small_values
        self.states_only = states_only
        self.rank = rank
        self.world_size = world_size
        self._long_documents = round(long_share * documents_per_batch)
        # Programs of one index have a common beginning for any length, so long ones use a separate range of indices.
        self._long_start, self._any_start = _LONG_START, 0

    @property
    def task(self) -> ModelTask:
        """What a model learns from the programs, stored with its weights."""
        machine = (self.options.num_registers, self.options.memory_size)
        return ModelTask.of("cpu-states", extensions=[EXTENSION], machine=machine)

    def next_batch(self) -> PackedPatches:
        """This rank's next programs, the long ones first."""
        long = self._generate(self._long_documents, self.options.max_program, self._long_start)
        rest = self._generate(
            self.documents_per_batch - self._long_documents, self.options.min_program, self._any_start
        )
        assert long.next_start is not None
        assert rest.next_start is not None
        self._long_start, self._any_start = long.next_start, rest.next_start
        own = [
            part[len(part) // self.world_size * self.rank :][: len(part) // self.world_size] for part in (long, rest)
        ]
        return PackedPatches.concatenate(
            [pack_traces(part, self.config, states_only=self.states_only, threads=1) for part in own if part]
        )

    def _generate(self, count: int, min_program: int, start: int) -> Traces:
        # The programs of the ranks before this one must be generated to find its own: some are in the other split.
        # A batch is too little work for several threads.
        return generate(
            count * self.world_size,
            seed=self.seed,
            stream="philox",
            split=self.split,
            start=start,
            threads=1,
            small_values=self.small_values,
            **{**asdict(self.options), "min_program": min_program},  # type: ignore[typeddict-item]
        )

    def state_dict(self) -> dict[str, Any]:
        """The position, JSON-ready."""
        return {
            **self.describe(),
            "world_size": self.world_size,
            "long_start": self._long_start,
            "any_start": self._any_start,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues at a position of `state_dict`, from any rank of any number of ranks.

        Raises:
            ValueError: the position belongs to another stream.
        """
        ours = self.describe()
        if state.get("world_size", 1) != self.world_size:
            # Batches may change with the number of ranks, but the stream must be the same.
            del ours["documents_per_batch"], ours["long_documents"]
        # Older positions have no small_values.
        theirs = {name: state.get(name, 0.0 if name == "small_values" else None) for name in ours}
        theirs["split"] = OLD_SPLITS.get(theirs["split"], theirs["split"])  # from a checkpoint that has the old name
        if theirs != ours:
            raise ValueError(
                f"CPUStateSource: expected a position of {ours}, got one of {theirs}; "
                "train on what the run was started with, or use another run folder"
            )
        for name in ("long_start", "any_start"):
            check_int(f"CPUStateSource: {name}", state.get(name), 0)
        self._long_start, self._any_start = state["long_start"], state["any_start"]

    def describe(self) -> dict[str, Any]:
        """What defines the stream, JSON-ready."""
        return {
            "source": "cpu_states",
            "seed": self.seed,
            "split": self.split,
            "documents_per_batch": self.documents_per_batch,
            "long_documents": self._long_documents,
            "small_values": self.small_values,
            "states_only": self.states_only,
            **self.options.to_dict(),
        }
