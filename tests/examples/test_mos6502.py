"""6502 traces say what the processor does, and go through the same packing, training, simulation and scoring."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support.paths import EXAMPLES

pytest.importorskip("py65", reason="needs the extra `realcpu`")

from bgpt_fast import BGPT, BGPTConfig
from bgpt_fast.tasks.cpu_states.packing import pack_traces
from bgpt_fast.training import TrainConfig, Trainer

sys.path.append(str(EXAMPLES / "mos6502"))
from mos6502_scores import evaluate, score
from mos6502_source import Mos6502Source
from mos6502_traces import COLUMNS, VARIABLES, ProgramOptions, _processor, generate, random_memory, trace

OPTIONS = ProgramOptions(memory_size=24, min_program=1, max_program=4)
CONFIG = BGPTConfig(patch_size=16, patch_length=10, hidden_size=16, patch_num_layers=1, byte_num_layers=1, num_heads=2)
DATA = bytes(range(100, 100 + VARIABLES))


def states(code: bytes, **registers: int) -> list[dict[str, int]]:
    content = trace((DATA + code).ljust(48, b"\0"), **registers)
    assert content[:16] == DATA
    rows = np.frombuffer(content[48:], np.uint8).reshape(-1, len(COLUMNS)).tolist()
    return [dict(zip(COLUMNS, row, strict=True)) for row in rows]


def test_a_program_by_hand() -> None:
    # CLC; LDA #$FF; ADC $03; STA $05; PHA; BEQ +1; INX; BRK
    rows = states(bytes([0x18, 0xA9, 0xFF, 0x65, 0x03, 0x85, 0x05, 0x48, 0xF0, 0x01, 0xE8, 0x00]), x=7, y=9)
    assert rows[0] == {**dict.fromkeys(COLUMNS, 0), "X": 7, "Y": 9, "SP": 255, "P": 0x30, "PCL": 16}
    assert [row["opcode"] for row in rows] == [0, 0x18, 0xA9, 0x65, 0x85, 0x48, 0xF0, 0xE8, 0x00]
    adc, sta, pha, beq, inx, end = rows[3:]
    assert [adc[name] for name in ("A", "PCL", "operand", "address", "page", "value")] == [255, 19, 3, 3, 0, 103]
    # 255 + 103 = 102 and a carry; bits of P: N V - B D I Z C.
    assert [sta["A"], sta["P"], sta["cycles"], sta["value"]] == [102, 0x31, 3, 105]
    assert [pha[name] for name in ("written_at", "written", "address", "page", "SP")] == [5, 102, 255, 1, 255]
    assert [beq[name] for name in ("written_at", "written", "SP", "cycles")] == [255, 102, 254, 3]
    assert [inx["PCL"], inx["cycles"]] == [26, 2]
    assert [end["X"], end["PCL"], end["opcode"], end["written"]] == [8, 27, 0, 0]


def test_a_branch_that_is_taken_skips_and_costs_a_cycle() -> None:
    rows = states(bytes([0xA9, 0x00, 0xF0, 0x01, 0xE8, 0x00]), a=3, x=7)
    assert [row["opcode"] for row in rows] == [0, 0xA9, 0xF0, 0x00]
    assert [rows[-1]["X"], rows[-1]["cycles"]] == [7, 3]


def test_wrong_programs_and_options_are_refused() -> None:
    with pytest.raises(ValueError, match=r"address 16: expected an instruction of .*, got \$02"):
        trace(DATA + bytes([0x02, 0]))
    with pytest.raises(ValueError, match="expected BRK within 50 instructions"):
        trace(DATA + bytes([0x18, 0x90, 0xFD, 0]), max_steps=50)
    for fields, message in (
        ({"memory_size": 300}, "memory_size: expected at most 256"),
        ({"memory_size": 20, "max_program": 3}, "max_program: expected at most 2"),
        ({"min_program": 5, "max_program": 4}, "max_program: expected at least 5"),
    ):
        with pytest.raises(ValueError, match=message):
            ProgramOptions(**fields)
    with pytest.raises(ValueError, match='split: expected "train" or "eval"'):
        generate(1, split="test")


def test_without_py65_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "py65.devices.mpu6502", None)
    with pytest.raises(ImportError, match=r"pip install '\.\[realcpu\]'"):
        _processor()


def test_random_programs_end_and_the_splits_share_none() -> None:
    stream = random.Random(0)
    for _ in range(200):
        content = trace(random_memory(stream, OPTIONS))
        assert 0 <= (len(content) - OPTIONS.memory_size) // 16 - 1 <= OPTIONS.max_program
        assert (len(content) - OPTIONS.memory_size) % 16 == 0
        assert len(content) <= OPTIONS.max_trace_size
    train = generate(150, seed=3, options=OPTIONS)
    test = generate(5, seed=3, split="eval", options=OPTIONS)
    assert train.next_start is not None
    assert not {one.memory for one in train} & {one.memory for one in test}
    first = generate(100, seed=3, options=OPTIONS)
    rest = generate(50, seed=3, start=first.next_start or 0, options=OPTIONS)
    assert [one.to_bytes() for one in [*first, *rest]] == [one.to_bytes() for one in train]
    assert len(generate(0, options=OPTIONS)) == 0


def test_the_source_resumes_at_its_position() -> None:
    source = Mos6502Source(CONFIG, documents_per_batch=3, seed=1, options=OPTIONS)
    source.next_batch()
    state = source.state_dict()
    second = source.next_batch()
    assert not second.patches.equal(source.next_batch().patches)
    again = Mos6502Source(CONFIG, documents_per_batch=3, seed=1, options=OPTIONS)
    again.load_state_dict(state)
    assert again.next_batch().patches.equal(second.patches)
    with pytest.raises(ValueError, match="expected a position of"):
        again.load_state_dict({**state, "seed": 2})
    with pytest.raises(ValueError, match="the context is 9"):
        Mos6502Source(BGPTConfig(patch_length=9), options=ProgramOptions())


def test_scores_of_known_errors() -> None:
    traces = generate(6, seed=2, options=OPTIONS)
    truth = [one.states[1:].astype(np.int16) for one in traces]
    whole = score(truth, traces)
    assert whole.accuracy == whole.exact_programs == whole.changed_accuracy == 1.0
    assert set(whole.by_column) == set(COLUMNS)
    copied = score([one.states[:-1].astype(np.int16) for one in traces], traces)
    assert copied.accuracy == pytest.approx(copied.copy_baseline)
    assert copied.changed_accuracy == 0.0
    total = whole.state_bytes
    short = [truth[0].reshape(-1)[:-3], np.append(truth[1], [1, 2, 3, 4]), *truth[2:]]
    rows = score(short, traces)
    assert rows.state_bytes == total + 4
    assert rows.accuracy == pytest.approx((total - 3) / (total + 4))
    assert rows.exact_programs == pytest.approx(4 / 6)
    wrong = [one.copy() for one in truth]
    wrong[0][0, 1] = 256
    assert score(wrong, traces).by_column["X"] == pytest.approx(1 - 16 / total)
    with pytest.raises(ValueError, match="a prediction for each program"):
        score(truth[:-1], traces)


def test_a_model_trains_and_is_evaluated(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = BGPT(CONFIG)
    source = Mos6502Source(CONFIG, documents_per_batch=2, options=OPTIONS)
    config = TrainConfig(steps=2, device="cpu", tensorboard=False, prefetch=0)
    Trainer(model, source, config, tmp_path / "run", show_progress=False).train()
    held_out = generate(3, split="eval", options=OPTIONS)
    batch = pack_traces(held_out, CONFIG)
    assert batch.to_bytes() == [("bin", one.to_bytes()) for one in held_out]
    rows = evaluate(model, held_out)
    assert rows["teacher_forced"].programs == rows["free_running"].programs == 3
    assert 0 <= rows["teacher_forced"].to_dict()["accuracy"] <= 1
