"""Generation and scoring on the null GPU: both engines launch and replay without a refusal."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from support.byte_decode import SHAPES, random_model

from bgpt_fast import _C, BGPT, Generator, Prompt
from bgpt_fast.generation.decoders.cuda import PERSISTENT_ROWS
from bgpt_fast.generation.scoring import score
from tools.null_gpu.log import Event, Kind, Log, launches

pytestmark = pytest.mark.usefixtures("whole_patches")
PATCHES = 3
BETWEEN_HOST_AND_GPU = (Kind.COPY_TO_DEVICE, Kind.COPY_TO_HOST, Kind.COPY_PAGEABLE, Kind.WAIT)


@pytest.fixture(scope="module")
def model() -> BGPT:
    return random_model(SHAPES["plain"]).cuda()


def generated(log: Log, model: BGPT, files: int, precision: str) -> list[Event]:
    """The log of one run of the Generator after another with as many files."""
    generator = Generator(model, max_batch=files, precision=precision)
    first = len(log)
    for _ in range(2):
        first = len(log)
        generator.generate([Prompt("bin", b"")] * files, max_new_bytes=PATCHES * model.config.patch_size)
    return log.events(first)


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_the_persistent_kernel_is_one_launch_a_patch(model: BGPT, precision: str, log: Log) -> None:
    names = [event.name for event in generated(log, model, 1, precision)]
    assert sum("byte_decode_kernel" in name for name in names) == PATCHES


@pytest.mark.parametrize("files", [1, PERSISTENT_ROWS + 8], ids=["persistent", "graphs"])
def test_a_round_is_one_copy_each_way_and_one_wait(model: BGPT, files: int, log: Log) -> None:
    """The wait is for the round before, so that the host's work hides behind the GPU's."""
    generator, size, rounds = Generator(model, max_batch=files), model.config.patch_size, []
    for patches in (2, 2, 5):
        first = len(log)
        generator.generate([Prompt("bin", b"")] * files, max_new_bytes=patches * size)
        rounds.append([event for event in log.events(first) if event.kind in BETWEEN_HOST_AND_GPU])
    _, two, five = rounds
    one = [Kind.COPY_TO_DEVICE, Kind.COPY_TO_HOST, Kind.WAIT]
    assert len(five) == len(two) + 3 * len(one), [event.name for event in five]
    assert [event.kind for event in five[-10:]] == [*one, *one, *one, Kind.WAIT]
    *early, last = (event for event in five[-10:] if event.kind is Kind.WAIT)
    assert min(event.later for event in early) > 10, "the whole round after has begun"
    assert last.later == 1, "nothing but the wait before"
    # In: the tokens that are known, and place, slot, position, limit, stream and offset; out: tokens and a count.
    # Each array starts at a multiple of 16 bytes.
    tokens, numbers = 2 * size * files, -(-8 * files // 16) * 16
    assert [event.bytes for event in five[-4:-2]] == [tokens + 6 * numbers, tokens + numbers]


def test_each_call_counts_the_arrivals_of_its_blocks(model: BGPT, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads with one Generator launch at once: a counter that they shared would let one grid wait for ever."""
    launch, both, counters = _C.byte_decode_cuda, threading.Barrier(2), []

    def counted(*arguments: Any) -> None:
        *_, arrived, _ = arguments
        counters.append(arrived)
        both.wait(300)
        launch(*arguments)

    monkeypatch.setattr(_C, "byte_decode_cuda", counted)
    generator = Generator(model, max_batch=1)
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(generator.generate, [Prompt("bin", b"")], max_new_bytes=1) for _ in range(2)]:
            done.result(600)
    assert len(counters) == len(set(counters)) == 2


@pytest.mark.parametrize("files", [1, PERSISTENT_ROWS + 8])
def test_threads_record_graphs_in_turn(files: int, log: Log) -> None:
    """Two captures at once on one stream, or in one memory pool, are refused."""
    for _ in range(5):
        generator = Generator(random_model(SHAPES["plain"]).cuda(), max_batch=files)
        both = threading.Barrier(2)

        def run(generator: Generator, both: threading.Barrier) -> None:
            both.wait(300)
            generator.generate([Prompt("bin", b"")] * files, max_new_bytes=1)

        with ThreadPoolExecutor(2) as pool:
            for done in [pool.submit(run, generator, both) for _ in range(2)]:
                done.result(600)


def test_a_larger_batch_replays_graphs(model: BGPT, log: Log) -> None:
    events = generated(log, model, PERSISTENT_ROWS + 8, "bfloat16")
    assert not any("byte_decode_kernel" in event.name for event in events)
    # One of the patch decoder and one of the byte decoder for each patch.
    assert sum(event.kind is Kind.GRAPH for event in events) == 2 * PATCHES


def test_prompts_that_take_a_slot_replay_graphs(model: BGPT, log: Log) -> None:
    """Files of several lengths end at several times, so that many patches of new prompts come beside running files.

    In a second run nothing is recorded, and attention is launched by no host."""
    slots = PERSISTENT_ROWS + 8
    size = model.config.patch_size
    prompts = [Prompt("bin", bytes(size * (1 + n % 3) - n % 5)) for n in range(2 * slots)]
    generator = Generator(model, max_batch=slots, precision="bfloat16")
    first, rounds = len(log), []
    for _ in range(2):
        first = len(log)
        generator.generate(prompts, max_new_bytes=2 * size)
        rounds.append(log.events(first))
    recorded, replayed = rounds
    assert any("cached_attention" in event.name for event in recorded), "or the test would see nothing"
    assert not any("cached_attention" in event.name for event in replayed)
    assert sum(event.kind is Kind.GRAPH for event in replayed) > 4


def test_scores_are_launched(model: BGPT, log: Log) -> None:
    first = len(log)
    with contextlib.suppress(FloatingPointError, RuntimeError):  # the logits, and sizes that follow, are no values here
        list(score(model, [("bin", b"0123456789")]))
    assert launches(log.events(first)) > 10
