"""The batches of one Generator call: a step decodes a patch of each active sequence; freed slots are refilled.

Shape letters: n prompts, R running sequences, N rows to decode, T patches, S bytes a patch, D width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bgpt_fast.device import to_device_together
from bgpt_fast.generation.decoders.base import AsynchronousDecoder, Decoder
from bgpt_fast.generation.decoders.request import DecodeRequest, DecodeResult
from bgpt_fast.generation.drafted_rows import DraftedRows, Drafts
from bgpt_fast.generation.drafting import Drafter
from bgpt_fast.generation.packed_prompts import PackedPrompts
from bgpt_fast.generation.prompt import Generation
from bgpt_fast.generation.sequences import Rows, Sequences
from bgpt_fast.kernels.byte_decode.sampling import Sampling

PREFILL_PATCHES = 512
"""Maximum patches per prefill call: enough for matrix products at full speed, and a bound on activation memory."""

Progress = Callable[[int, int, int], None]
"""Called after each step with (files finished, all files, new bytes so far)."""


class _Round(NamedTuple):
    """Patches that are being decoded.

    Args:
        rows: which.
        drafted: the same with their drafts; None without.
        wait: waits for the result.
        tokens: int16 [N, S], the result on the device; None if there is nothing to wait for.
    """

    rows: Rows
    drafted: DraftedRows | None
    wait: Callable[[], DecodeResult]
    tokens: Tensor | None


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
        device = self.decoder.device
        # One for all rounds, whatever the caller's is when it asks for the next file.
        self._stream = (
            torch.cuda.stream(torch.cuda.current_stream(device)) if device.type == "cuda" else contextlib.nullcontext()
        )
        sequences, num_started, num_finished, new_bytes = self.sequences, 0, 0, 0
        active, free = np.empty(0, np.int64), np.arange(self.slots)
        following: _Round | None = None
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
                with torch.inference_mode(), self._stream:
                    current = following or self._begin(running, new)
                    # No file waits for a slot: the next round begins before this one's bytes are known here.
                    following = self._begin_following(current) if num_started == self.total else None
                    new_bytes += self._end(current)
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

    def _begin(self, running: NDArray[np.int64], new: NDArray[np.int64]) -> _Round:
        """Begins to decode the next patch of each sequence; with drafts, also the drafted patches that follow it.

        Args:
            running: int64 [R], the slots of all sequences to decode.
            new: those among them whose prompts are not in the cache yet.
        """
        rows = self.sequences.rows(running)
        drafted = None if self.drafts is None else self.drafts.extend(rows)
        if drafted is not None:
            rows = drafted.rows
        patches, *inputs = self._on_device([*self._patches(rows, new), *self._inputs(rows)])
        return self._write(rows, drafted, patches, *inputs)

    def _begin_following(self, current: _Round) -> _Round | None:
        """Begins the round after one that the device still decodes, from its tokens there."""
        if current.tokens is None:
            return None
        index, rows = self.sequences.following(current.rows)
        if not len(index):
            return None
        places, *inputs = self._on_device([index, rows.slots, rows.positions, *self._inputs(rows)])
        return self._write(rows, None, current.tokens.index_select(0, places), *inputs)

    def _inputs(self, rows: Rows) -> tuple[NDArray[Any], ...]:
        """Known tokens, limits, random streams and byte offsets."""
        streams, offsets = self.sequences.rng_streams[rows.slots], rows.byte_offsets.view(np.uint64)
        return rows.prefix_tokens, rows.max_tokens, streams, offsets

    def _write(
        self,
        rows: Rows,
        drafted: DraftedRows | None,
        patches: Tensor,
        slots: Tensor,
        positions: Tensor,
        prefix_tokens: Tensor,
        max_tokens: Tensor,
        rng_streams: Tensor,
        byte_offsets: Tensor,
    ) -> _Round:
        """Adds `patches` to the cache, and decodes those that follow the last ones of them."""
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
        if drafted is None and isinstance(self.decoder, AsynchronousDecoder):
            tokens, wait = self.decoder.begin(request)
            return _Round(rows, drafted, wait, tokens)
        result = self.decoder.write(request)
        return _Round(rows, drafted, lambda: result, None)

    def _end(self, current: _Round) -> int:
        """Waits for a round, and appends its patches to their files; the number of new bytes."""
        sequences, (rows, drafted, wait, _) = self.sequences, current
        result = wait()
        tokens, counts = result.tokens.numpy(), result.counts.numpy()
        goes_on = np.flatnonzero(~sequences.is_done[rows.slots])
        if len(goes_on) < len(counts):  # some had ended in the round before, which was not known then
            rows, tokens, counts = rows.take(goes_on), tokens[goes_on], counts[goes_on]
        last = None if drafted is None else drafted.last(tokens)
        running, last_counts = (rows.slots, counts) if last is None else (rows.slots[last], counts[last])
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
