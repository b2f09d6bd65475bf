"""What generation costs around its engine: `Generator` and a plain loop, both with an engine that returns at once.

Times are CPU seconds of the calling thread, so that a busy machine changes them little.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor

from bgpt_fast import BGPT, BGPTConfig, Generator, Prompt
from bgpt_fast.generation import generator
from bgpt_fast.generation.decoders.request import DecodeRequest, DecodeResult
from bgpt_fast.kernels.byte_decode.sampling import Sampling
from bgpt_fast.tasks.cpu_states import Traces
from bgpt_fast.tasks.cpu_states.simulation import simulate

WIDTH = 8  # of the features, which nothing reads


class InstantDecoder:
    """Implements `Decoder` but for `logits`: the same patch for every row, of bytes that never end a file."""

    def __init__(self, slots: int, patch_size: int) -> None:
        self.device = torch.device("cpu")
        self._tokens = torch.arange(97, 97 + patch_size).to(torch.int16).repeat(slots, 1)
        self._counts, self._features = torch.full((slots,), patch_size), torch.zeros(4096, WIDTH)

    def prefill(self, patches: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
        return self._features[: len(patches)]

    def write(self, request: DecodeRequest) -> DecodeResult:
        rows = len(request.max_tokens)
        return DecodeResult(self._tokens[:rows], torch.minimum(self._counts[:rows], request.max_tokens))

    def logits(self, features: Tensor, tokens: Tensor, count: int) -> Tensor:
        raise NotImplementedError


def tiny_model(patch_size: int, patch_length: int) -> BGPT:
    """A model for its config; it is never run."""
    return BGPT(BGPTConfig(patch_size, patch_length, WIDTH, 1, 1, num_heads=1))


@contextmanager
def instant_engine() -> Iterator[None]:
    """Within the block every `Generator` has an `InstantDecoder`."""

    def make(model: BGPT, slots: int, length: int, **_: object) -> InstantDecoder:
        return InstantDecoder(slots, model.config.patch_size)

    with mock.patch.object(generator, "make_decoder", make):
        yield


def spans(marks: Sequence[float]) -> list[float]:
    """Seconds between these times, without the last, in which files end."""
    return [after - before for before, after in itertools.pairwise(marks[:-1])]


def generator_rounds(model: BGPT, prompts: Sequence[Prompt], rounds: int) -> tuple[list[float], list[bytes]]:
    """CPU seconds of each round but the first and the last, and the files, of `Generator`."""
    marks: list[float] = []
    with instant_engine():
        files = Generator(model, max_batch=len(prompts)).generate(
            prompts,
            max_new_bytes=rounds * model.config.patch_size,
            progress=lambda *_: marks.append(time.thread_time()),
        )
    return spans(marks), [file.data for file in files]


def plain_rounds(model: BGPT, prompts: Sequence[Prompt], rounds: int) -> tuple[list[float], list[bytes]]:
    """As `generator_rounds`, of a loop over the files: lists and a bytearray for each, tensors made of them."""
    S, total = model.config.patch_size, len(prompts)
    decoder, files = InstantDecoder(total, S), [bytearray(prompt.data) for prompt in prompts]
    limits = [len(file) + rounds * S for file in files]
    marks = []
    running = list(range(total))
    while running:
        starts = [len(files[i]) // S * S for i in running]
        patches = [list(files[i][start - S : start]) or [256] * S for i, start in zip(running, starts, strict=True)]
        prefixes = [list(files[i][start:]) for i, start in zip(running, starts, strict=True)]
        features = decoder.prefill(
            torch.tensor(patches, dtype=torch.int16),
            torch.tensor(running),
            torch.tensor([start // S for start in starts]),
        )
        request = DecodeRequest(
            features,
            torch.tensor([prefix + [-1] * (S - len(prefix)) for prefix in prefixes], dtype=torch.int16),
            torch.tensor([min(S, limits[i] - start) for i, start in zip(running, starts, strict=True)]),
            torch.tensor(running, dtype=torch.uint64),
            torch.tensor(starts, dtype=torch.uint64),
            Sampling(),
        )
        result = decoder.write(request)
        rows = zip(running, starts, result.tokens.tolist(), result.counts.tolist(), strict=True)
        for i, start, tokens, count in rows:
            files[i][start:] = bytes(tokens[:count])
        running = [i for i in running if len(files[i]) < limits[i]]
        marks.append(time.thread_time())
    return spans(marks), [bytes(file) for file in files]


def simulate_seconds(model: BGPT, traces: Traces) -> tuple[float, list[bytes]]:
    """CPU seconds of `simulate`, and the predicted traces."""
    with instant_engine():
        engine = Generator(model, max_batch=1024)
        began = time.thread_time()
        predicted = simulate(engine, traces)
    return time.thread_time() - began, [one.data for one in predicted]


def plain_simulate_seconds(model: BGPT, traces: Traces) -> tuple[float, list[bytes]]:
    """The same by `plain_rounds`, program by program around it, each cut at its own limit."""
    S, size = model.config.patch_size, traces.memory_size + 6 + traces.num_registers
    began = time.thread_time()
    files = [trace.to_bytes() for trace in traces]
    rounds = -(-(max(map(len, files)) - size) // S) + 1
    _, outputs = plain_rounds(model, [Prompt("bin", file[:size]) for file in files], rounds)
    beyond = max(6 + traces.num_registers, S)
    predicted = [one[: len(file) + beyond] for one, file in zip(outputs, files, strict=True)]
    return time.thread_time() - began, predicted
