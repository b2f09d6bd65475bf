"""Continues tunes with a NotaGen, many at a time, with key-value caches for both decoders.

Shape letters: N tunes of a step, T patches of a prefill, S characters a patch, L patches of context.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bgpt_fast.checks import check_int
from bgpt_fast.generation.decoders.base import Decoder, make_decoder
from bgpt_fast.generation.decoders.request import DecodeRequest
from bgpt_fast.generation.drafting import Drafter
from bgpt_fast.generation.generator import Generator
from bgpt_fast.generation.prompt import Generation, Prompt
from bgpt_fast.generation.scheduler import Progress
from bgpt_fast.kernels.byte_decode.sampling import Sampling
from bgpt_fast.memory import named_out_of_memory
from bgpt_fast.model import BGPT
from bgpt_fast.models.notagen.tunes import (
    BOS,
    EOS,
    Patch,
    body_start,
    check_alphabet,
    prompt_context,
    prompt_patches,
    text_of,
)

_FIRST_COUNTER = "[r:0/"
"""How the body of every tune in the stream format begins."""
_PREFILL_PATCHES = 512
RELEASED_SAMPLING = {"temperature": 1.2, "top_k": 9, "top_p": 0.9}
"""The arguments of sampling of the released code."""
MOST_BYTES = 2**16
"""New bytes of a tune at most where there is no other limit, since a context that moves on never ends one."""


@dataclass(frozen=True)
class Tune:
    """A generated tune.

    Args:
        text: ABC notation: the prompt, then what the model wrote, with its `[r:i/j]` of the stream format.
        finished: whether the model ended the tune; False where `max_patches` or a context that cannot move ended it.
        patches: the patches that the model wrote, S symbols each, without the one that ends the tune.
    """

    text: str
    finished: bool
    patches: list[Patch] = field(repr=False)


def generate(
    model: BGPT,
    prompts: Sequence[str],
    *,
    max_patches: int = 4096,
    temperature: float = RELEASED_SAMPLING["temperature"],
    top_k: int = int(RELEASED_SAMPLING["top_k"]),
    top_p: float = RELEASED_SAMPLING["top_p"],
    seed: int = 0,
    max_batch: int = 64,
    precision: str | None = None,
) -> list[Tune]:
    """Continues each prompt until the model ends the tune.

    Where the context is full, it is filled again with the header and the later half of the body's lines, as in the
    released code, so that a tune may be longer than it. A tune's symbols depend only on the model, its prompt, its
    index in the list and the arguments of sampling, as those of a `Generator` do, and with its exactness.

    Args:
        model: a NotaGen, on the device to generate on; dropout is off.
        prompts: the beginnings of tunes: "", lines such as "%Baroque", a header, or header and lines of the body.
        max_patches: patches that the model writes for a tune at most.
        temperature: 0 takes the likeliest symbol each time; T > 0 samples in proportion to p^(1/T). The defaults are
            those of the released code.
        top_k: first keeps the k likeliest symbols; 0 means off.
        top_p: then keeps the fewest likeliest ones whose probabilities sum to more than p; 1 or more means off.
        seed: seeds the random streams, one a tune.
        max_batch: tunes generated at the same time; the caches of each take 8 bytes for each layer of the patch
            decoder, unit of width and patch of the context that it may need.
        precision: as `Generator`.

    Returns:
        A Tune for each prompt, in their order.

    Raises:
        TypeError, ValueError: a wrong argument, or a prompt that fills the context; before anything is computed.
        OutOfMemoryError: the weights or caches need more memory than there is.
        FloatingPointError: the model gives NaN or infinite logits.
    """
    check_int("generate: max_batch", max_batch, 1)
    sampling = Sampling(temperature, top_k, top_p, seed)
    run = Run(model, prompts, max_patches=max_patches, sampling=sampling, max_batch=max_batch)
    with named_out_of_memory(run.describe, "max_batch", "max_patches"):
        run.start(precision)
        for _ in run.complete():
            pass
    return [tune.result() for tune in run.tunes]


class TuneGenerator(Generator):
    """Continues files of ABC notation with a NotaGen, as a `Generator` does files of any kind with a bGPT.

    Prompts are `Prompt("abc", b"...")`, in ASCII and without a source. A tune's bytes are those of `generate` with the
    same prompt, index and sampling. There are no drafts.

    Args, errors: as `Generator`.
    """

    def _check_model(self) -> None:
        check_alphabet("TuneGenerator: model", self.model.config)

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
        """As `Generator.generate_iter`; without `max_new_bytes` a tune ends after `MOST_BYTES` new bytes."""
        limit = MOST_BYTES if max_new_bytes is None else max_new_bytes
        check_int("TuneGenerator: max_new_bytes", limit, 0)
        if drafter is not None:
            raise ValueError("TuneGenerator: drafter: expected None, which models of bytes alone have")
        for index, prompt in enumerate(prompts):
            if prompt.source is not None:
                raise ValueError(f"TuneGenerator: prompts[{index}]: expected a tune's beginning, got a source with it")
        run = Run(
            self.model,
            [prompt.data.decode("latin-1") for prompt in prompts],
            max_patches=max(limit, 1),
            sampling=Sampling(temperature, top_k, top_p, seed),
            max_batch=self._slots(len(prompts), self.model.config.patch_length, None) if prompts else 1,
            max_characters=limit,
            streams=[index if prompt.index is None else prompt.index for index, prompt in enumerate(prompts)],
        )
        return self._tunes(run, limit, progress)

    def _tunes(self, run: Run, limit: int, progress: Progress | None) -> Iterator[tuple[int, Generation]]:
        if not run.tunes:
            return
        with named_out_of_memory(run.describe, "max_batch", "max_new_bytes", advice="set max_memory"):
            with torch.inference_mode():
                run.decoder = self._make_decoder(run.slots, run.length)
            for tune in run.complete(progress):
                data, size = tune.text.encode("ascii"), len(tune.prompt)
                finished = tune.finished and tune.characters < limit
                yield tune.index, Generation(data[: size + limit], finished, size)


@dataclass
class _Writing:
    """A tune that is being written.

    Args:
        prompt: its beginning.
        index: in the list.
        stream: number of its random stream.
        context: the patches that the next one follows; the last may be incomplete.
        is_in_body: whether the body has begun.
    """

    prompt: str
    index: int
    stream: int
    context: list[Patch]
    is_in_body: bool
    cached: int = 0  # how many of them are in the decoder's cache
    new: list[Patch] = field(default_factory=list)
    characters: int = 0  # of the text of these
    context_lines: int = 0  # of the body, in a context that is filled again
    finished: bool = False

    @property
    def text(self) -> str:
        return self.prompt + text_of(self.new)

    def result(self) -> Tune:
        return Tune(self.text, self.finished, self.new)

    def prefix(self, S: int) -> Patch:
        """The symbols that are known of the patch to write."""
        return self.context[-1] if len(self.context[-1]) < S else []


class Run:
    """Writes tunes, a patch of each a step; where one ends, the next gets its slot.

    Args, errors: those of `generate`, for which this does the work, and:
        max_characters: a tune with as many new characters is complete.
        streams: numbers of the tunes' random streams; None means their indices in the list.
    """

    def __init__(
        self,
        model: BGPT,
        prompts: Sequence[str],
        *,
        max_patches: int,
        sampling: Sampling,
        max_batch: int,
        max_characters: int | None = None,
        streams: Sequence[int] | None = None,
    ) -> None:
        if not isinstance(model, BGPT):
            raise TypeError(f"generate: model: expected a BGPT, got {type(model).__name__}")
        config = model.config
        check_alphabet("generate: model", config)
        if isinstance(prompts, str) or not all(isinstance(prompt, str) for prompt in prompts):
            raise TypeError(f"generate: prompts: expected a list of str, got {prompts!r:.80}")
        check_int("generate: max_patches", max_patches, 1)
        self.model, self.config, self.S = model, config, config.patch_size
        self.max_patches, self.sampling, self.max_characters = max_patches, sampling, max_characters
        self.tunes = []
        for index, prompt in enumerate(prompts):
            context, lines = prompt_context(f"generate: prompts[{index}]", prompt, config), prompt.split("\n")
            stream = index if streams is None else streams[index]
            self.tunes.append(_Writing(prompt, index, stream, context, body_start(lines) < len(lines)))
        self.slots = min(max_batch, len(self.tunes))
        longest = max((len(tune.context) for tune in self.tunes), default=0)
        self.length = min(config.patch_length, max_patches + longest)
        self.waiting = deque(self.tunes)
        self.active: dict[int, _Writing] = {slot: self.waiting.popleft() for slot in range(self.slots)}

    def describe(self) -> str:
        """What takes memory."""
        return f"generating {self.slots:,} tunes of up to {self.length:,} patches at once"

    @torch.inference_mode()
    def start(self, precision: str | None = None) -> None:
        """Packs the weights and reserves the caches."""
        if self.tunes:
            self.decoder: Decoder = make_decoder(self.model, self.slots, self.length, precision=precision)

    def complete(self, progress: Progress | None = None) -> Iterator[_Writing]:
        """Writes all tunes, and yields each as soon as it is complete.

        Args:
            progress: called with (complete tunes, all tunes, new characters so far) after each patch.
        """
        done = 0
        while self.active:
            self.step()
            ended = [slot for slot, tune in self.active.items() if self._is_complete(tune)]
            done += len(ended)
            if progress is not None:
                progress(done, len(self.tunes), sum(tune.characters for tune in self.tunes))
            for slot in ended:
                tune = self.active.pop(slot)
                if self.waiting:
                    self.active[slot] = self.waiting.popleft()
                yield tune

    def _is_complete(self, tune: _Writing) -> bool:
        if tune.finished or len(tune.new) >= self.max_patches:
            return True
        if self.max_characters is not None and tune.characters >= self.max_characters:
            return True
        return self._is_stuck(tune)

    @torch.inference_mode()
    def step(self) -> None:
        """Writes the next patch of each active tune."""
        tunes = [*self.active.values()]
        features = self._features()
        prefixes = [tune.prefix(self.S) for tune in tunes]
        patches = self._write(features, tunes, prefixes)
        # The counter of the first line is 0, whatever the model would write.
        first = [
            row
            for row, tune in enumerate(tunes)
            if not tune.is_in_body and not prefixes[row] and text_of([patches[row]]).startswith("[r:")
        ]
        if first:
            counter = [ord(character) for character in _FIRST_COUNTER]
            again = self._write(features[first], [tunes[row] for row in first], [counter] * len(first))
            for row, patch in zip(first, again, strict=True):
                tunes[row].is_in_body, patches[row] = True, patch
        for tune, prefix, patch in zip(tunes, prefixes, patches, strict=True):
            new = patch[len(prefix) :]
            if new[:2] == [BOS, EOS]:
                tune.finished = True
                continue
            if prefix:
                tune.context.pop()
            tune.context.append(patch)
            tune.new.append(new)
            tune.characters += len(text_of([new]))

    def _features(self) -> Tensor:
        """Adds the complete patches that are not in the cache to it; the feature of each tune's last: [N, D]."""
        patches: list[Patch] = []
        slots: list[int] = []
        positions: list[int] = []
        last = []
        for slot, tune in self.active.items():
            complete = len(tune.context) - bool(tune.prefix(self.S))
            patches += tune.context[tune.cached : complete]
            slots += [slot] * (complete - tune.cached)
            positions += range(tune.cached, complete)
            last.append(len(patches) - 1)
            tune.cached = complete
        device = self.decoder.device
        inputs = (
            torch.tensor(patches, dtype=torch.int16, device=device),
            *(torch.tensor(numbers, dtype=torch.int64, device=device) for numbers in (slots, positions)),
        )
        chunks = zip(*(values.split(_PREFILL_PATCHES) for values in inputs), strict=True)
        return torch.cat([self.decoder.prefill(*chunk) for chunk in chunks])[last]

    def _write(self, features: Tensor, tunes: Sequence[_Writing], prefixes: Sequence[Patch]) -> list[Patch]:
        """The patches that follow the features, complete, in ints."""
        S, N = self.S, len(tunes)
        known = [[*prefix, *[-1] * (S - len(prefix))] for prefix in prefixes]
        request = DecodeRequest(
            features=features,
            prefix_tokens=torch.tensor(known, dtype=torch.int16, device="cpu"),
            max_tokens=torch.full((N,), S, dtype=torch.int64, device="cpu"),
            rng_streams=torch.tensor([tune.stream for tune in tunes], dtype=torch.uint64, device="cpu"),
            byte_offsets=torch.tensor([len(tune.new) * S for tune in tunes], dtype=torch.uint64, device="cpu"),
            sampling=self.sampling,
        )
        result = self.decoder.write(request)
        damaged = [tune.index for tune, count in zip(tunes, result.counts.tolist(), strict=True) if count < 0]
        if damaged:
            raise FloatingPointError(
                f"generate: NaN or infinite logits for prompts {damaged[:8]}; the model's weights are damaged or too "
                "large"
            )
        patches: list[Patch] = result.tokens.tolist()
        return patches

    def _is_stuck(self, tune: _Writing) -> bool:
        """Whether the context is full and cannot be filled anew; fills it anew where it can be."""
        if len(tune.context) < self.config.patch_length:
            return False
        lines = tune.text.split("\n")  # the last is not complete, or empty
        body_at = body_start(lines)
        body = lines[body_at:]
        if len(body) < 2:
            return True
        tune.context_lines = tune.context_lines or len(body) // 2
        text = "\n".join([*lines[:body_at], *body[-tune.context_lines :]])
        tune.context, tune.cached = prompt_patches(text, self.config)[: self.config.patch_length], 0
        return False
