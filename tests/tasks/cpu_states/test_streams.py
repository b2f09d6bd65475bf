"""The released stream byte for byte, and the Philox stream against the Python oracle."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
from oracles import cpu_states as oracle
from support.paths import TESTS

import bgpt_fast.tasks.cpu_states as cpu

GOLDEN = TESTS / "golden"
SMALL: dict[str, Any] = {"num_registers": 2, "memory_size": 64, "min_program": 1, "max_program": 15}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def golden_sets(tag: str) -> list[tuple[dict[str, Any], cpu.Traces]]:
    golden = json.loads((GOLDEN / f"{tag}.json").read_text())
    sizes = {"num_registers": 3, "memory_size": 16, "max_program": 3} if tag.startswith("r3") else {}
    counts = [golden[split]["n_instances"] for split in ("train", "test")]
    traces = cpu.generate_released_split(*counts, seed=0, drop_shared=False, **sizes)
    return [(golden[split], one) for split, one in zip(("train", "test"), traces, strict=True)]


@pytest.mark.parametrize("tag", ["default_seed0", "r3_m16_p3_seed0"])
def test_golden_files(tag: str) -> None:
    for golden, traces in golden_sets(tag):
        assert sha256(traces.data.tobytes()) == golden["sha256_concat_instance_stream_incl_overwritten"]
        assert len(traces) == golden["n_instances"]
        files = {trace.name: trace.to_bytes() for trace in traces}
        times_written = Counter(trace.name for trace in traces)
        assert [
            {"name": name, "size": len(content), "sha256": sha256(content), "times_written": times_written[name]}
            for name, content in files.items()
        ] == golden["files"]
        assert len(files) == golden["n_files"]
        assert sum(map(len, files.values())) == golden["bytes"]
        assert sha256(b"".join(files.values())) == golden["sha256_concat_creation_order"]
        by_name = b"".join(files[name] for name in sorted(files))
        assert sha256(by_name) == golden["sha256_concat_sorted_by_name"]


def test_golden_files_catch_another_seed() -> None:
    golden, _ = golden_sets("default_seed0")[0]
    traces = cpu.generate(golden["n_instances"], seed=1)
    assert sha256(traces.data.tobytes()) != golden["sha256_concat_instance_stream_incl_overwritten"]


@pytest.mark.parametrize("seed", [1, 42, -7, 2**31, 2**32 - 1, 2**32, 2**63 + 5, 2**64 - 1, 10**50])
def test_released_stream_with_other_seeds(seed: int) -> None:
    assert [trace.to_bytes() for trace in cpu.generate(5, seed=seed)] == oracle.released_files(
        seed, 5, 10, 1024, 1, 255
    )


@pytest.mark.parametrize(
    ("R", "M", "least", "most"),
    [
        *[(1, 4, 0, 0), (1, 4, 1, 1), (1, 16, 0, 4), (2, 64, 1, 15), (2, 65, 16, 16), (3, 18, 2, 4), (7, 200, 3, 50)],
        *[(8, 1024, 1, 256), (15, 1024, 100, 128), (16, 1024, 1, 255), (26, 1000, 1, 250), (31, 1024, 1, 64)],
        *[(32, 512, 0, 100), (100, 2048, 1, 255), (255, 1024, 1, 255)],
    ],
)
def test_released_stream_with_other_sizes(R: int, M: int, least: int, most: int) -> None:
    traces = cpu.generate(40, seed=5, num_registers=R, memory_size=M, min_program=least, max_program=most)
    assert [trace.to_bytes() for trace in traces] == oracle.released_files(5, 40, R, M, least, most)
    traces.check()
    assert [trace.name for trace in traces] == [
        hashlib.md5("".join(trace.program).encode()).hexdigest() + ".bin" for trace in traces
    ]


def test_released_stream_in_chunks() -> None:
    whole = cpu.generate(50, seed=9)
    stream = cpu.ReleasedStream(cpu.StreamOptions(), seed=9)
    stream.skip(3)
    chunks = [stream.take(count) for count in (1, 0, 20, 26)]
    assert b"".join(chunk.data.tobytes() for chunk in chunks) == whole[3:].data[whole.offsets[3] :].tobytes()
    assert [chunk.next_start for chunk in chunks] == [4, 4, 24, 50]
    later = cpu.generate(10, seed=9, start=40)
    assert [trace.to_bytes() for trace in later] == [trace.to_bytes() for trace in whole[40:]]
    assert later.next_start == 50


def test_released_stream_grows_its_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = cpu.generate(300, seed=2)
    monkeypatch.setattr(cpu.ReleasedStream, "_likely_size", lambda self, count: self.options.max_trace_size + count)
    assert cpu.generate(300, seed=2).data.tobytes() == whole.data.tobytes()


def test_released_split_drops_test_programs_that_are_training_programs() -> None:
    sizes = {"num_registers": 3, "memory_size": 16, "max_program": 3}
    train, all_test = cpu.generate_released_split(200, 50, seed=0, drop_shared=False, **sizes)
    same_train, test = cpu.generate_released_split(200, 50, seed=0, **sizes)
    known = {trace.program_bytes for trace in train}
    assert same_train.data.tobytes() == train.data.tobytes()
    assert all_test.dropped == 0
    assert test.dropped == sum(trace.program_bytes in known for trace in all_test) > 0
    assert [trace for trace in all_test if trace.program_bytes not in known] == list(test)


def test_philox_known_answers() -> None:
    """The test vectors of Random123 (kat_vectors, philox4x32 10)."""
    ones = 0xFFFFFFFF
    assert oracle.philox((0, 0), (0, 0, 0, 0)) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert oracle.philox((ones, ones), (ones,) * 4) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    assert oracle.philox((0xA4093822, 0x299F31D0), pi) == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


@pytest.mark.parametrize("start", [0, 2**32 - 2, 2**40 + 1])
@pytest.mark.parametrize("seed", [0, 2**64 - 1])
@pytest.mark.parametrize(("R", "M", "least", "most"), [(10, 1024, 1, 255), (2, 64, 0, 16), (255, 18, 4, 4)])
@pytest.mark.parametrize("small_values", [0.0, 0.5, 1.0])
def test_philox_stream_is_the_oracle(
    start: int, seed: int, R: int, M: int, least: int, most: int, small_values: float
) -> None:
    sizes = {"num_registers": R, "memory_size": M, "min_program": least, "max_program": most}
    traces = cpu.generate(4, seed=seed, start=start, stream="philox", small_values=small_values, **sizes)
    assert [trace.to_bytes() for trace in traces] == [
        oracle.philox_instance(seed, start + i, R, M, least, most, small_values) for i in range(4)
    ]
    traces.check()


def test_a_share_of_the_programs_has_small_values() -> None:
    def is_small(traces: cpu.Traces) -> np.ndarray:
        firsts = [np.frombuffer(trace.to_bytes(), np.uint8)[M : M + C] for trace in traces]
        return np.array([max(first[1], *first[6:]) < 16 for first in firsts])

    M, C = 64, 8
    released, mixed, small = (
        is_small(cpu.generate(400, seed=4, stream="philox", small_values=share, **SMALL)) for share in (0.0, 0.5, 1.0)
    )
    assert released.mean() < 0.01
    assert 0.4 < mixed.mean() < 0.6
    assert small.all()
    with pytest.raises(ValueError, match=r"small_values: expected a share from 0 to 1, got 1\.5"):
        cpu.generate(1, stream="philox", small_values=1.5)
    with pytest.raises(ValueError, match=r'small_values: expected 0 with stream="python", got 0\.5'):
        cpu.generate(1, small_values=0.5)


def test_philox_stream_depends_on_the_index_alone() -> None:
    whole = cpu.generate(1000, seed=4, stream="philox", threads=1, **SMALL)
    for threads in (2, 3, 7):
        again = cpu.generate(1000, seed=4, stream="philox", threads=threads, **SMALL)
        assert again.data.tobytes() == whole.data.tobytes()
        assert again.offsets.tolist() == whole.offsets.tolist()
    part = cpu.generate(13, seed=4, stream="philox", start=500, **SMALL)
    assert list(part) == list(whole[500:513])
    assert part.next_start == 513
    assert list(cpu.generate(5, seed=5, stream="philox", **SMALL)) != list(whole[:5])
    assert len(cpu.generate(0, stream="philox")) == len(cpu.generate(0)) == 0


def test_philox_stream_has_the_released_distribution() -> None:
    for stream in ("python", "philox"):
        traces = cpu.generate(2000, seed=8, stream=stream)  # type: ignore[arg-type]
        states = np.concatenate([trace.states[1:-1] for trace in traces])
        opcodes = np.bincount(states[:, 2], minlength=21) / len(states)
        assert abs(opcodes[1:] - 1 / 20).max() < 0.0025
        assert opcodes[0] == 0
        three = states[(states[:, 2] >= 13) & (states[:, 2] <= 19)]
        assert abs((three[:, 4] == 0).mean() - 1 / 3) < 0.01
        assert abs((three[:, 5] > 0).mean() - 1 / 3) < 0.01
        for column in (3, 4, 5):
            used = three[three[:, column] > 0, column]
            assert abs(np.bincount(used, minlength=11)[1:] / len(used) - 0.1).max() < 0.01
        immediates = states[states[:, 2] == 11, 3]
        assert abs(immediates.mean() - 127.5) < 4
        starts = np.array([trace.states[0, 6:] for trace in traces])
        assert abs(starts.mean() - 127.5) < 4
        lengths = np.array([len(trace.states) - 1 for trace in traces])
        assert abs(lengths.mean() - 128) < 8
        assert (lengths.min(), lengths.max()) == (1, 255)


def test_splits_share_no_program_whatever_the_seed() -> None:
    tiny = {"num_registers": 2, "memory_size": 16, "max_program": 4}
    programs = {}
    for split in ("train", "eval"):
        sets = [
            cpu.generate(800, seed=seed, stream="philox", split=split, **tiny)  # type: ignore[arg-type]
            for seed in (0, 1)
        ]
        programs[split] = {trace.program_bytes for traces in sets for trace in traces}
        assert {cpu.split_of(code, num_registers=2) for code in list(programs[split])[:50]} == {split}
    assert not programs["train"] & programs["eval"]
    # Drawn alike but for the split, the two sets would share many such short programs.
    mixed = [cpu.generate(800, seed=seed, stream="philox", **tiny) for seed in (0, 1)]
    assert {trace.program_bytes for trace in mixed[0]} & {trace.program_bytes for trace in mixed[1]}


def test_a_split_is_the_stream_filtered() -> None:
    whole = cpu.generate(4000, seed=6, stream="philox", **SMALL)
    kinds = [cpu.split_of(trace.program_bytes, num_registers=2) for trace in whole]
    assert 20 < kinds.count("eval") < 120
    for split in ("train", "eval"):
        expected = [i for i, kind in enumerate(kinds) if kind == split]
        first = cpu.generate(10, seed=6, stream="philox", split=split, threads=3, **SMALL)  # type: ignore[arg-type]
        assert list(first) == [whole[i] for i in expected[:10]]
        assert first.next_start == expected[9] + 1
        then = cpu.generate(5, seed=6, stream="philox", split=split, start=first.next_start, **SMALL)  # type: ignore[arg-type]
        assert list(then) == [whole[i] for i in expected[10:15]]


def test_a_split_that_is_empty_is_refused() -> None:
    assert cpu.split_of(["HLT"]) == "train"
    with pytest.raises(ValueError, match=r"split: fewer than one of 65536 such programs belongs to it; allow longer"):
        cpu.generate(1, stream="philox", split="eval", max_program=1)


def test_old_names_of_streams_and_splits_still_work() -> None:
    for old, new in (("released", "python"), ("parallel", "philox")):
        with pytest.warns(DeprecationWarning, match=f"generate: stream: the value {old!r} is now called {new!r}"):
            traces = cpu.generate(3, stream=old, **SMALL)  # type: ignore[arg-type]
        assert list(traces) == list(cpu.generate(3, stream=new, **SMALL))  # type: ignore[arg-type]
    with pytest.warns(DeprecationWarning, match="generate: split: the value 'test' is now called 'eval'"):
        traces = cpu.generate(3, stream="philox", split="test", **SMALL)  # type: ignore[arg-type]
    assert list(traces) == list(cpu.generate(3, stream="philox", split="eval", **SMALL))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"count": -1}, ValueError, "count: expected at least 0, got -1"),
        ({"count": 1.0}, TypeError, "count: expected an int, got float"),
        ({"seed": "0"}, TypeError, "seed: expected an int, got str"),
        ({"seed": -1, "stream": "philox"}, ValueError, r"seed: expected 0…18446744073709551615, got -1"),
        ({"seed": 2**64, "stream": "philox"}, ValueError, "seed"),
        ({"start": -1}, ValueError, "-1"),
        ({"start": -1, "stream": "philox"}, ValueError, "start"),
        ({"threads": 0, "stream": "philox"}, ValueError, "threads: expected at least 1, got 0"),
        ({"stream": "fast"}, ValueError, 'stream: expected "python" or "philox", got \'fast\''),
        ({"split": "all"}, ValueError, 'split: expected "train", "eval" or None'),
        ({"split": "train"}, ValueError, "generate_released_split"),
        ({"min_program": -1}, ValueError, "min_program: expected at least 0, got -1"),
        ({"min_program": 9, "max_program": 8}, ValueError, "max_program: expected at least min_program 9, got 8"),
        ({"memory_size": 64}, ValueError, "max_program: expected at most 16, the instructions that 64 bytes"),
        ({"memory_size": 4096, "max_program": 256}, ValueError, "max_program: expected at most 255, since PC"),
        ({"num_registers": 256}, ValueError, "num_registers: expected 1…255, got 256"),
        ({"memory_size": 0}, ValueError, "memory_size"),
    ],
)
def test_refused_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        cpu.generate(**{"count": 1, **arguments})
    assert message in str(caught.value)
    assert len(cpu.generate(1)) == 1


def test_program_hashes_tell_programs_apart() -> None:
    traces = cpu.generate(3000, seed=1, num_registers=3, memory_size=16, max_program=3)
    hashes = traces.program_hashes(threads=2).tolist()
    assert len(set(hashes)) == len({trace.program_bytes for trace in traces})


@pytest.mark.gpu
def test_the_gpu_makes_the_same_bytes() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    for sizes in ({}, SMALL, {"num_registers": 255, "memory_size": 18, "max_program": 4}):
        options = cpu.StreamOptions(**sizes)
        expected = cpu.generate(1001, seed=3, start=2**33, stream="philox", **options.to_dict())
        data, offsets, in_eval = cpu.generate_on_gpu(1001, options=options, seed=3, start=2**33)
        assert data.cpu().numpy().tobytes() == expected.data.tobytes()
        assert offsets.tolist() == expected.offsets.tolist()
        kinds = [cpu.split_of(t.program_bytes, options.num_registers, options.memory_size) for t in expected]
        assert in_eval.tolist() == [kind == "eval" for kind in kinds]


def test_generate_on_gpu_refuses_other_devices() -> None:
    with pytest.raises(ValueError, match="expected a CUDA device, got cpu"):
        cpu.generate_on_gpu(1, options=cpu.StreamOptions(), device="cpu")
