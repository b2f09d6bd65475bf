"""The machine, the assembler and the disassembler against the Python oracle; every refusal with its message."""

from __future__ import annotations

import random
import re
from collections import Counter

import numpy as np
import pytest
from oracles import cpu_states as oracle
from support.paths import ROOT

import bgpt_fast.tasks.cpu_states as cpu
from bgpt_fast.tasks.cpu_states.machine import OPERATIONS

EDGES = [0, 1, 2, 127, 128, 254, 255]


def random_values(draw: random.Random, count: int) -> list[int]:
    return [draw.choice(EDGES) if draw.random() < 0.5 else draw.randrange(256) for _ in range(count)]


MILLION = [pytest.param(250_000, seed, marks=pytest.mark.slow) for seed in range(1, 5)]
"""RELIABILITY R12, in parts that end within the time limit of a test."""


@pytest.mark.parametrize(("count", "seed"), [(10_000, 0), *MILLION])
def test_random_programs_and_every_operand_form(count: int, seed: int) -> None:
    draw = random.Random(seed)
    forms: Counter[tuple[str, int]] = Counter()
    for _ in range(count):
        R = draw.choice([1, 2, 3, 10, 26])
        program = oracle.random_program(draw, R, draw.randint(0, 12))
        forms.update((name, len(operands)) for name, operands in program)
        acc, *registers = random_values(draw, R + 1)
        M = 4 * len(program) + draw.choice([0, 0, 1, 3, 4, 20])
        trace = cpu.run(oracle.lines(program), acc, registers, R, M)
        assert trace.to_bytes() == oracle.trace(program, acc, registers, M), program
        assert trace.program == oracle.lines(program), "disassembled"
    assert set(forms) == {(name, count) for name, counts in oracle.COUNTS.items() for count in counts}


