"""Training documents of the paper's machine, whole or in parts, whose patches keep the positions of the whole document.

A state's successor depends on that state and on one instruction in memory, so a document may leave out everything else.
Three kinds:

- "whole": a program as the released generator draws it, every patch of it.
- "window": of such a program of full length, a run of states and the memory that they fetch from.
- "placed": a short program from random registers, its states and its memory moved to a random place of a long one. Its
  registers have not been worn down to 0 and 255 by hundreds of instructions, a share of its initial values is small,
  and it may hold some operations more often than others and name some registers alone.

All programs are of the training split (`split_of`); evaluation is on the released distribution alone.

Letters: P patches, S = 16 bytes a patch and a state, M = 1,024 bytes of memory, w states of a window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bgpt_fast import BGPTConfig
from bgpt_fast.config import EOP
from bgpt_fast.tasks.cpu_states import Traces, generate, pack_traces, run, split_of
from bgpt_fast.tasks.cpu_states.evaluation import operand_values
from bgpt_fast.tasks.cpu_states.machine import OPERATIONS

S = 16
MEMORY = 1024
LONGEST = 255
FIRST_STATE = 1 + MEMORY // S
"""The first state's position: behind the extension patch and the memory."""
_SLOTS = S // 4


class Documents(NamedTuple):
    """patches: int16 [P, S]; cu_seqlens: int32 [B + 1]; positions: int64 [P], in the whole document; targets: bool
    [P], which patches to predict."""

    patches: Tensor
    cu_seqlens: Tensor
    positions: Tensor
    targets: Tensor

    @property
    def max_seqlen(self) -> int:
        """Patches of the longest document."""
        return int(self.cu_seqlens.diff().max())

    @staticmethod
    def concatenate(parts: list[Documents]) -> Documents:
        """One batch of all documents of `parts`, in order."""
        lengths = torch.cat([part.cu_seqlens.diff() for part in parts])
        cu_seqlens = torch.cat([torch.zeros(1, dtype=torch.int32), lengths.cumsum(0).int()])
        patches, positions, targets = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("patches", "positions", "targets")
        )
        return Documents(patches, cu_seqlens, positions, targets)


