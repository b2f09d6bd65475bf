"""Scores of hand-made predictions, and the tables that show them."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest

import bgpt_fast.tasks.cpu_states as cpu
from bgpt_fast.tasks.cpu_states.evaluation import ADDRESSING_MODES, operand_values

MACHINE = {"num_registers": 2, "memory_size": 64}
PROMPT_SIZE = 64 + 8


def adder() -> cpu.Trace:
    """4 scored states of 8 bytes; ACC changes twice, A once: LOADI 7 | ADD A | POP A | HLT."""
    return cpu.run(["LOADI 7", "ADD A", "POP A", "HLT"], 3, [1, 2], **MACHINE)


def changed_at(content: bytes, *offsets: int) -> bytes:
    damaged = bytearray(content)
    for offset in offsets:
        damaged[offset] ^= 1
    return bytes(damaged)


def test_a_right_prediction() -> None:
    truth = adder()
    report = cpu.evaluate([truth.to_bytes()], [truth])
    assert (report.programs, report.programs_right, report.exact_programs) == (1, 1, 1.0)
    assert (report.state_bytes, report.right_bytes, report.accuracy) == (32, 32, 1.0)
    assert (report.changed_bytes, report.copied_bytes) == (3, 9)
    assert report.copy_baseline == 1 - 3 / 32
    assert report.first_divergence == {}
    assert report.wrong.sum() == 0
    assert report.states.tolist() == [1, 1, 1, 1]
    assert set(report.by_column.values()) == {1.0}
    assert list(report.by_column) == ["PC", "ACC", "IR0", "IR1", "IR2", "IR3", "A", "B"]


def test_one_wrong_byte_of_each_kind() -> None:
    truth = adder()
    # Step 2: PC (an instruction byte), ACC (changed by LOADI) and B (copied).
    prediction = changed_at(truth.to_bytes(), PROMPT_SIZE + 8, PROMPT_SIZE + 8 + 1, PROMPT_SIZE + 8 + 7)
    report = cpu.evaluate([prediction], [truth])
    assert report.accuracy == 29 / 32
    assert report.instruction_accuracy == 19 / 20
    assert report.changed_accuracy == 2 / 3
    assert report.copied_accuracy == 8 / 9
    assert report.by_column == {
        **dict.fromkeys(["IR0", "IR1", "IR2", "IR3", "A"], 1.0),
        **dict.fromkeys(["PC", "ACC", "B"], 3 / 4),
    }
    assert report.by_instruction == {
        "LOADI": cpu.InstructionScore(count=1, accuracy=1 / 3, changed_accuracy=0.0, states_right=0.0),
        "ADD": cpu.InstructionScore(count=1, accuracy=1.0, changed_accuracy=1.0, states_right=1.0),
        "POP": cpu.InstructionScore(count=1, accuracy=1.0, changed_accuracy=1.0, states_right=1.0),
    }
    assert report.first_divergence == {2: 1}
    assert report.wrong.tolist() == [[0] * 8, [1, 1, 0, 0, 0, 0, 0, 1], [0] * 8, [0] * 8]
    assert (report.programs_right, report.missing_bytes, report.surplus_bytes) == (0, 0, 0)


def test_missing_and_surplus_bytes_are_wrong() -> None:
    truth = adder()
    content = truth.to_bytes()
    short = cpu.evaluate([content[:-11]], [truth])
    assert (short.state_bytes, short.right_bytes, short.missing_bytes) == (32, 21, 11)
    assert short.first_divergence == {3: 1}
    nothing = cpu.evaluate([content[:PROMPT_SIZE]], [truth])
    assert (nothing.accuracy, nothing.missing_bytes, nothing.first_divergence) == (0.0, 32, {1: 1})
    long = cpu.evaluate([content + content[-8:]], [truth])
    assert (long.state_bytes, long.right_bytes, long.surplus_bytes) == (40, 32, 8)
    assert long.accuracy == 32 / 40
    assert (long.programs_right, long.first_divergence) == (0, {5: 1})
    one = cpu.evaluate([content + b"x"], [truth])
    assert (one.state_bytes, one.programs_right) == (33, 0)


def test_copying_scores_the_baseline() -> None:
    truths = cpu.generate(3000, seed=2, memory_size=64, max_program=15)
    copies = []
    for trace in truths:
        states = trace.states[1:].copy()
        states[:, 1] = trace.states[:-1, 1]
        states[:, 6:] = trace.states[:-1, 6:]
        copies.append(states)
    report = cpu.evaluate_bytes(copies, [trace.states for trace in truths])
    assert report.accuracy == pytest.approx(report.copy_baseline, abs=1e-12)
    assert abs(report.copy_baseline - 0.947) < 0.002
    assert report.changed_accuracy == 0.0
    assert report.copied_accuracy == report.instruction_accuracy == 1.0
    assert len(report.by_instruction) == 20
    assert all(score.changed_accuracy == 0.0 for score in report.by_instruction.values() if score.changed_accuracy)


def noisy(truths: cpu.Traces, seed: int) -> list[np.ndarray]:
    """The states with wrong tokens, of which some are no bytes, and too few or too many of them."""
    draw = np.random.default_rng(seed)
    predicted = []
    for trace in truths:
        flat = trace.states[1:].reshape(-1).astype(np.int16)
        flat = np.where(draw.random(len(flat)) < 0.02, draw.integers(0, 257, len(flat)), flat)
        flat = np.append(flat, draw.integers(0, 257, draw.choice([0, 0, 0, 5, 20])))
        predicted.append(flat[: len(flat) - draw.choice([0, 0, 0, 1, 30])])
    return predicted


def test_every_count_agrees_with_a_plain_loop() -> None:
    truths = cpu.generate(60, seed=4, num_registers=3, memory_size=64, max_program=16)
    predicted = noisy(truths, 3)
    report = cpu.evaluate_bytes(predicted, [trace.states for trace in truths])
    right = total = exact = 0
    first: dict[int, int] = {}
    for trace, one in zip(truths, predicted, strict=True):
        flat = trace.states[1:].reshape(-1).tolist()
        both = list(zip(flat, one.tolist(), strict=False))
        hits = [a == b for a, b in both] + [False] * abs(len(flat) - len(one))
        right, total, exact = right + sum(hits), total + len(hits), exact + all(hits)
        if not all(hits):
            step = hits.index(False) // 9 + 1
            first[step] = first.get(step, 0) + 1
    assert (report.right_bytes, report.state_bytes, report.programs_right) == (right, total, exact)
    assert report.first_divergence == dict(sorted(first.items()))
    assert 0 < exact < 60
    assert report.wrong.sum() == sum(len(t.states) - 1 for t in truths) * 9 - right
    assert report.missing_bytes > 0
    assert report.surplus_bytes > 0


def test_a_token_that_is_no_byte_is_wrong() -> None:
    truth = adder()
    tokens = truth.states[1:].astype(np.int16)
    tokens[0, 0] = 256
    tokens[1, 1] += 256
    report = cpu.evaluate_bytes([tokens], [truth.states])
    assert report.right_bytes == 30


def test_the_report_is_json() -> None:
    truth = adder()
    alone = cpu.run(["HLT"], **MACHINE)
    report = cpu.evaluate([changed_at(truth.to_bytes(), PROMPT_SIZE), alone], [truth, alone])
    fields = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert fields["first_divergence"] == {"1": 1}
    assert fields["by_instruction"]["ADD"]["count"] == 1
    assert fields["wrong"][0] == [1, 0, 0, 0, 0, 0, 0, 0]
    assert fields["states"] == [2, 1, 1, 1]
    only = cpu.evaluate([alone], [alone])
    assert (only.changed_accuracy, only.copied_accuracy, only.copy_baseline) == (None, 1.0, 1.0)
    json.dumps(only.to_dict(), allow_nan=False)
    assert "97.5000%  39 of 40" in report.summary()
    assert "–" in only.summary()


def test_refused_pairs() -> None:
    truth = adder()
    other = cpu.run(["LOADI 8", "HLT"], 3, [1, 2], **MACHINE)
    with pytest.raises(ValueError, match="expected as many predictions as truths, at least 1, got 2 and 1"):
        cpu.evaluate([truth, truth], [truth])
    with pytest.raises(ValueError, match="at least 1, got 0 and 0"):
        cpu.evaluate([], [])
    with pytest.raises(ValueError, match="that begin otherwise") as caught:
        cpu.evaluate([truth, other], [truth, truth])
    assert caught.value.__notes__ == ["predicted[1]"]
    with pytest.raises(ValueError, match="first state, 72 bytes"):
        cpu.evaluate([truth.to_bytes()[: PROMPT_SIZE - 1]], [truth])
    with pytest.raises(TypeError, match="expected a Trace, a PredictedTrace or bytes, got str"):
        cpu.evaluate(["x"], [truth])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="of one machine"):
        cpu.evaluate([truth, cpu.run(["HLT"])], [truth, cpu.run(["HLT"])])


def test_format_trace() -> None:
    assert cpu.format_trace(adder()).split("\n") == [
        "step PC  ACC  IR       A  B",
        "   0  0    3  (start)  1  2",
        "   1  1    3  LOADI 7  1  2",
        "   2  2    7* ADD A    1  2",
        "   3  3    8* POP A    1  2",
        "   4  4    8  HLT      8* 2",
    ]


def test_format_difference() -> None:
    truth = adder()
    prediction = bytearray(changed_at(truth.to_bytes(), PROMPT_SIZE + 8 + 1, PROMPT_SIZE + 16 + 7))
    prediction[PROMPT_SIZE + 16 + 2] = 200
    assert cpu.format_difference(bytes(prediction[:-9]), truth).split("\n") == [
        "     truth                     predicted",
        "step PC  ACC  IR       A  B  │ PC  ACC  IR       A  B",
        "   0  0    3  (start)  1  2  │  0    3  (start)  1  2",
        "   1  1    3  LOADI 7  1  2  │  1    3  LOADI 7  1  2",
        "   2  2    7  ADD A    1  2  ≠  2    6! ADD A    1  2",
        "   3  3    8  POP A    1  2  ≠   —    — —         —  —",
        "   4  4    8  HLT      8  2  ≠   —    — —         —  —",
        "11 of 32 predicted bytes are wrong: the first difference is at step 2; 7 bytes at the end are no full state",
    ]
    assert cpu.format_difference(bytes(prediction), truth).split("\n")[5:] == [
        "   3  3    8  POP A    1  2  ≠  3    8  <200 1 0 0>! 1  3!",
        "   4  4    8  HLT      8  2  │  4    8  HLT          8  2",
        "3 of 32 predicted bytes are wrong: the first difference is at step 2",
    ]
    same = cpu.format_difference(truth, truth)
    assert "!" not in same
    assert "≠" not in same
    assert same.endswith("0 of 32 predicted bytes are wrong: every state is right")
    long = cpu.format_difference(truth.to_bytes() + bytes(8), truth)
    assert long.split("\n")[-2].startswith("   5   —    — —")
    assert long.endswith("8 of 40 predicted bytes are wrong: the first difference is at step 5")
    with pytest.raises(ValueError, match="begin otherwise"):
        cpu.format_difference(b"", truth)


def test_format_trace_of_a_prediction_shows_garbage() -> None:
    truth = adder()
    content = truth.to_bytes()[:PROMPT_SIZE] + bytes([9, 9, 77, 1, 2, 3, 9, 9]) + b"abc"
    predicted = cpu.PredictedTrace(content, False, 2, 64)
    assert predicted.states.shape == (2, 8)
    assert predicted.memory == truth.memory
    assert cpu.format_trace(predicted).split("\n")[-1] == "   1  9    9* <77 1 2 3>  9* 9*"


def test_counts_in_chunks_equal_those_of_all_programs() -> None:
    truths = cpu.generate(50, seed=6, num_registers=3, memory_size=64, max_program=16)
    predicted, states = noisy(truths, 1), [trace.states for trace in truths]
    counts = cpu.StateCounts(9)
    with pytest.raises(ValueError, match="expected at least one program"):
        counts.report()
    for start, stop in ((0, 1), (1, 30), (30, 50)):
        counts.add(predicted[start:stop], states[start:stop])
    whole = cpu.evaluate_bytes(predicted, states).to_dict()
    assert counts.report().to_dict() == whole
    merged = cpu.StateCounts(9)
    for start, stop in ((30, 50), (0, 1), (1, 30)):
        part = cpu.StateCounts(9)
        part.add(predicted[start:stop], states[start:stop])
        merged.merge(pickle.loads(pickle.dumps(part)))
        merged.merge(cpu.StateCounts(9))
    assert merged.report().to_dict() == whole
    with pytest.raises(ValueError, match="expected states of 9 bytes, got 8"):
        merged.merge(cpu.StateCounts(8))
    counts.add(predicted[:1], states[:1])
    assert counts.report().to_dict() != whole
    with pytest.raises(ValueError, match="of one machine"):
        counts.add([np.zeros((1, 8))], [np.zeros((2, 8), np.uint8)])


def add(counts: list[int], right: bool, changed: bool) -> None:
    for offset, one in enumerate((1, right, changed, right and changed)):
        counts[offset] += one


def test_addressing_modes_and_registers_agree_with_a_plain_loop() -> None:
    truths = cpu.generate(80, seed=7, num_registers=3, memory_size=64, max_program=16)
    predicted = noisy(truths, 2)
    report = cpu.evaluate_bytes(predicted, [trace.states for trace in truths])
    modes: dict[str, list[int]] = {}
    registers: dict[str, list[int]] = {name: [0, 0, 0, 0] for name in ("ACC", "A", "B", "C")}
    for trace, one in zip(truths, predicted, strict=True):
        rows = np.full(trace.states[1:].size, -1)
        rows[: min(len(one), len(rows))] = one[: len(rows)]
        for step, said in enumerate(rows.reshape(-1, 9), 1):
            truth, before = trace.states[step], trace.states[step - 1]
            for name, column in (("ACC", 1), ("A", 6), ("B", 7), ("C", 8)):
                right, changed = bool(said[column] == truth[column]), bool(truth[column] != before[column])
                add(registers[name], right, changed)
                if step == 1:
                    continue
                words = trace.program[step - 2].split()
                mode = ADDRESSING_MODES[1 if words[0] == "LOADI" else (0, 2, 3, 4)[len(words) - 1]]
                add(modes.setdefault(mode, [0, 0, 0, 0]), right, changed)
    assert set(modes) == set(ADDRESSING_MODES)
    assert set(report.by_addressing_mode) == set(ADDRESSING_MODES)
    for name, (total, right, changed, changed_right) in modes.items():
        score = report.by_addressing_mode[name]
        assert (score.count, score.accuracy) == (total // 4, right / total)
        assert score.changed_accuracy == changed_right / changed
    for name, (total, right, changed, changed_right) in registers.items():
        assert report.by_register[name] == cpu.RegisterScore(total, right / total, changed, changed_right / changed)


def test_operand_values_are_those_of_the_machine() -> None:
    state = np.array([[1, 50, 0, 0, 0, 0, *range(100, 110)]] * 4, np.uint8)
    state[0, 2:6] = [13, 2, 0, 0]  # ADD B: ACC + B
    state[1, 2:6] = [14, 3, 4, 0]  # SUB C D
    state[2, 2:6] = [16, 1, 2, 3]  # DIV A B C: A / B → C
    state[3, 2:6] = [11, 200, 0, 0]  # LOADI 200
    left, right = operand_values(state)
    assert left.tolist() == [50, 102, 100, 50]
    assert right.tolist() == [101, 103, 101, 50]


def test_small_operands_have_scores_of_their_own() -> None:
    """7 · 9 predicted as 121, 70 + 90 predicted rightly, and PUSH, which takes no two values."""
    program = ["LOADI 7", "POP A", "LOADI 9", "MUL A", "LOADI 70", "POP A", "LOADI 90", "ADD A", "PUSH A", "HLT"]
    trace = cpu.run(program, num_registers=2, memory_size=64)
    states = trace.states.copy()
    assert (states[5, 1], states[9, 1]) == (63, 160)
    states[5, 1] = 121
    report = cpu.evaluate_bytes([states[1:].astype(np.int16)], [trace.states])
    sizes = report.by_operand_size
    assert set(sizes) == {"0…15", "16…255"}
    assert (sizes["0…15"].count, sizes["0…15"].changed_accuracy, sizes["0…15"].states_right) == (1, 0.0, 0.0)
    assert (sizes["16…255"].count, sizes["16…255"].changed_accuracy, sizes["16…255"].states_right) == (1, 1.0, 1.0)
    assert report.to_dict()["by_operand_size"]["0…15"]["accuracy"] == 2 / 3