def test_the_comparison_sees_a_wrong_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(oracle.BINARY, "DIV", lambda x, y: x // y if y else 0)
    with pytest.raises(AssertionError):
        test_random_programs_and_every_operand_form(10_000, 0)


@pytest.mark.parametrize("R", [1, 2, 26, 27, 63, 64, 255])
def test_register_counts(R: int) -> None:
    draw = random.Random(R)
    program = oracle.random_program(draw, R, 100)
    acc, *registers = random_values(draw, R + 1)
    trace = cpu.run(oracle.lines(program), acc, registers, R)
    assert trace.to_bytes() == oracle.trace(program, acc, registers, 1024)
    assert trace.program == oracle.lines(program)
    assert trace.states.shape == (101, 6 + R)


def test_pc_stops_at_the_end_of_memory() -> None:
    states = cpu.run(["INC"] * 3 + ["HLT"], num_registers=1, memory_size=16).states
    assert states[:, 0].tolist() == [0, 1, 2, 3, 3]
    full = cpu.run(["INC"] * 255 + ["HLT"], num_registers=1)
    assert full.states[:, 0].tolist() == [*range(256), 255]


def test_special_cases_of_the_released_machine() -> None:
    trace = cpu.run(["LOADI 0", "HLT"], acc=9, registers=[1, 2], num_registers=2, memory_size=64)
    assert trace.states.tolist() == [[0, 9, 0, 0, 0, 0, 1, 2], [1, 9, 11, 0, 0, 0, 1, 2], [2, 0, 0, 0, 0, 0, 1, 2]]
    assert len(trace.to_bytes()) == 64 + 3 * 8


def test_assemble_and_disassemble_round_trip() -> None:
    draw = random.Random(1)
    for _ in range(500):
        R = draw.choice([1, 10, 26, 255])
        program = oracle.random_program(draw, R, draw.randint(1, 40))
        code = cpu.assemble(oracle.lines(program), num_registers=R)
        assert code == oracle.encode(program)
        assert cpu.disassemble(code, num_registers=R) == oracle.lines(program)
        assert cpu.disassemble(code + bytes(20), num_registers=R) == oracle.lines(program)


def test_white_space_and_lines_behind_hlt() -> None:
    code = cpu.assemble(["  ADD \t A  B ", "HLT\n", "LOADI 007"])
    assert code == bytes([13, 1, 2, 0, 0, 0, 0, 0, 11, 7, 0, 0])
    assert cpu.disassemble(code) == ["ADD A B", "HLT"]
    trace = cpu.run(code)
    assert trace.memory == code.ljust(1024, b"\0")
    assert len(trace.states) == 3
    assert trace.program_bytes == code[:8]


def test_comments_commas_and_lower_case() -> None:
    text = """
; 7 + 9
LOADI 7   # comment; of // all kinds
pop a
\t# only a comment
Add A,b , A // and A
sub a\t,\tB;none
mov B,A#
hlt
"""
    plain = ["LOADI 7", "POP A", "ADD A B A", "SUB A B", "MOV B A", "HLT"]
    assert cpu.disassemble(cpu.assemble(text.split("\n"))) == plain
    assert cpu.assemble(["\ufeffHLT"]) == bytes(4), "a byte-order mark"
    # Register 33 is named "a", and takes the name's case; a machine without it has A instead.
    assert [cpu.assemble(["INC a", "HLT"], num_registers=R)[1] for R in (1, 32, 33, 255)] == [1, 1, 33, 33]
    assert cpu.assemble(["INC A", "HLT"], num_registers=33)[1] == 1


def test_the_reference_has_every_instruction() -> None:
    text = (ROOT / "docs/assembly.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \|", text, re.MULTILINE)
    assert rows == [(operation.name, str(operation.opcode)) for operation in OPERATIONS]
    [example] = re.findall(r"```asm\n(.*?)```", text, re.DOTALL)
    trace = cpu.run(example.split("\n"), num_registers=2, memory_size=64)
    assert trace.states[-1].tolist()[1:2] + trace.states[-1].tolist()[6:] == [32, 7, 32]


def test_run_accepts_lines_and_machine_code() -> None:
    lines = ["LOADI 200", "ADD A", "POP B", "HLT"]
    from_lines = cpu.run(lines, 1, [100] * 10)
    assert from_lines == cpu.run(cpu.assemble(lines), np.uint8(1), np.full(10, 100, np.uint8).tolist())
    assert from_lines == cpu.run(from_lines.memory, 1, [100] * 10)
    assert from_lines != cpu.run(lines, 2, [100] * 10)
    assert hash(from_lines) == hash(cpu.run(lines, 1, [100] * 10))


@pytest.mark.parametrize(
    ("lines", "line", "message"),
    [
        (["INC", "JMP A", "HLT"], 2, "unknown mnemonic 'JMP'; known are HLT, CLR"),
        (["; a comment", "", "Jmp A", "HLT"], 3, "unknown mnemonic 'Jmp'"),
        (["", "INC", "// no more", "DEC"], None, "no HLT among 2 instructions"),
        (["#", "ADD A,,B", "HLT"], 2, "expected an operand before and after each comma, got 'ADD A,,B'"),
        (["ADD A,", "HLT"], 1, "expected an operand before and after each comma"),
        (["ADD ,A", "HLT"], 1, "expected an operand before and after each comma"),
        ([", A", "HLT"], 1, "unknown mnemonic ''"),
        (["\u017fub A", "HLT"], 1, "unknown mnemonic '\u017fub'"),
        (["INC \u0131", "HLT"], 1, "got '\u0131'"),
        (["HLT A"], 1, "HLT takes no operand, got 1"),
        (["CLR A B", "HLT"], 1, "CLR takes 0 or 1 operand, got 2"),
        (["PUSH", "HLT"], 1, "PUSH takes 1 operand, got 0"),
        (["MOV A", "HLT"], 1, "MOV takes 2 operands, got 1"),
        (["ADD", "HLT"], 1, "ADD takes 1 or 2 or 3 operands, got 0"),
        (["ADD A B C D", "HLT"], 1, "got 4"),
        (["INC K", "HLT"], 1, "expected a register A…J of this machine's 10, got 'K'"),
        (["INC @", "HLT"], 1, "got '@'"),
        (["INC k", "HLT"], 1, "got 'k'"),
        (["INC AB", "HLT"], 1, "got 'AB'"),
        (["INC 1", "HLT"], 1, "got '1'"),
        (["INC", "LOADI 256", "HLT"], 2, "LOADI takes an immediate in 0…255, got '256'"),
        (["LOADI -1", "HLT"], 1, "got '-1'"),
        (["LOADI A", "HLT"], 1, "got 'A'"),
        (["LOADI ٣", "HLT"], 1, "immediate in 0…255"),
        (["LOADI", "HLT"], 1, "LOADI takes 1 operand, got 0"),
        (["INC", "DEC"], None, "no HLT among 2 instructions"),
        ([], None, "no HLT among 0 instructions"),
        (["INC"] * 256 + ["HLT"], 257, "a memory of 1024 bytes holds 256 instructions"),
        (["", *["INC ; +1", "#"] * 256, "HLT"], 514, "a memory of 1024 bytes holds 256 instructions"),
    ],
)
def test_refused_assembly(lines: list[str], line: int | None, message: str) -> None:
    for call in (cpu.assemble, cpu.run):
        with pytest.raises(cpu.ProgramError) as caught:
            call(lines)
        assert caught.value.line == line
        assert message in str(caught.value)
        assert (f"line {line}: " in str(caught.value)) == (line is not None)
    assert cpu.run(["HLT"]).states.shape == (2, 16)


@pytest.mark.parametrize(
    ("code", "line", "message"),
    [
        ([21, 0, 0, 0], 1, "expected an opcode in 0…20, got 21 0 0 0"),
        ([255, 1, 2, 3], 1, "expected an opcode in 0…20"),
        ([2, 0, 0, 0, 2, 11, 0, 0], 2, "INC: register out of range, expected 1…10, got 2 11 0 0"),
        ([13, 1, 2, 11], 1, "ADD: register out of range"),
        ([13, 0, 0, 0], 1, "ADD: register 0 where one is needed, expected 1…10, got 13 0 0 0"),
        ([9, 0, 0, 0], 1, "PUSH: register 0 where one is needed"),
        ([20, 1, 0, 0], 1, "MOV: register 0 where one is needed"),
        ([20, 0, 1, 0], 1, "MOV: register 0 where one is needed"),
        ([12, 0, 1, 0], 1, "SWAP: register 0 where one is needed"),
        ([13, 1, 0, 3], 1, "ADD: register 0 where one is needed"),
        ([2, 1, 1, 0], 1, "INC takes 0 or 1 operand, got 2 1 1 0"),
        ([11, 1, 1, 0], 1, "LOADI takes 1 operand, got 11 1 1 0"),
        ([0, 1, 0, 0], 1, "HLT takes no operand, got 0 1 0 0"),
        ([12, 1, 1, 1], 1, "SWAP takes 1 or 2 operands"),
        ([2, 0, 0, 0], None, "no HLT among 1 instructions"),
        ([2, 0, 0, 0, 0], None, "no HLT among 1 instructions"),
    ],
)
def test_refused_machine_code(code: list[int], line: int | None, message: str) -> None:
    tail = [] if line is None else [0, 0, 0, 0]
    for call in (cpu.disassemble, cpu.run):
        with pytest.raises(cpu.ProgramError) as caught:
            call(bytes(code + tail))
        assert caught.value.line == line
        assert message in str(caught.value)
    with pytest.raises(cpu.ProgramError):
        cpu.Trace.from_bytes(bytes(code + tail + [1] * 32), 10, len(code + tail))


def test_programs_that_do_not_fit() -> None:
    with pytest.raises(cpu.ProgramError, match=r"line 5: a memory of 16 bytes holds 4 instructions, got 20 bytes"):
        cpu.run(bytes(20), memory_size=16)
    long = ["INC"] * 256 + ["HLT"]
    with pytest.raises(cpu.ProgramError, match=r"line 256: PC is one byte of a state and cannot pass 255"):
        cpu.run(long, memory_size=2048)
    assert len(cpu.run(long[2:], memory_size=2048).states) == 256


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"acc": 256}, ValueError, r"run: acc: expected 0…255, got 256"),
        ({"acc": 1.5}, TypeError, "float"),
        ({"registers": [0] * 9}, ValueError, r"registers: expected 10 values, one a register, got 9"),
        ({"registers": [0] * 9 + [-1]}, ValueError, r"register J: expected 0…255, got -1"),
        ({"num_registers": 0}, ValueError, r"num_registers: expected 1…255, got 0"),
        ({"num_registers": 256}, ValueError, r"num_registers"),
        ({"num_registers": True}, TypeError, r"num_registers: expected an int, got bool"),
        ({"memory_size": 3}, ValueError, r"memory_size: expected 4…"),
    ],
)
def test_refused_machines(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        cpu.run(["HLT"], **arguments)  # type: ignore[arg-type]


def test_refused_types() -> None:
    with pytest.raises(TypeError, match=r"expected a sequence of lines, got str; use \.splitlines"):
        cpu.assemble("HLT")
    with pytest.raises(TypeError, match=r"lines\[1\]: expected a str, got int"):
        cpu.assemble(["INC", 3])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="expected bytes, got list"):
        cpu.disassemble([0, 0, 0, 0])  # type: ignore[arg-type]


