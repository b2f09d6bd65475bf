"""Generator: continues prompts to files in batches; when a file ends, the next prompt takes its slot."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import numpy as np

from bgpt_fast.config import BGPTConfig
from bgpt_fast.device import free_memory
from bgpt_fast.generation.decoders.base import (
    Decoder,
    WeightCache,
    cache_length,
    default_precision,
    device_of,
    make_decoder,
    memory_overhead,
)
from bgpt_fast.generation.decoders.cpu import CpuDecoder
from bgpt_fast.generation.decoders.drafted import DraftedDecoder
from bgpt_fast.generation.drafted_rows import MAX_DRAFT_BYTES
from bgpt_fast.generation.drafting import Drafter
from bgpt_fast.generation.packed_prompts import PackedPrompts
from bgpt_fast.generation.prompt import Generation, Prompt
from bgpt_fast.generation.scheduler import Progress, Scheduler
from bgpt_fast.kernels.byte_decode.packed import BYTE_DECODE_ROWS, PRECISIONS
from bgpt_fast.kernels.byte_decode.sampling import Sampling
from bgpt_fast.memory import named_out_of_memory
from bgpt_fast.model import BGPT

MOST_FILES = 4096
"""Files generated at the same time at most, unless `max_batch` is given: more gain nothing on any device."""
_MEMORY_SHARE = 0.5
"""Share of the free memory that their caches may take, unless `max_batch` or `max_memory` is given."""
_ACTIVATION_BYTES = 24 * 1024
"""Bytes of activations for each unit of hidden_size: of `PREFILL_PATCHES` patches in the patch decoder, or of a chunk
in the byte decoder."""


class Generator:
    """Continues files with a bGPT, many at a time, with key-value caches for both decoders.

    A file's bytes depend only on the model, its prompt and the sampling arguments. On the CPU this holds to the last
    bit, because every sum has a fixed order: the other files in the batch, the batch size, the slot and the number of
    threads have no effect. On a GPU it holds to the last bit with `batch_invariant`; without it, up to the rounding of
    library matrix products, which can change the choice between nearly equally likely bytes. A GPU decodes few patches
    by a persistent kernel, many by CUDA graphs, which are recorded the first time that a number of files needs them
    and read a copy of the weights that each call updates. A cache of up to 2 GiB stays allocated for the next call.

    On the CPU the weights are packed at the first call, and again after they have changed; the packed copy takes 4, 2
    or 1 bytes a weight by `precision`: 425, 212 or 106 MB for the 110 M model.

    Args:
        model: on the device to generate on. Dropout is off. Its weights are read at each call, so a model in training
            can generate between steps.
        max_batch: files generated at the same time; further prompts wait. None means as many as `max_memory` allows.
        max_memory: bytes that caches and activations of a call may take; as many files as fit are generated at the same
            time. `sequence_bytes` gives the bytes of each. With neither, half of the memory that is free when the call
            begins, and at most 4,096 files.
        precision: precision of linear layers. "float32"; "bfloat16": weights and the layers' inputs in bfloat16,
            sums in float32; "int8", on the CPU: weights in 8 bits, the layers' inputs in bfloat16. Keys and values have
            the inputs' dtype. None means bfloat16 for a bfloat16 model, else float32. On the shipped CPU-state model
            the loss changes by 0.05 % (bfloat16) and 0.2 % (int8), and the most likely byte at 0.3 % and 0.6 % of the
            positions, most of them in programs, which are random.
        batch_invariant: True makes a file's bytes on an NVIDIA GPU independent of the batch to the last bit, at a cost
            that docs/kernels.md predicts; None and False use the fastest engine. On the CPU the bytes never depend on
            the batch.

    Raises:
        TypeError, ValueError: a wrong argument. Options that the device does not support raise at the first call.
    """

    def __init__(
        self,
        model: BGPT,
        *,
        max_batch: int | None = None,
        max_memory: int | None = None,
        precision: str | None = None,
        batch_invariant: bool | None = None,
    ) -> None:
        if not isinstance(model, BGPT):
            raise TypeError(f"Generator: model: expected a BGPT, got {type(model).__name__}")
        self.model = model
        self._check_model()
        _check_count("max_batch", max_batch, 1)
        _check_count("max_memory", max_memory, 1)
        if precision is not None and precision not in PRECISIONS:
            raise ValueError(f"Generator: precision: expected one of {PRECISIONS} or None, got {precision!r}")
        if not isinstance(batch_invariant, bool | None):
            raise TypeError(
                f"Generator: batch_invariant: expected a bool or None, got {type(batch_invariant).__name__}"
            )
        self._max_batch = max_batch
        self.max_memory = max_memory
        self.precision = precision
        self.batch_invariant = batch_invariant
        self._weights, self._drafter_weights = WeightCache(), WeightCache()

    def _check_model(self) -> None:
        self.model.config.check_bytes("Generator: model")

    @property
    def max_batch(self) -> int:
        """Files generated at the same time; without the argument, the number for files that fill the context."""
        return self._max_batch or self._fitting_slots(self.model.config.patch_length)

    def sequence_bytes(self, patches: int) -> int:
        """Bytes that the keys and values of a sequence of `patches` patches take.

        512 patches in the 110 M model take 38 MB with float32 weights, 19 MB with bfloat16 or int8 weights.
        """
        return _sequence_bytes(self.model.config, patches, self._precision)

    @property
    def _precision(self) -> str:
        return self.precision or default_precision(self.model)

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_bytes: int | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        drafter: Drafter | BGPT | None = None,
        progress: Progress | None = None,
    ) -> list[Generation]:
        """Continues each prompt until the model ends the file, the context is full or `max_new_bytes` is reached.

        A prompt need not end at a patch boundary: the byte decoder continues after its last byte. The context,
        `patch_length` patches including the extension patch, holds (patch_length - 1) · patch_size bytes.

        Args:
            prompts: any number, of any lengths.
            max_new_bytes: maximum bytes to add to each prompt; None means until the context is full. A file that
                reaches the limit counts as not finished, because the model was not asked whether it ends there.
            temperature: 0 takes the most likely byte each time; T > 0 samples in proportion to p^(1/T).
            top_k: keeps the k most likely tokens; 0 means off.
            top_p: then keeps the fewest most likely tokens whose probabilities sum to more than p; 1 or more means off.
            seed: seeds the random streams. A random number depends on the seed, the prompt's index and the byte's
                position in the file, so continuing a file from any prefix of itself gives the same file.
            drafter: proposes the next bytes, on the CPU: see `generation.drafting`; or a smaller model with the same
                patch size and context, which `bgpt-fast train --drafter-for` trains. It changes no byte. Many drafted
                bytes are verified in one pass, which is faster if few files are generated and drafts are often right;
                each Generation counts them.
            progress: called with (files finished, all files, new bytes so far) after each patch.

        Returns:
            One Generation for each prompt, in the order of the prompts.

        Raises:
            TypeError, ValueError: a wrong argument, or a prompt that fills the context; before anything is computed.
            OutOfMemoryError: the weights, caches or batches need more memory than there is.
            FloatingPointError: the model gives NaN or infinite logits.
        """
        files = dict(
            self.generate_iter(
                prompts,
                max_new_bytes=max_new_bytes,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                seed=seed,
                drafter=drafter,
                progress=progress,
            )
        )
        return [files[i] for i in range(len(prompts))]

    def generate_iter(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_bytes: int | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        drafter: Drafter | BGPT | None = None,
        progress: Progress | None = None,
    ) -> Iterator[tuple[int, Generation]]:
        """As `generate`, but yields (index of the prompt in the list, Generation) as soon as each file ends."""
        if isinstance(prompts, str | bytes) or not isinstance(prompts, Sequence):
            raise TypeError(f"Generator: prompts: expected a list of Prompt, got {type(prompts).__name__}")
        _check_count("max_new_bytes", max_new_bytes, 0)
        sampling = Sampling(temperature, top_k, top_p, seed)
        device = device_of(self.model)
        if drafter is not None and device.type != "cpu":
            raise ValueError(f"Generator: drafter: expected None on {device}; drafts are verified on the CPU only")
        config, S = self.model.config, self.model.config.patch_size
        if isinstance(drafter, BGPT):
            self._check_drafter(drafter)
        packed = prompts if isinstance(prompts, PackedPrompts) else PackedPrompts.from_prompts(prompts, config)
        if not len(packed):
            return iter(())
        limits = (config.patch_length - 1 - packed.source_patches) * S
        if max_new_bytes is not None:
            # More than the context is the same, and may not fit 64 bits.
            limits = np.minimum(limits, packed.sizes + min(max_new_bytes, config.patch_length * S))
        if packed.max_new_bytes is not None:
            limits = np.minimum(limits, packed.sizes + packed.max_new_bytes)
        # The last patch is never read, so its position in the cache serves the extension patch.
        length = cache_length(int((packed.source_patches - -limits // S).max()))
        slots = self._slots(len(packed), length, drafter)
        model, proposes = (drafter, None) if isinstance(drafter, BGPT) else (None, drafter)
        make = functools.partial(self._make_decoder, drafter=model)
        scheduler = Scheduler(make, slots, length, packed, limits, sampling, proposes)
        return self._files(scheduler, slots, length, progress)

    def _files(
        self, scheduler: Scheduler, slots: int, length: int, progress: Progress | None
    ) -> Iterator[tuple[int, Generation]]:
        def what() -> str:
            return f"generating {slots:,} sequences of {length:,} patches at once"

        with named_out_of_memory(what, "max_batch", "max_new_bytes", advice="set max_memory"):
            yield from scheduler.files(progress)

    def _slots(self, total: int, length: int, drafter: Drafter | BGPT | None) -> int:
        """How many sequences of `length` patches to decode at once."""
        if self.max_memory is None:
            return min(total, self._max_batch or self._fitting_slots(length, drafter))
        slots = self._affordable_slots(self.max_memory, length, drafter)
        if slots < 1:
            activations, each = self._activation_bytes(drafter), self._slot_bytes(length, drafter)
            raise ValueError(
                f"Generator: max_memory: expected at least {activations + each} bytes, {each} for the caches of a "
                f"sequence of {length} patches and {activations} for activations, got {self.max_memory}; "
                "give more, or lower max_new_bytes"
            )
        return min(total, slots, self._max_batch or total)

    def _fitting_slots(self, length: int, drafter: Drafter | BGPT | None = None) -> int:
        """How many sequences of `length` patches fit into `max_memory`, or into a share of the free memory."""
        if self.max_memory is not None:
            return max(1, self._affordable_slots(self.max_memory, length, drafter))
        free = int(_MEMORY_SHARE * free_memory(device_of(self.model)))
        return max(1, min(MOST_FILES, self._affordable_slots(free, length, drafter)))

    def _affordable_slots(self, memory: int, length: int, drafter: Drafter | BGPT | None) -> int:
        extra_slots, _ = memory_overhead(device_of(self.model))
        return (memory - self._activation_bytes(drafter)) // self._slot_bytes(length, drafter) - extra_slots

    def _slot_bytes(self, length: int, drafter: Drafter | BGPT | None) -> int:
        """Bytes that a sequence takes: its cache, the decoder's buffers, and with drafts the features of the drafted
        patches, which are stored twice, or the drafter's cache."""
        _, buffers = memory_overhead(device_of(self.model))
        own = self.sequence_bytes(length) + self.model.config.hidden_size * buffers
        if drafter is None:
            return own
        if isinstance(drafter, BGPT):
            return own + _sequence_bytes(drafter.config, length, self._precision)
        drafted = min(length, -(-MAX_DRAFT_BYTES // self.model.config.patch_size))
        return own + self.model.config.hidden_size * 8 * drafted

    def _activation_bytes(self, drafter: Drafter | BGPT | None) -> int:
        """Bytes that a call takes in addition to its sequences' caches; drafts enlarge the byte decoder's cache."""
        models = [self.model, drafter] if isinstance(drafter, BGPT) else [self.model]
        total = 0
        for config in (model.config for model in models):
            drafted = 8 * config.byte_num_layers * config.patch_size * BYTE_DECODE_ROWS if drafter is not None else 0
            total += (_ACTIVATION_BYTES + drafted) * config.hidden_size
        return total

    def _check_drafter(self, drafter: BGPT) -> None:
        ours, its = self.model.config, drafter.config
        if device_of(drafter).type != "cpu":
            raise ValueError(f"Generator: drafter: expected a model on the CPU, got one on {device_of(drafter)}")
        same = (its.patch_size, its.vocab_size, its.eop) == (ours.patch_size, ours.vocab_size, ours.eop)
        if not same or its.patch_length < ours.patch_length:
            raise ValueError(
                f"Generator: drafter: expected patches of {ours.patch_size} of {ours.vocab_size} symbols and a context "
                f"of at least {ours.patch_length} of them, as the model's, got {its.patch_size} of "
                f"{its.vocab_size} and {its.patch_length}"
            )

    def _make_decoder(self, slots: int, length: int, drafter: BGPT | None = None) -> Decoder:
        def what() -> str:
            size = slots * self.sequence_bytes(length) / 2**30
            return f"the weights and the caches of {slots} sequences of {length} patches, {size:.1f} GiB"

        try:
            with named_out_of_memory(what, "max_batch", "max_new_bytes", advice="set max_memory"):
                decoder = make_decoder(
                    self.model,
                    slots,
                    length,
                    precision=self.precision,
                    batch_invariant=bool(self.batch_invariant),
                    cache=self._weights,
                )
                if drafter is None:
                    return decoder
                its = make_decoder(drafter, slots, length, precision=self._precision, cache=self._drafter_weights)
                assert isinstance(decoder, CpuDecoder)
                assert isinstance(its, CpuDecoder)
                return DraftedDecoder(decoder, its)
        except ValueError as error:
            raise ValueError(f"Generator: {error}") from error


def _sequence_bytes(config: BGPTConfig, patches: int, precision: str) -> int:
    """Bytes that the keys and values of a sequence of `patches` patches take."""
    entries = config.patch_num_layers * cache_length(patches) + config.byte_num_layers * config.patch_size
    return (8 if precision == "float32" else 4) * config.hidden_size * entries


def _check_count(name: str, value: object, minimum: int) -> None:
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"Generator: {name}: expected an int, got {type(value).__name__}")
    if value < minimum:
        raise ValueError(f"Generator: {name}: expected at least {minimum}, got {value}")
