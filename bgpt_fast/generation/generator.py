"""The engine: prompts in, files out, in batches that refill as files end.

Shape letters: T tokens, D width, S bytes a patch, V = 257 tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from bgpt_fast.config import EOP
from bgpt_fast.generation.decoder import CachedDecoder
from bgpt_fast.generation.prompt import Generation, Prompt
from bgpt_fast.generation.sampling import Sampling, choose
from bgpt_fast.model import BGPT
from bgpt_fast.patches import PackedPatches

Progress = Callable[[int, int, int], None]
"""Called after each round with (files done, files in all, new bytes so far)."""


class Generator:
    """Continues files with a bGPT: keys and values cached at both levels, many files side by side.

    A file's bytes depend on the model, its prompt and the sampling arguments alone. On the CPU that holds to the last
    bit, by the order of every sum: what shares the batch, the size of the batch, the place in it, the number of threads
    and the caches change nothing. On a GPU (not yet run on one) it holds up to the rounding of the library's matrix
    products, which can tip a choice between nearly equal bytes.

    Args:
        model: computes in float32, on the device where it is; weights of another dtype are converted for each call.
            Dropout is off. Weights are read at each call, so a model in training can be looked at between steps.
        max_batch: files under way at once; more prompts wait until a place is free. Each takes memory for its keys and
            values: 8 bytes · hidden_size · (patch_num_layers · patches + byte_num_layers · patch_size), which is 38 MB
            in the 110 M model at 512 patches.

    Raises:
        TypeError, ValueError: a wrong argument.
    """

    def __init__(self, model: BGPT, *, max_batch: int = 256) -> None:
        if not isinstance(model, BGPT):
            raise TypeError(f"Generator: model: expected a BGPT, got {type(model).__name__}")
        if not isinstance(max_batch, int) or isinstance(max_batch, bool):
            raise TypeError(f"Generator: max_batch: expected an int, got {type(max_batch).__name__}")
        if max_batch < 1:
            raise ValueError(f"Generator: max_batch: expected at least 1, got {max_batch}")
        self.model = model
        self.max_batch = max_batch

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_bytes: int | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
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
        sequences = self._sequences(prompts, max_new_bytes)
        return _Run(self.model, sequences, sampling, self.max_batch).files(progress)

    def _sequences(self, prompts: Sequence[Prompt], max_new_bytes: int | None) -> list[_Sequence]:
        config = self.model.config
        S, room = config.patch_size, (config.patch_length - 1) * config.patch_size
        for place, prompt in enumerate(prompts):
            if not isinstance(prompt, Prompt):
                raise TypeError(f"Generator: prompts[{place}]: expected a Prompt, got {type(prompt).__name__}")
            if len(prompt.data) >= room:
                raise ValueError(
                    f"Generator: prompts[{place}].data: expected fewer than {room} bytes, the context's "
                    f"{config.patch_length} patches of {S} less the extension's, got {len(prompt.data)}; "
                    "cut the prompt, or use a model with a longer context"
                )
        whole = [(prompt.extension, prompt.data[: len(prompt.data) // S * S]) for prompt in prompts]
        packed = PackedPatches.from_bytes(whole, config, overlong="error", end_of_file=False)
        patches = packed.patches.split(packed.cu_seqlens.diff().tolist()) if prompts else ()
        return [
            _Sequence(
                place=place,
                index=place if prompt.index is None else prompt.index,
                data=prompt.data,
                limit=room if max_new_bytes is None else min(room, len(prompt.data) + max_new_bytes),
                patches=patches[place],
            )
            for place, prompt in enumerate(prompts)
        ]


class _Sequence:
    """A file under way.

    Of `data`, the first `given` bytes are the prompt's and the first `decoded` ones are behind the byte decoder (whole
    patches of the prompt need not go through it). `pending` [T, S] are the whole patches, that of the extension
    included, which the patch decoder has not seen yet, after `cached` ones that it has.
    """

    def __init__(self, place: int, index: int, data: bytes, limit: int, patches: Tensor) -> None:
        self.place, self.index, self.limit = place, index, limit
        self.data = bytearray(data)
        self.given = len(data)
        self.decoded = (len(patches) - 1) * patches.shape[1]
        self.pending = patches
        self.cached = 0
        self.slot = -1
        self.finished = False

    @property
    def done(self) -> bool:
        return self.finished or len(self.data) >= self.limit

    def take(self, token: int) -> int:
        """Accepts the model's next token, or puts the prompt's byte in its place; returns what came to stand there."""
        if self.decoded < self.given:
            token = self.data[self.decoded]
        elif token == EOP:
            self.finished = True
            return token
        else:
            self.data.append(token)
        self.decoded += 1
        return token

    def result(self) -> Generation:
        return Generation(bytes(self.data), self.finished, self.given)


class _Run:
    """One call of a Generator: its sequences, its caches and who holds which slot."""

    def __init__(self, model: BGPT, sequences: list[_Sequence], sampling: Sampling, max_batch: int) -> None:
        self.sequences, self.sampling = sequences, sampling
        self.total = len(sequences)
        self.model = model
        self.device = model.byte_level_decoder.base.lm_head.weight.device
        self.slots = min(max_batch, self.total)

    def files(self, progress: Progress | None) -> Iterator[tuple[int, Generation]]:
        """Runs all sequences; inference mode is left at each yield, so that it never leaks to the caller."""
        if not self.sequences:
            return
        self._start()
        waiting, free = deque(self.sequences), list(range(self.slots))
        active: list[_Sequence] = []
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
    def _start(self) -> None:
        # The last patch is never read again, so the extension patch takes its place in the count. A multiple of 16
        # keeps the rows of the cache on whole cache lines.
        longest = max(-(-sequence.limit // self.model.config.patch_size) for sequence in self.sequences)
        self.decoder = CachedDecoder(self.model, self.slots, max(1, -(-longest // 16)) * 16)

    @torch.inference_mode()
    def _round(self, running: list[_Sequence]) -> None:
        """Writes the patch that each running sequence is at."""
        inputs = self._features(running)
        patches: list[list[int]] = [[] for _ in running]
        rows = list(range(len(running)))
        for s in range(self.model.config.patch_size):
            sequences = [running[row] for row in rows]
            slots = self._int64([sequence.slot for sequence in sequences])
            tokens = self._choose(self.decoder.logits(inputs, slots, torch.full_like(slots, s)), sequences)
            for row, sequence, token in zip(rows, sequences, tokens, strict=True):
                patches[row].append(sequence.take(token))
            rows = [row for row, sequence in zip(rows, sequences, strict=True) if not sequence.done]
            if not rows:
                return
            inputs = self.decoder.wte[self._int64([patches[row][s] for row in rows])]
        for row in rows:
            running[row].pending = torch.tensor([patches[row]], dtype=torch.int16, device="cpu")

    def _features(self, running: list[_Sequence]) -> Tensor:
        """The feature [D] of each sequence's last patch, all its pending patches being put into the cache."""
        counts = [len(sequence.pending) for sequence in running]
        slots = [sequence.slot for sequence, count in zip(running, counts, strict=True) for _ in range(count)]
        positions: list[int] = []
        for sequence, count in zip(running, counts, strict=True):
            positions += range(sequence.cached, sequence.cached + count)
            sequence.cached += count
        patches = torch.cat([sequence.pending for sequence in running]).to(self.device)
        features = self.decoder.features(patches, self._int64(slots), self._int64(positions))
        return features[self._int64(counts).cumsum(0) - 1]

    def _choose(self, logits: Tensor, sequences: list[_Sequence]) -> list[int]:
        if not bool(logits.isfinite().all()):
            bad = [
                sequence.place
                for sequence, finite in zip(sequences, logits.isfinite().all(1).tolist(), strict=True)
                if not finite
            ]
            raise FloatingPointError(
                f"Generator: NaN or infinite logits for prompts {bad[:8]}; the model's weights are damaged or too large"
            )
        indices = [sequence.index for sequence in sequences]
        return choose(logits, self.sampling, indices, [sequence.decoded for sequence in sequences])

    def _int64(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.device)