def test_from_bytes_accepts_traces_of_the_machine_alone() -> None:
    truth = cpu.run(["LOADI 9", "ADD B", "POP A", "HLT"], 3, [1, 2, 3], 3, 64)
    content = truth.to_bytes()
    assert cpu.Trace.from_bytes(content, 3, 64) == truth
    for at in range(64, len(content)):
        damaged = bytearray(content)
        damaged[at] ^= 1
        is_start_value = at in (65, 70, 71, 72)
        with pytest.raises(cpu.TraceError, match=r"step 1: expected" if is_start_value else "expected"):
            cpu.Trace.from_bytes(bytes(damaged), 3, 64)
    with pytest.raises(cpu.TraceError, match=r"step 3: expected ACC 11, got 10"):
        cpu.Trace.from_bytes(content[: 64 + 28] + b"\x0a" + content[64 + 29 :], 3, 64)
    for size in (0, 63, 64, 64 + 9, len(content) - 1):
        with pytest.raises(cpu.TraceError, match=r"expected"):
            cpu.Trace.from_bytes(content[:size], 3, 64)
    with pytest.raises(cpu.TraceError, match=r"bytes for a program of 4 instructions"):
        cpu.Trace.from_bytes(content + b"\0", 3, 64)
    with pytest.raises(ValueError):
        cpu.Trace.from_bytes(content, 4, 64)


