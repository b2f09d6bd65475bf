"""The batches of one Generator call: a step decodes a patch of each active sequence; freed slots are refilled.

Shape letters: n prompts, R running sequences, N rows to decode, T patches, S bytes a patch, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bgpt_fast.device import to_device_together
from bgpt_fast.generation.decoders.base import Decoder
from bgpt_fast.generation.decoders.request import DecodeRequest
from bgpt_fast.generation.drafted_rows import Drafts
from bgpt_fast.generation.drafting import Drafter
from bgpt_fast.generation.packed_prompts import PackedPrompts
from bgpt_fast.generation.prompt import Generation
from bgpt_fast.generation.sequences import Rows, Sequences
from bgpt_fast.kernels.byte_decode.sampling import Sampling

PREFILL_PATCHES = 512
"""Maximum patches per prefill call: enough for matrix products at full speed, and a bound on activation memory."""

Progress = Callable[[int, int, int], None]
"""Called after each step with (files finished, all files, new bytes so far)."""


class Scheduler:
    """Decodes files until they end.

    Args:
        make_decoder: (slots, patches per slot) → a decoder with such a cache; called when the run begins.
        slots: number of files decoded at the same time.
        length: patches per slot.
        prompts: the files' prompts; any beyond `slots` wait.
        limits: int64 [n], maximum size of each file in bytes.
        sampling: how bytes are chosen.
        drafter: proposes the next bytes, or None; a decoder may have a drafter of its own.
    """

    def __init__(
        self,
        make_decoder: Callable[[int, int], Decoder],
        slots: int,
        length: int,
        prompts: PackedPrompts,
        limits: NDArray[np.int64],
        sampling: Sampling,
        drafter: Drafter | None,
    ) -> None:
        self.make_decoder, self.slots, self.length = make_decoder, slots, length
        self.sampling, self.total = sampling, len(prompts)
        self.sequences = Sequences(prompts, limits, slots)
        self.drafts = None if drafter is None else Drafts(drafter, self.sequences)
        # For each slot the tokens that the decoder's own drafter proposed, and those that were right.
        self.decoder_drafts = np.zeros((slots, 2), np.int64)

    def files(self, progress: Progress | None) -> Iterator[tuple[int, Generation]]:
        """Yields (prompt's index, file) as each file ends; inference mode is off while the caller has control."""
        with torch.inference_mode():
            self.decoder = self.make_decoder(self.slots, self.length)
        sequences, num_started, num_finished, new_bytes = self.sequences, 0, 0, 0
        active, free = np.empty(0, np.int64), np.arange(self.slots)
        while num_started < self.total or len(active):
            running, new = active, free[: self.total - num_started]
            if len(new):
                free = free[len(new) :]
                self._start(new, np.arange(num_started, num_started + len(new)))
                num_started += len(new)
                active = np.concatenate([active, new])
                # A file with no byte to generate ends without a step.
                new = new[~sequences.is_done[new]]
                running = np.concatenate([running, new])
            if len(running):
                new_bytes += self._step(running, new)
            is_done = sequences.is_done[active]
            num_ended = int(np.count_nonzero(is_done))
            num_finished += num_ended
            if progress is not None:
                progress(num_finished, self.total, new_bytes)
            if num_ended:
                ended, active = active[is_done], active[~is_done]
                for slot in ended.tolist():
                    yield self._result(slot)
                free = np.concatenate([free, ended])

    def _start(self, slots: NDArray[np.int64], index: NDArray[np.int64]) -> None:
        self.sequences.add(slots, index)
        self.decoder_drafts[slots] = 0
        if self.drafts is not None:
            self.drafts.add(slots)

    def _result(self, slot: int) -> tuple[int, Generation]:
        if self.drafts is None:
            return self.sequences.result(slot, *self.decoder_drafts[slot].tolist())
        return self.sequences.result(slot, int(self.drafts.num_drafted[slot]), int(self.drafts.num_accepted[slot]))

    @torch.inference_mode()
    def _step(self, running: NDArray[np.int64], new: NDArray[np.int64]) -> int:
        """Decodes the next patch of each sequence; with drafts, also the drafted patches that follow it.

        Args:
            running: int64 [R], the slots of all sequences to decode.
            new: those among them whose prompts are not in the cache yet.

        Returns:
            The number of new bytes.
        """
        sequences, rows = self.sequences, self.sequences.rows(running)
        drafted = None if self.drafts is None else self.drafts.extend(rows)
        if drafted is not None:
            rows = drafted.rows
        streams, offsets = sequences.rng_streams[rows.slots], rows.byte_offsets.view(np.uint64)
        arrays = *self._patches(rows, new), rows.prefix_tokens, rows.max_tokens, streams, offsets
        patches, slots, positions, prefix_tokens, max_tokens, rng_streams, byte_offsets = self._on_device(arrays)
        request = DecodeRequest(
            features=self._prefill(patches, slots, positions, len(rows.slots)),
            prefix_tokens=prefix_tokens,
            max_tokens=max_tokens,
            rng_streams=rng_streams,
            byte_offsets=byte_offsets,
            sampling=self.sampling,
            drafts=None if drafted is None else torch.from_numpy(drafted.drafts),
            verify=None if drafted is None else torch.from_numpy(drafted.verify),
        )
        result = self.decoder.write(request)
        tokens, counts = result.tokens.numpy(), result.counts.numpy()
        last = None if drafted is None else drafted.last(tokens)
        last_counts = counts if last is None else counts[last]
        if last_counts.min() < 0:
            damaged = sequences.index[running[last_counts < 0]].tolist()
            raise FloatingPointError(
                f"Generator: NaN or infinite logits for prompts {damaged[:8]}; the model's weights are damaged or too "
                "large"
            )
        new_bytes = sequences.update(rows, tokens, counts, last)
        if result.drafted is not None:
            self.decoder_drafts[running] += result.drafted.numpy()
        if self.drafts is not None and drafted is not None:
            self.drafts.count(drafted)
        return new_bytes

    def _patches(self, rows: Rows, new: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """The patches that the step adds to the cache, with slots and positions: new prompts', then the one before
        each row."""
        if not len(new):
            return rows.before, rows.slots, rows.positions
        patches, slots, positions = self.sequences.prompt_patches(new)
        return (
            np.concatenate([patches, rows.before]),
            np.concatenate([slots, rows.slots]),
            np.concatenate([positions, rows.positions]),
        )

    def _prefill(self, patches: Tensor, slots: Tensor, positions: Tensor, count: int) -> Tensor:
        """Adds patches to the cache; returns the features of the last `count` ones: float32 [count, D]."""
        features, before = [], len(patches) - count
        parts = zip(*(values.split(PREFILL_PATCHES) for values in (patches, slots, positions)), strict=True)
        for start, part in zip(range(0, len(patches), PREFILL_PATCHES), parts, strict=True):
            chunk = self.decoder.prefill(*part)
            if start + len(chunk) > before:
                features.append(chunk[max(before - start, 0) :])
        return features[0] if len(features) == 1 else torch.cat(features)

    def _on_device(self, arrays: Sequence[NDArray[Any]]) -> list[Tensor]:
        """The arrays as tensors on the decoder's device, copied at once where that is a GPU."""
        tensors, device = [torch.from_numpy(values) for values in arrays], self.decoder.device
        return tensors if device.type == "cpu" else to_device_together(tensors, device)
