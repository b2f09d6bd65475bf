"""The engine: prompts in, files out, in batches that refill as files end.

Shape letters: T tokens, D width, S bytes a patch, V = 257 tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bgpt_fast.generation.decoder import EagerDecoder
from bgpt_fast.generation.device_layers import DEVICE_PRECISIONS
from bgpt_fast.generation.drafting import Drafter
from bgpt_fast.generation.fused import CpuDecoder, PackedModel, state_of
from bgpt_fast.generation.on_device import CudaDecoder, DeviceModel, has_engines
from bgpt_fast.generation.packed import BYTE_DECODE_ROWS, PRECISIONS
from bgpt_fast.generation.prompt import Generation, Prompt
from bgpt_fast.generation.sampling import Sampling
from bgpt_fast.generation.scheduler import Decoder, Progress, Scheduler
from bgpt_fast.generation.sequence import MOST
from bgpt_fast.generation.sequence import Sequence as FileSequence
from bgpt_fast.model import BGPT
from bgpt_fast.patches import PackedPatches

_MAX_BATCH = 256
_GRAPH_BYTES = 160
"""For each of hidden_size and each file: what the graphs of both decoders write, with rows up to twice the files."""
_ACTIVATION_BYTES = 24 * 1024
"""For each of hidden_size: `PATCHES_AT_ONCE` patches in the patch decoder, or a chunk in the byte decoder."""


class _Packed(NamedTuple):
    """Packed weights, and the parameters that they came from in the state that they had."""

    state: tuple[object, ...]
    parameters: list[Tensor]
    model: PackedModel


class Generator:
    """Continues files with a bGPT: keys and values cached at both levels, many files side by side.

    A file's bytes depend on the model, its prompt and the sampling arguments alone. On the CPU that holds to the last
    bit, by the order of every sum: what shares the batch, the size of the batch, the place in it, the number of threads
    and the caches change nothing. On a GPU (not yet run on one) it holds so with `batch_invariant`; without, up to the
    rounding of the library's matrix products, which can tip a choice between nearly equal bytes. There a round of few
    patches is written by a persistent kernel, one of many by CUDA graphs that are recorded when a number of files first
    needs them; weights are copied for both at each call, to where the graphs read them.

    On the CPU the weights are packed when a call finds them new or changed, and kept beside the model's own: 4, 2 or 1
    bytes each by `precision`, 425, 212 or 106 MB for the 110 M model. Of changes that torch does not count, such as a
    fused optimizer's or those through `.data`, the sum of the weights' bits tells.

    Args:
        model: on the device where it is. Dropout is off. Weights are read at each call, so a model in training can be
            looked at between steps.
        max_batch: files under way at once; more prompts wait until a place is free. None means 256, or as many as
            `max_memory` allows.
        max_memory: bytes that caches and activations of a call may take, instead of a batch size: as many files are
            under way as fit. `sequence_bytes` says what each takes.
        precision: what linear layers compute in. "float32"; "bfloat16": weights and the layers' inputs rounded to 8
            bits of mantissa, sums in float32; "int8", on the CPU: weights rounded to 8 bits, the layers' inputs to
            bfloat16. Keys and values are as wide as the inputs. None means that of the model: bfloat16 for a bfloat16
            model, else float32. Rounding the shipped CPU-state model changes its loss by 0.05 % (bfloat16) and 0.2 %
            (int8), and 0.3 % and 0.6 % of its likeliest bytes, most of them in programs, which nobody can predict.
        batch_invariant: demand that a file's bytes depend on nothing that shares the batch, to the last bit. On the CPU
            they never do, whatever is given here. On an NVIDIA GPU True has all rounds written by the same CUDA graphs,
            of products with fixed tiles; None and False take the fastest engine for each round. What True costs there
            is predicted in docs/kernels.md and has not been measured, which is why it is not the default.

    Raises:
        TypeError, ValueError: a wrong argument, such as a demand that the model's device cannot meet.
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
        for name, value in (("max_batch", max_batch), ("max_memory", max_memory)):
            if value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"Generator: {name}: expected an int, got {type(value).__name__}")
            if value < 1:
                raise ValueError(f"Generator: {name}: expected at least 1, got {value}")
        if precision is not None and precision not in PRECISIONS:
            raise ValueError(f"Generator: precision: expected one of {PRECISIONS} or None, got {precision!r}")
        if not isinstance(batch_invariant, bool | None):
            raise TypeError(
                f"Generator: batch_invariant: expected a bool or None, got {type(batch_invariant).__name__}"
            )
        self.model = model
        self._max_batch = max_batch
        self.max_memory = max_memory
        self.precision = precision
        self.batch_invariant = batch_invariant
        self._packed: _Packed | None = None
        self._on_device: DeviceModel | None = None

    def __getstate__(self) -> dict[str, object]:
        """For copies and other processes, which pack the weights themselves."""
        return {**self.__dict__, "_packed": None, "_on_device": None}

    @property
    def max_batch(self) -> int:
        """Files under way at once at most; where `max_memory` alone decides, files that fill the context."""
        if self._max_batch is not None:
            return self._max_batch
        return _MAX_BATCH if self.max_memory is None else max(1, self._affordable(self.model.config.patch_length))

    def sequence_bytes(self, patches: int) -> int:
        """Bytes that the keys and values of a sequence of `patches` patches take.

        For 512 patches in the 110 M model 38 MB in float32, 19 MB beside weights of fewer bits.
        """
        config = self.model.config
        entries = config.patch_num_layers * _cached(patches) + config.byte_num_layers * config.patch_size
        return (8 if self._own_precision() == "float32" else 4) * config.hidden_size * entries

    @property
    def _device(self) -> torch.device:
        return self.model.byte_level_decoder.base.lm_head.weight.device

    def _own_precision(self) -> str:
        weight = self.model.byte_level_decoder.base.lm_head.weight
        has_bfloat16 = weight.device.type == "cpu" or has_engines(weight.device)
        own = "bfloat16" if weight.dtype == torch.bfloat16 and has_bfloat16 else "float32"
        return self.precision or own

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_bytes: int | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        drafter: Drafter | None = None,
        progress: Progress | None = None,
    ) -> list[Generation]:
        """Continues each prompt until the model ends the file, the context is full or enough bytes are there.

        A prompt need not end with a patch: its last bytes are given to the byte decoder, which goes on from there. The
        context, `patch_length` patches with the extension patch, holds (patch_length - 1) · patch_size bytes.

        Args:
            prompts: any number, of any lengths.
            max_new_bytes: bytes to add to each prompt at most; None means until the context is full. A file whose last
                byte is the last allowed one counts as not finished: its end was not asked for.
            temperature: 0 takes the likeliest byte each time; T > 0 draws in proportion to p^(1/T).
            top_k: first keeps the k likeliest tokens; 0 means off.
            top_p: then keeps the likeliest up to and with the one that takes their sum over p; 1 or more means off.
            seed: with a prompt's index and the byte's position in the file it decides a draw, so a file that is
                continued from any of its own beginnings comes out the same.
            drafter: guesses what comes next, on the CPU: see `generation.drafting`. It changes no byte; guesses are
                checked many at a time, which pays where few files are under way and guesses are often right. Each
                Generation says how many were.
            progress: called with (files done, files in all, new bytes so far) after each patch.

        Returns:
            One Generation for each prompt, in the order of the prompts.

        Raises:
            TypeError, ValueError: a wrong argument, or a prompt that leaves no room in the context; before anything is
                computed.
            MemoryError: no memory for the caches.
            FloatingPointError: the model gives NaN or infinite logits.
        """
        found = dict(
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
        return [found[place] for place in range(len(prompts))]

    def generate_iter(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_bytes: int | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        drafter: Drafter | None = None,
        progress: Progress | None = None,
    ) -> Iterator[tuple[int, Generation]]:
        """As `generate`, but gives each file as soon as it ends, with its prompt's place in the list."""
        if isinstance(prompts, str | bytes | Prompt) or not isinstance(prompts, Sequence):
            raise TypeError(f"Generator: prompts: expected a list of Prompt, got {type(prompts).__name__}")
        if max_new_bytes is not None:
            if not isinstance(max_new_bytes, int) or isinstance(max_new_bytes, bool):
                raise TypeError(f"Generator: max_new_bytes: expected an int, got {type(max_new_bytes).__name__}")
            if max_new_bytes < 0:
                raise ValueError(f"Generator: max_new_bytes: expected at least 0, got {max_new_bytes}")
        sampling = Sampling(temperature, top_k, top_p, seed)
        device = self._device
        if drafter is not None and device.type != "cpu":
            raise ValueError(f"Generator: drafter: expected None on {device}; guesses are checked on the CPU only")
        sequences = self._sequences(prompts, max_new_bytes)
        if not sequences:
            return iter(())
        # The last patch is never read again, so the extension patch takes its place in the count.
        S = self.model.config.patch_size
        length = _cached(max(sequence.before - -sequence.limit // S for sequence in sequences))
        slots = self._slots(len(sequences), length, drafter is not None)
        return Scheduler(self._decoder, slots, length, sequences, sampling, drafter).files(progress)

    def _slots(self, total: int, length: int, drafting: bool) -> int:
        """How many sequences of `length` patches to have under way."""
        if self.max_memory is None:
            return min(total, self.max_batch)
        slots = self._affordable(length, drafting)
        if slots < 1:
            activations, each = self._activations(drafting), self._each(length, drafting)
            raise ValueError(
                f"Generator: max_memory: expected at least {activations + each} bytes, {each} for the caches of a "
                f"sequence of {length} patches and {activations} for activations, got {self.max_memory}; "
                "give more, or lower max_new_bytes"
            )
        return min(total, slots, self._max_batch or total)

    def _affordable(self, length: int, drafting: bool = False) -> int:
        assert self.max_memory is not None
        # On a GPU a slot more, which no file has.
        spare = 1 if has_engines(self._device) else 0
        return (self.max_memory - self._activations(drafting)) // self._each(length, drafting) - spare

    def _each(self, length: int, drafting: bool) -> int:
        """Bytes that a sequence takes: with guesses, also the features of the patches before them, which are copied; on
        a GPU also its share of what graphs keep."""
        guessed = min(length, -(-MOST // self.model.config.patch_size)) if drafting else 0
        kept = 8 * guessed + (_GRAPH_BYTES if has_engines(self._device) else 0)
        return self.sequence_bytes(length) + self.model.config.hidden_size * kept

    def _activations(self, drafting: bool) -> int:
        """Bytes that a call takes beside its sequences' caches: with guesses a file has more patches under way."""
        config = self.model.config
        guessed = 8 * config.byte_num_layers * config.patch_size * BYTE_DECODE_ROWS if drafting else 0
        return (_ACTIVATION_BYTES + guessed) * config.hidden_size

    def _decoder(self, slots: int, length: int) -> Decoder:
        try:
            return self._new_decoder(slots, length)
        except MemoryError as error:
            size = slots * self.sequence_bytes(length) / 2**30
            raise MemoryError(
                f"Generator: no memory for the caches of {slots} sequences of {length} patches, {size:.1f} GiB; "
                "lower max_batch or max_new_bytes, or set max_memory"
            ) from error

    def _new_decoder(self, slots: int, length: int) -> Decoder:
        precision, device = self._own_precision(), self._device
        if device.type == "cpu":
            return CpuDecoder(self._packed_model(precision), slots, length)
        offered = tuple(DEVICE_PRECISIONS) if has_engines(device) else ("float32",)
        if precision not in offered:
            raise ValueError(f"Generator: precision: expected one of {offered} {_where(device)}, got {precision!r}")
        if not has_engines(device):
            if self.batch_invariant:
                raise ValueError(f"Generator: batch_invariant: expected None or False {_where(device)}, got True")
            return EagerDecoder(self.model, slots, length)
        return CudaDecoder(self._device_model(precision), slots, length)

    def _device_model(self, precision: str) -> DeviceModel:
        """The weights as they are now, where those of the last call were, so that its graphs can be used again."""
        kept = self._on_device
        wanted = precision, bool(self.batch_invariant), self._device
        if kept is None or (kept.precision, kept.batch_invariant, kept.device) != wanted:
            self._on_device = None
            self._on_device = kept = DeviceModel(self.model, precision, batch_invariant=bool(self.batch_invariant))
        else:
            kept.reload(self.model)
        return kept

    def _packed_model(self, precision: str) -> PackedModel:
        """The weights as they are now, packed again only if they have changed since."""
        parameters: list[Tensor] = [*self.model.parameters()]
        # The parameters themselves are kept with it, so that no other can come to lie at the address of one of them.
        state = precision, *state_of(parameters)
        if self._packed is None or self._packed.state != state:
            self._packed = None  # the old ones' memory is free before the new ones take theirs
            self._packed = _Packed(state, parameters, PackedModel(self.model, precision))
        return self._packed.model

    def _sequences(self, prompts: Sequence[Prompt], max_new_bytes: int | None) -> list[FileSequence]:
        config = self.model.config
        S = config.patch_size
        rooms = []
        for place, prompt in enumerate(prompts):
            if not isinstance(prompt, Prompt):
                raise TypeError(f"Generator: prompts[{place}]: expected a Prompt, got {type(prompt).__name__}")
            before = prompt.source_patches(S)
            rooms.append((config.patch_length - 1 - before) * S)
            if len(prompt.data) >= rooms[-1]:
                source = f" and the source's {before}" if before else ""
                raise ValueError(
                    f"Generator: prompts[{place}].data: expected fewer than {max(rooms[-1], 0)} bytes, the context's "
                    f"{config.patch_length} patches of {S} less the extension's{source}, got {len(prompt.data)}; "
                    "cut the prompt, or use a model with a longer context"
                )
        documents = []
        for prompt in prompts:
            documents += [] if prompt.source is None else [prompt.source]
            documents.append((prompt.extension, prompt.data[: len(prompt.data) // S * S]))
        packed = PackedPatches.from_bytes(documents, config, truncation="error", end_of_file=False)
        sizes = [prompt.source_patches(S) + 1 + len(prompt.data) // S for prompt in prompts]
        patches = packed.patches.split(sizes) if prompts else ()
        return [
            FileSequence(
                place=place,
                index=place if prompt.index is None else prompt.index,
                data=prompt.data,
                limit=rooms[place] if max_new_bytes is None else min(rooms[place], len(prompt.data) + max_new_bytes),
                patches=patches[place],
                before=prompt.source_patches(S),
            )
            for place, prompt in enumerate(prompts)
        ]


def _where(device: torch.device) -> str:
    lacks_build = device.type == "cuda" and not has_engines(device)
    return f"on {device}" + (" with an extension built without nvcc" if lacks_build else "")


def _cached(patches: int) -> int:
    """Positions of a cache for so many patches: a multiple of 16 keeps its rows on whole cache lines."""
    return max(1, -(-patches // 16)) * 16
