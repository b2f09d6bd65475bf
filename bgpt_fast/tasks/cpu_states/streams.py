"""Endless random programs: the released generator's stream, byte for byte, and a counter-based one for bulk data."""

from __future__ import annotations

import math
import threading
from typing import Literal, Unpack

import numpy as np

from bgpt_fast import _C
from bgpt_fast.checks import check_int
from bgpt_fast.deprecation import renamed_value
from bgpt_fast.tasks.cpu_states.machine import state_size
from bgpt_fast.tasks.cpu_states.options import MachineOptions, StreamOptions
from bgpt_fast.tasks.cpu_states.traces import Traces, thread_count

Stream = Literal["python", "philox"]
Split = Literal["train", "eval"]

OLD_STREAMS: dict[object, Stream] = {"released": "python", "parallel": "philox"}
OLD_SPLITS: dict[object, Split] = {"test": "eval"}
_SPLITS: dict[Split | None, int] = {None: 0, "train": 1, "eval": 2}
_MAX_INDEX = 2**62


def generate(
    count: int,
    *,
    seed: int = 0,
    stream: Stream = "python",
    split: Split | None = None,
    start: int = 0,
    threads: int | None = None,
    small_values: float = 0.0,
    **machine: Unpack[MachineOptions],
) -> Traces:
    """Generates random programs and their traces.

    Args:
        count: number of programs.
        seed: any int for the Python stream (−n is n there, as in `random.seed`), 0…2⁶⁴ − 1 for the Philox one.
        stream: "python" is what cpu-simulation.py of github.com/sanderwood/bgpt writes with the same seed and options:
            Python's `random`, instances in sequence. "philox" has the same distribution from a counter-based
            generator (Philox4x32-10): instance i depends only on the seed, the options and i.
        split: (Philox stream) only instances whose program is for training or for evaluation. A hash of the
            program decides, so that no evaluation program is a training program, for any seeds; one in 64 is
            for evaluation. None gives all.
        start: the first index of the stream to consider; the Python stream has to draw all before it.
        threads: for the Philox stream; None means one per core. They never change the result.
        small_values: (Philox stream) share of the programs whose start values and immediates are 0…15, for training:
            in the released distribution, which 0 gives, operands below 16 are rare.
        machine: the fields of `StreamOptions`.

    Returns:
        `count` traces; `.next_start` is the `start` of the next ones.

    Raises:
        TypeError, ValueError: a wrong argument, or a split that has almost none of these programs.
        MemoryError: no memory for the traces.
    """
    options = StreamOptions(**machine)
    check_int("generate: count", count, 0)
    stream = renamed_value("generate: stream", stream, OLD_STREAMS)
    split = renamed_value("generate: split", split, OLD_SPLITS)
    if split not in _SPLITS:
        raise ValueError(f'generate: split: expected "train", "eval" or None, got {split!r}')
    if stream == "philox":
        return _philox(count, seed, options, split, start, threads, small_values)
    if stream != "python":
        raise ValueError(f'generate: stream: expected "python" or "philox", got {stream!r}')
    if small_values:
        raise ValueError(f'generate: small_values: expected 0 with stream="python", got {small_values}; use "philox"')
    if split is not None:
        raise ValueError(
            f'generate: split: expected None with stream="python", got {split!r}; use stream="philox", or '
            "generate_released_split for the released command's own split"
        )
    released = ReleasedStream(options, seed=seed)
    released.skip(start)
    return released.take(count)


def generate_released_split(
    num_train: int, num_test: int, *, seed: int = 0, drop_shared: bool = True, **machine: Unpack[MachineOptions]
) -> tuple[Traces, Traces]:
    """Generates training and then test data from one stream, as the released command does.

    When a set is written to a folder (`write_folder`), equal programs overwrite each other, as released.

    Args:
        num_train: number of training instances.
        num_test: number of test instances drawn.
        seed, machine: as in `generate`.
        drop_shared: leave out the test instances whose program is a training program; `.dropped` of the test set is
            their number. The released command keeps them.

    Returns:
        The training and the test traces.

    Raises:
        TypeError, ValueError: a wrong argument.
    """
    released = ReleasedStream(StreamOptions(**machine), seed=seed)
    train = released.take(num_train)
    test = released.take(num_test)
    if drop_shared:
        is_shared = np.isin(test.program_hashes(), train.program_hashes())
        test = test.select(np.flatnonzero(~is_shared))
        test.dropped = int(is_shared.sum())
    return train, test