@dataclass
class Stream:
    """Training documents in order, from a place that can be saved.

    Args:
        config: the model's.
        seed: of the programs and of everything drawn beside them.
        start: the next index of the stream of programs.
        draws: batches drawn so far, which seed what is drawn beside the programs.
    """

    config: BGPTConfig
    seed: int
    start: int = 0
    draws: int = 0

    def take(
        self,
        kind: str,
        patches: int,
        width: int,
        *,
        operations: NDArray[np.float64] | None = None,
        registers: int = 10,
        small: float = 0.5,
    ) -> Documents:
        """Documents of one kind.

        Args:
            kind: "whole", "window" or "placed".
            patches: about how many, in all.
            width: states of a window, or instructions of a placed program.
            operations: float [21, 4], how often each operation with each number of operands stands in placed programs;
                None: as released.
            registers: how many of them, from A on, placed programs name.
            small: as `placed`.
        """
        self.draws += 1
        rng = np.random.default_rng([self.seed, self.draws])
        if kind == "whole":
            return whole(self._programs(max(1, patches // 196), 1, LONGEST), self.config)
        size = 2 + -(-width // _SLOTS) + width
        if kind == "window":
            return window(self._programs(max(1, patches // size), LONGEST, LONGEST), self.config, width, rng)
        if kind == "placed":
            shares = RELEASED_SHARES * (1.0 if operations is None else operations)
            shares[0] = 0.0
            shares /= shares.sum()
            count = max(1, patches // (size + 1))
            return placed([draw_program(width - 1, shares, registers, rng) for _ in range(count)], rng, small)
        raise ValueError(f'documents: kind: expected "whole", "window" or "placed", got {kind!r}')

    def _programs(self, count: int, shortest: int, longest: int) -> Traces:
        traces = generate(
            count,
            seed=self.seed,
            min_program=shortest,
            max_program=longest,
            stream="philox",
            split="train",
            start=self.start,
            threads=1,
        )
        assert traces.next_start is not None
        self.start = traces.next_start
        return traces


def whole(traces: Traces, config: BGPTConfig) -> Documents:
    """Programs with all their patches; every state but the first, and the end of the file, are targets."""
    batch = pack_traces(traces, config, threads=1)
    assert batch.targets is not None
    return Documents(batch.patches, batch.cu_seqlens, _positions(batch.cu_seqlens), batch.targets)


def window(traces: Traces, config: BGPTConfig, width: int, rng: np.random.Generator) -> Documents:
    """`width` + 1 states from a random place of each program, and the memory from which they fetch."""
    batch = pack_traces(traces, config, threads=1)
    lengths = batch.cu_seqlens.diff().long()
    positions = _positions(batch.cu_seqlens)
    instructions = (np.diff(traces.offsets) - MEMORY) // S - 1
    first = (rng.random(len(instructions)) * np.maximum(1, instructions - width + 2)).astype(np.int64)
    at = torch.from_numpy(first).repeat_interleave(lengths)
    is_memory = (positions >= 1 + at // _SLOTS) & (positions <= 1 + (at + width - 1) // _SLOTS)
    is_state = (positions >= FIRST_STATE + at) & (positions <= FIRST_STATE + at + width)
    keep = (positions == 0) | (is_memory & (positions < FIRST_STATE)) | is_state
    document = torch.arange(len(lengths)).repeat_interleave(lengths)
    sizes = torch.bincount(document[keep], minlength=len(lengths))
    cu_seqlens = torch.cat([torch.zeros(1, dtype=torch.int32), sizes.cumsum(0).int()])
    targets = is_state & (positions > FIRST_STATE + at)
    return Documents(batch.patches[keep].contiguous(), cu_seqlens, positions[keep], targets[keep])


def placed(programs: list[bytes], rng: np.random.Generator, small: float = 0.5) -> Documents:
    """Short programs, run from random registers, with their memory and states at a random place of a long program.

    Args:
        programs: machine code of at most 254 instructions with HLT.
        rng: draws places and registers.
        small: share of the programs whose registers start with small values (2ᵘ − 1 for u from 0 to 8, evenly);
            the others' are even over 0 to 255.
    """
    parts, positions, targets = [], [], []
    for i, program in enumerate(programs):
        states = run(program, *_initial_values(rng, small)).states
        patches, own, first = _place(program, states, programs[i - 1], rng)
        parts.append(patches)
        positions.append(own)
        targets.append(own > first)
    cu_seqlens = np.concatenate([[0], np.cumsum([len(own) for own in positions])]).astype(np.int32)
    arrays = (np.concatenate(parts), cu_seqlens, np.concatenate(positions), np.concatenate(targets))
    return Documents(*(torch.from_numpy(array) for array in arrays))


def draw_program(length: int, operations: NDArray[np.float64], registers: int, rng: np.random.Generator) -> bytes:
    """A program of the training split, `length` instructions and HLT, drawn as the released generator does.

    Args:
        length: instructions before HLT.
        operations: float [21, 4], the probability of each operation with 0 to 3 operands; `RELEASED_SHARES` are the
            released generator's.
        registers: how many of them, from A on, are named; 10 is the released generator's.
        rng: draws.
    """
    while True:
        code = bytearray()
        for pair in rng.choice(operations.size, length, p=operations.ravel()).tolist():
            opcode, count = divmod(pair, _COUNTS)
            names = rng.integers(1, registers + 1, count).tolist()
            operands_ = [int(rng.integers(0, 256))] if opcode == _LOADI else names
            code += bytes([opcode, *operands_, *[0] * (3 - len(operands_))])
        program = bytes(code) + bytes(4)
        if split_of(program) == "train":
            return program


def _place(
    program: bytes, states: NDArray[np.uint8], other: bytes, rng: np.random.Generator
) -> tuple[NDArray[np.int16], NDArray[np.int64], int]:
    """A program at a random address: its patches, their positions, and the position of its first state.

    Before it in its first memory patch stands an instruction of the `other` program.
    """
    count = len(program) // 4
    address = int(rng.integers(0, LONGEST - count + 1))
    lead = address % _SLOTS
    memory = np.zeros(-(-(lead + count) // _SLOTS) * S, np.uint8)
    memory[: 4 * lead] = np.resize(np.frombuffer(other[:4], np.uint8), 4 * lead)
    memory[4 * lead : 4 * (lead + count)] = np.frombuffer(program, np.uint8)
    # The first state has fetched nothing; only a program at address 0 has one.
    skipped = 0 if address == 0 else 1
    taught = states[skipped:].astype(np.int16)
    taught[:, 0] += address
    end = np.full((1, S), EOP, np.int16)
    patches = np.concatenate([_extension(), memory.reshape(-1, S).astype(np.int16), taught, end])
    first, from_memory = FIRST_STATE + address + skipped, 1 + address // _SLOTS
    positions = [0, *range(from_memory, from_memory + len(memory) // S), *range(first, first + len(taught) + 1)]
    return patches, np.array(positions), first


def _initial_values(rng: np.random.Generator, small: float) -> tuple[int, list[int]]:
    """ACC and ten registers."""
    values = rng.integers(0, 256, 11)
    if rng.random() < small:
        values = (2 ** (8 * rng.random(11))).astype(np.int64) - 1
    acc, *registers = values.tolist()
    return acc, registers


def _extension() -> NDArray[np.int16]:
    patch = np.full((1, S), EOP, np.int16)
    patch[0, :3] = list(b"bin")
    return patch


def _positions(cu_seqlens: Tensor) -> Tensor:
    lengths = cu_seqlens.diff().long()
    return torch.arange(int(cu_seqlens[-1])) - cu_seqlens[:-1].long().repeat_interleave(lengths)


def categories(patches: Tensor) -> Tensor:
    """What each state's instruction asks for, int64 [P] of 0…CATEGORIES − 1: operation, operands and their sizes.

    A patch that is no state has a category of no meaning.
    """
    rows = patches.numpy()
    operation = np.minimum(rows[:, 2], len(OPERATIONS) - 1).astype(np.int64)
    x, y = operand_values(rows)
    count = (rows[:, 3:6] > 0).sum(1)
    sizes = np.searchsorted(_SIZES, x, side="right") * 4 + np.searchsorted(_SIZES, y, side="right")
    return torch.from_numpy((operation * _COUNTS + count) * 16 + sizes)


def operation_weights(weights: dict[str, float]) -> Tensor:
    """float [CATEGORIES]: of each category, its operation's weight by mnemonic, 1 where there is none."""
    by_operation = torch.tensor([float(weights.get(operation.name, 1.0)) for operation in OPERATIONS])
    return by_operation.repeat_interleave(CATEGORIES // len(OPERATIONS))


def _released_shares() -> NDArray[np.float64]:
    shares = np.zeros((len(OPERATIONS), _COUNTS))
    for operation in OPERATIONS[1:]:
        counts = slice(operation.min_operands, operation.max_operands + 1)
        shares[operation.opcode, counts] = 1 / (counts.stop - counts.start)
    return shares / shares.sum()


_LOADI = 11
_SIZES = (1, 16, 128)
_COUNTS = 4
CATEGORIES = 21 * _COUNTS * 4 * 4
RELEASED_SHARES = _released_shares()
"""How often the released generator draws each operation with 0 to 3 operands, float [21, 4]; never HLT."""
