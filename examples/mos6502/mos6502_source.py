"""6502 programs as an endless source of training batches."""

from __future__ import annotations

from typing import Any

from mos6502_traces import ProgramOptions, generate

from bgpt_fast.checks import check_int
from bgpt_fast.config import BGPTConfig
from bgpt_fast.patches import PackedPatches
from bgpt_fast.tasks.cpu_states.packing import check_context, pack_traces


class Mos6502Source:
    """An endless stream of batches of random programs of the training split, with their traces.

    Args:
        config: the model's patch size and context.
        documents_per_batch: programs in a batch.
        seed: seed of the random programs.
        options: lengths and memory of the programs.
        states_only: leave memory and first state out of the loss, since a random program cannot be predicted.

    Raises:
        TypeError, ValueError: a wrong argument, or traces that the context cannot hold.
        ImportError: py65 is missing; raised by the first batch.
    """

    def __init__(
        self,
        config: BGPTConfig,
        *,
        documents_per_batch: int = 64,
        seed: int = 0,
        options: ProgramOptions | None = None,
        states_only: bool = True,
    ) -> None:
        check_int("Mos6502Source: documents_per_batch", documents_per_batch, 1)
        check_int("Mos6502Source: seed", seed, 0)
        self.options = options or ProgramOptions()
        check_context(2 + -(-self.options.max_trace_size // config.patch_size), config)
        self.config = config
        self.documents_per_batch = documents_per_batch
        self.seed = seed
        self.states_only = states_only
        self._start = 0

    def next_batch(self) -> PackedPatches:
        """Returns the next batch."""
        traces = generate(self.documents_per_batch, seed=self.seed, start=self._start, options=self.options)
        assert traces.next_start is not None
        self._start = traces.next_start
        return pack_traces(traces, self.config, states_only=self.states_only, threads=1)

    def state_dict(self) -> dict[str, Any]:
        """Returns the position in the stream, JSON-ready."""
        return {**self.describe(), "start": self._start}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues at a position of `state_dict`.

        Raises:
            ValueError: the position belongs to another stream.
        """
        ours = self.describe()
        theirs = {name: state.get(name) for name in ours}
        if theirs != ours:
            raise ValueError(
                f"Mos6502Source: expected a position of {ours}, got one of {theirs}; "
                "train on what the run was started with, or use another run folder"
            )
        check_int("Mos6502Source: start", state.get("start"), 0)
        self._start = state["start"]

    def describe(self) -> dict[str, Any]:
        """Returns what defines the stream, JSON-ready."""
        return {
            "source": "mos6502",
            "seed": self.seed,
            "documents_per_batch": self.documents_per_batch,
            "states_only": self.states_only,
            **self.options.to_dict(),
        }