class ReleasedStream:
    """The released generator's instances in chunks; `generate` would need memory for all at once.

    Chunks of a few thousand are also the fastest way to generate many: each reuses the memory that the last one freed,
    while one large buffer is new memory, which some virtual machines provide more slowly than this fills it.

    Args:
        options: the machine and its programs.
        seed: any int, as `random.seed` takes it.
    """

    def __init__(self, options: StreamOptions, *, seed: int = 0) -> None:
        check_int("ReleasedStream: seed", seed, -(2**4096), 2**4096)
        self.options = options
        self.position = 0
        self._stream = _C.CpuStatesPythonStream(_words(seed), options.to_native())
        self._lock = threading.Lock()  # the native calls release the GIL

    def skip(self, count: int) -> None:
        """Skips the next `count` instances."""
        check_int("ReleasedStream.skip: count", count, 0, _MAX_INDEX)
        with self._lock:
            self._stream.skip(count)
            self.position += count

    def take(self, count: int) -> Traces:
        """The next `count` instances; raises MemoryError if they do not fit."""
        check_int("ReleasedStream.take: count", count, 0, _MAX_INDEX)
        data = np.empty(self._likely_size(count), np.uint8)
        offsets = np.zeros(count + 1, np.int64)
        done = 0
        with self._lock:
            while True:
                done += self._stream.fill(
                    data.ctypes.data, len(data), offsets.ctypes.data + done * offsets.itemsize, count - done
                )
                if done == count:
                    break
                data.resize(int(offsets[done]) + self._likely_size(count - done), refcheck=False)
            self.position += count
            next_start = self.position
        R, M = self.options.num_registers, self.options.memory_size
        return Traces(data[: int(offsets[-1])], offsets, R, M, next_start=next_start)

    def _likely_size(self, count: int) -> int:
        """Buffer size that `count` traces exceed with probability 10⁻¹⁵; untouched pages use no memory."""
        least, most = max(self.options.min_program, 1), max(self.options.max_program, 1)
        deviation = 8 * (most - least + 1) / math.sqrt(12) * math.sqrt(count)
        states = count * ((least + most) / 2 + 1) + deviation
        C = state_size(self.options.num_registers)
        return int(count * self.options.memory_size + states * C) + self.options.max_trace_size


def _philox(
    count: int,
    seed: int,
    options: StreamOptions,
    split: Split | None,
    start: int,
    threads: int | None,
    small_values: float,
) -> Traces:
    check_int("generate: seed", seed, 0, 2**64 - 1)
    check_int("generate: start", start, 0, _MAX_INDEX)
    workers = thread_count(threads)
    native = options.to_native(small_values)
    indices = np.empty(count, np.int64)
    offsets = np.empty(count + 1, np.int64)
    next_start = _C.cpu_states_select(
        native, seed, start, count, _SPLITS[split], workers, indices.ctypes.data, offsets.ctypes.data
    )
    data = np.empty(int(offsets[-1]), np.uint8)
    _C.cpu_states_write(native, seed, indices.ctypes.data, offsets.ctypes.data, count, data.ctypes.data, workers)
    return Traces(data, offsets, options.num_registers, options.memory_size, next_start=next_start)


def _words(seed: int) -> list[int]:
    """|seed| as 32-bit words, least significant first: the Mersenne Twister key of `random.seed`."""
    size = max(1, -(-abs(seed).bit_length() // 32))
    return np.frombuffer(abs(seed).to_bytes(4 * size, "little"), "<u4").tolist()
