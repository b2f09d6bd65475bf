"""A call of the engine: a patch of each file under way a round, in slots that refill as files end.

Shape letters: T tokens, D width.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from bgpt_fast.generation.decoder import EagerDecoder
from bgpt_fast.generation.drafting import Drafter
from bgpt_fast.generation.fused import CpuDecoder
from bgpt_fast.generation.on_device import CudaDecoder
from bgpt_fast.generation.prompt import Generation
from bgpt_fast.generation.sampling import Sampling
from bgpt_fast.generation.sequence import Row
from bgpt_fast.generation.sequence import Sequence as FileSequence
from bgpt_fast.generation.writing import DecodeRequest

PATCHES_AT_ONCE = 512  # bounds the activations of a prefill; enough to keep the products at full speed

Decoder = EagerDecoder | CudaDecoder | CpuDecoder

Progress = Callable[[int, int, int], None]
"""Called after each round with (files done, files in all, new bytes so far)."""


class Scheduler:
    """One call of a Generator: its sequences, its caches and who holds which slot.

    Args:
        decoder: makes the caches of so many slots of such a length, where the call begins.
        slots: sequences under way at once.
        length: patches a slot.
        sequences: to write; those over `slots` wait.
        sampling: how bytes are chosen.
        drafter: guesses what comes next, or None.
    """

    def __init__(
        self,
        decoder: Callable[[int, int], Decoder],
        slots: int,
        length: int,
        sequences: list[FileSequence],
        sampling: Sampling,
        drafter: Drafter | None,
    ) -> None:
        self.drafter = drafter
        self.make_decoder, self.slots, self.length = decoder, slots, length
        self.sequences, self.sampling = sequences, sampling
        self.total = len(sequences)

    def files(self, progress: Progress | None) -> Iterator[tuple[int, Generation]]:
        """Runs all sequences; inference mode is left at each yield, so that it never leaks to the caller."""
        with torch.inference_mode():
            self.decoder = self.make_decoder(self.slots, self.length)
        waiting, free = deque(self.sequences), list(range(self.slots))
        active: list[FileSequence] = []
        done = new_bytes = 0
        while waiting or active:
            while waiting and free:
                sequence = waiting.popleft()
                sequence.slot = free.pop()
                active.append(sequence)
            before = sum(len(sequence.data) for sequence in active)
            running = [sequence for sequence in active if not sequence.done]
            if running:
                self._round(running)
            new_bytes += sum(len(sequence.data) for sequence in active) - before
            ended = [sequence for sequence in active if sequence.done]
            active = [sequence for sequence in active if not sequence.done]
            done += len(ended)
            free.extend(sequence.slot for sequence in ended)
            if progress is not None:
                progress(done, self.total, new_bytes)
            for sequence in ended:
                yield sequence.place, sequence.result()

    @torch.inference_mode()
    def _round(self, running: list[FileSequence]) -> None:
        """Writes the patch that each running sequence is at."""
        asked = [self._ask(sequence) for sequence in running]
        rows = [row for _, rows in asked for row in rows]
        drafting = self.drafter is not None
        writing = DecodeRequest(
            _cpu([row.given for row in rows], torch.int16),
            _cpu([row.room for row in rows], torch.int64),
            _cpu([row.guesses for row in rows], torch.int16) if drafting else None,
            _cpu([row.verify for row in rows], torch.bool) if drafting else None,
            [sequence.index for sequence, (_, rows) in zip(running, asked, strict=True) for _ in rows],
            [row.start for row in rows],
        )
        tokens, counts = self.decoder.write(self._features(running, asked), writing, self.sampling)
        answers, at = [], 0
        for sequence, (_, rows) in zip(running, asked, strict=True):
            answers.append((sequence, tokens[at : at + len(rows)], counts[at : at + len(rows)]))
            at += len(rows)
        bad = [sequence.place for sequence, patches, own in answers if sequence.is_damaged(patches, own)]
        if bad:
            raise FloatingPointError(
                f"Generator: NaN or infinite logits for prompts {bad[:8]}; the model's weights are damaged or too large"
            )
        for sequence, patches, own in answers:
            sequence.take(patches, own)

    def _ask(self, sequence: FileSequence) -> tuple[Tensor, list[Row]]:
        return sequence.ask(self.drafter(sequence.place, bytes(sequence.data)) if self.drafter else b"")

    def _features(self, running: list[FileSequence], asked: list[tuple[Tensor, list[Row]]]) -> Tensor:
        """The feature [D] before each row, all its sequence's patches being put into the cache."""
        slots: list[int] = []
        positions: list[int] = []
        wanted: list[int] = []
        for sequence, (patches, rows) in zip(running, asked, strict=True):
            slots += [sequence.slot] * len(patches)
            positions += range(sequence.cached, sequence.cached + len(patches))
            wanted += range(len(slots) - len(rows), len(slots))
        every = torch.cat([patches for patches, _ in asked])
        features, last = [], 0
        for start in range(0, len(every), PATCHES_AT_ONCE):
            part = slice(start, start + PATCHES_AT_ONCE)
            found = self.decoder.features(
                every[part].to(self.decoder.device), self._int64(slots[part]), self._int64(positions[part])
            )
            first, last = last, bisect.bisect_left(wanted, start + len(found))
            features.append(found[self._int64([place - start for place in wanted[first:last]])])
        return torch.cat(features)

    def _int64(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.decoder.device)


def _cpu(values: list[list[int]] | list[int] | list[bool], dtype: torch.dtype) -> Tensor:
    return torch.tensor(values, dtype=dtype, device="cpu")