def test_traces_are_a_sequence_and_read_only() -> None:
    traces = cpu.generate(7, seed=3, num_registers=2, memory_size=64, max_program=16)
    assert len(traces) == 7
    assert [trace.name for trace in traces[2:5]] == [traces[i].name for i in (2, 3, 4)]
    assert [trace.name for trace in traces[::-3]] == [traces[i].name for i in (6, 3, 0)]
    assert traces[-1] == traces[6]
    assert len(traces[5:2]) == 0
    assert traces[1] in traces
    for index in (7, -8):
        with pytest.raises(IndexError):
            traces[index]
    with pytest.raises(ValueError, match="read-only"):
        traces[0].states[0, 0] = 1
    assert cpu.Traces.from_list(list(traces)).data.tobytes() == traces.data.tobytes()
    assert cpu.Traces.from_bytes([t.to_bytes() for t in traces], 2, 64).data.tobytes() == traces.data.tobytes()
    with pytest.raises(cpu.TraceError) as caught:
        cpu.Traces.from_bytes([traces[0].to_bytes(), traces[1].to_bytes()[:-1]], 2, 64)
    assert caught.value.__notes__ == ["trace 1 of 2"]
    with pytest.raises(ValueError, match="one machine"):
        cpu.Traces.from_list([traces[0], cpu.run(["HLT"])])
    with pytest.raises(ValueError, match="offsets"):
        cpu.Traces(np.zeros(4, np.uint8), np.array([0, 5]), 1, 4)
