"""The batches of one Generator call: a step decodes a patch of each active sequence; freed slots are refilled.

Shape letters: T patches, D width.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from bgpt_fast.generation.decoders.base import Decoder
from bgpt_fast.generation.decoders.request import DecodeRequest
from bgpt_fast.generation.drafting import Drafter
from bgpt_fast.generation.prompt import Generation
from bgpt_fast.generation.sequence import DecodeStep
from bgpt_fast.generation.sequence import Sequence as FileSequence
from bgpt_fast.kernels.byte_decode.sampling import Sampling

PREFILL_PATCHES = 512
"""Maximum patches per prefill call: enough for matrix products at full speed, and a bound on activation memory."""

Progress = Callable[[int, int, int], None]
"""Called after each step with (files finished, all files, new bytes so far)."""


class Scheduler:
    """Decodes sequences until they end.

    Args:
        make_decoder: (slots, patches per slot) → a decoder with such a cache; called when the run begins.
        slots: number of sequences decoded at the same time.
        length: patches per slot.
        sequences: those to decode; any beyond `slots` wait.
        sampling: how bytes are chosen.
        drafter: proposes the next bytes, or None.
    """

    def __init__(
        self,
        make_decoder: Callable[[int, int], Decoder],
        slots: int,
        length: int,
        sequences: list[FileSequence],
        sampling: Sampling,
        drafter: Drafter | None,
    ) -> None:
        self.drafter = drafter
        self.make_decoder, self.slots, self.length = make_decoder, slots, length
        self.sequences, self.sampling = sequences, sampling

    def files(self, progress: Progress | None) -> Iterator[tuple[int, Generation]]:
        """Yields (prompt's index, file) as each sequence ends; inference mode is off while the caller has control."""
        with torch.inference_mode():
            self.decoder = self.make_decoder(self.slots, self.length)
        waiting, free_slots = deque(self.sequences), list(range(self.slots))
        active: list[FileSequence] = []
        num_finished = new_bytes = 0
        while waiting or active:
            while waiting and free_slots:
                sequence = waiting.popleft()
                sequence.slot = free_slots.pop()
                active.append(sequence)
            bytes_before = sum(len(sequence.data) for sequence in active)
            # A sequence with no byte to generate ends without a step.
            running = [sequence for sequence in active if not sequence.done]
            if running:
                self._step(running)
            new_bytes += sum(len(sequence.data) for sequence in active) - bytes_before
            ended = [sequence for sequence in active if sequence.done]
            active = [sequence for sequence in active if not sequence.done]
            num_finished += len(ended)
            free_slots.extend(sequence.slot for sequence in ended)
            if progress is not None:
                progress(num_finished, len(self.sequences), new_bytes)
            for sequence in ended:
                yield sequence.prompt_index, sequence.result()

    @torch.inference_mode()
    def _step(self, running: list[FileSequence]) -> None:
        """Decodes the next patch of each sequence; with drafts, also the drafted patches that follow it."""
        steps = [self._prepare(sequence) for sequence in running]
        rows = [row for step in steps for row in step.rows]
        streams = [sequence.rng_stream for sequence, step in zip(running, steps, strict=True) for _ in step.rows]
        has_drafts = self.drafter is not None
        request = DecodeRequest(
            features=self._prefill(running, steps),
            prefix_tokens=_on_cpu([row.prefix_tokens for row in rows], torch.int16),
            max_tokens=_on_cpu([row.max_tokens for row in rows], torch.int64),
            rng_streams=_on_cpu(streams, torch.uint64),
            byte_offsets=_on_cpu([row.byte_offset for row in rows], torch.uint64),
            sampling=self.sampling,
            drafts=_on_cpu([row.drafts for row in rows], torch.int16) if has_drafts else None,
            verify=_on_cpu([row.verify for row in rows], torch.bool) if has_drafts else None,
        )
        result = self.decoder.write(request)
        results, first = [], 0
        for sequence, step in zip(running, steps, strict=True):
            part = slice(first, first + len(step.rows))
            results.append((sequence, result.tokens[part], result.counts[part]))
            first = part.stop
        damaged = [
            sequence.prompt_index for sequence, patches, counts in results if sequence.is_damaged(patches, counts)
        ]
        if damaged:
            raise FloatingPointError(
                f"Generator: NaN or infinite logits for prompts {damaged[:8]}; the model's weights are damaged or too "
                "large"
            )
        for sequence, patches, counts in results:
            sequence.update(patches, counts)

    def _prepare(self, sequence: FileSequence) -> DecodeStep:
        draft = self.drafter(sequence.prompt_index, bytes(sequence.data)) if self.drafter else b""
        return sequence.prepare(draft)

    def _prefill(self, running: list[FileSequence], steps: list[DecodeStep]) -> Tensor:
        """Adds the steps' patches to the cache and returns the feature before each row: [rows, D]."""
        slots: list[int] = []
        positions: list[int] = []
        selected: list[int] = []  # the patches whose features the rows need
        for sequence, step in zip(running, steps, strict=True):
            slots += [sequence.slot] * len(step.patches)
            positions += range(sequence.cached_patches, sequence.cached_patches + len(step.patches))
            selected += range(len(slots) - len(step.rows), len(slots))
        patches = torch.cat([step.patches for step in steps])
        features, last = [], 0
        for start in range(0, len(patches), PREFILL_PATCHES):
            part = slice(start, start + PREFILL_PATCHES)
            chunk = self.decoder.prefill(
                patches[part].to(self.decoder.device), self._int64(slots[part]), self._int64(positions[part])
            )
            first, last = last, bisect.bisect_left(selected, start + len(chunk))
            features.append(chunk[self._int64([i - start for i in selected[first:last]])])
        return torch.cat(features)

    def _int64(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.decoder.device)


def _on_cpu(values: list[list[int]] | list[int] | list[bool], dtype: torch.dtype) -> Tensor:
    return torch.tensor(values, dtype=dtype, device="cpu")
