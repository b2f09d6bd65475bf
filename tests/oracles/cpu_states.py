"""The toy machine and its generators in the simplest possible Python: the reference that the C++ is tested against."""

from __future__ import annotations

import random

_TEXT = "HLT CLR INC DEC SHL SHR ROL ROR NOT PUSH POP LOADI SWAP ADD SUB MUL DIV AND OR XOR MOV"
NAMES = _TEXT.split()
COUNTS = dict.fromkeys(NAMES[1:9], (0, 1))
COUNTS |= {"HLT": (0,), "PUSH": (1,), "POP": (1,), "LOADI": (1,), "SWAP": (1, 2), "MOV": (2,)}
COUNTS |= dict.fromkeys(NAMES[13:20], (1, 2, 3))

UNARY = {
    "CLR": lambda x: 0,
    "INC": lambda x: min(x + 1, 255),
    "DEC": lambda x: max(x - 1, 0),
    "SHL": lambda x: x * 2 % 256,
    "SHR": lambda x: x // 2,
    "ROL": lambda x: x * 2 % 256 + x // 128,
    "ROR": lambda x: x // 2 + x % 2 * 128,
    "NOT": lambda x: 255 - x,
}
BINARY = {
    "ADD": lambda x, y: min(x + y, 255),
    "SUB": lambda x, y: max(x - y, 0),
    "MUL": lambda x, y: min(x * y, 255),
    "DIV": lambda x, y: x // y if y else 255,
    "AND": lambda x, y: x & y,
    "OR": lambda x, y: x | y,
    "XOR": lambda x, y: x ^ y,
}

Program = list[tuple[str, list[int]]]
"""Mnemonics with their operands: registers counted from 1, or an immediate."""


def lines(program: Program) -> list[str]:
    return [" ".join([name, *(str(x) if name == "LOADI" else chr(64 + x) for x in xs)]) for name, xs in program]


def encode(program: Program) -> bytes:
    return b"".join(bytes([NAMES.index(name), *xs, 0, 0, 0])[:4] for name, xs in program)


def trace(program: Program, acc: int, registers: list[int], memory_size: int) -> bytes:
    """The content of the trace file in the released format."""
    code = encode(program)
    out = code + bytes(memory_size - len(code)) + bytes([0, acc, 0, 0, 0, 0, *registers])
    values = dict(enumerate(registers, 1))
    for k, (name, xs) in enumerate(program):
        pc = min(k + 1, memory_size // 4 - 1)
        out += bytes([pc, acc]) + code[4 * k : 4 * k + 4] + bytes(values.values())
        if name == "HLT":
            break
        if name in UNARY and xs:
            values[xs[0]] = UNARY[name](values[xs[0]])
        elif name in UNARY:
            acc = UNARY[name](acc)
        elif name in BINARY and len(xs) == 1:
            acc = BINARY[name](acc, values[xs[0]])
        elif name in BINARY:
            values[xs[-1] if len(xs) == 3 else xs[0]] = BINARY[name](values[xs[0]], values[xs[1]])
        elif name == "LOADI":
            acc = xs[0]
        elif name == "PUSH":
            acc = values[xs[0]]
        elif name == "POP":
            values[xs[0]] = acc
        elif name == "MOV":
            values[xs[0]] = values[xs[1]]
        elif len(xs) == 1:
            acc, values[xs[0]] = values[xs[0]], acc
        else:
            values[xs[0]], values[xs[1]] = values[xs[1]], values[xs[0]]
    return out


def random_program(draw: random.Random, num_registers: int, length: int) -> Program:
    """A random program, with random numbers drawn in the order of the released code."""
    program: Program = []
    for _ in range(length - 1):
        name = draw.choice(NAMES[1:])
        if name == "LOADI":
            program.append((name, [draw.randint(0, 255)]))
        else:
            count = draw.choice(COUNTS[name])
            program.append((name, [draw.choice(range(1, num_registers + 1)) for _ in range(count)]))
    return [*program, ("HLT", [])]


def released_files(seed: int, count: int, num_registers: int, memory_size: int, least: int, most: int) -> list[bytes]:
    """The first `count` files of the released generator."""
    draw = random.Random(seed)
    result = []
    for _ in range(count):
        acc, *registers = [draw.randint(0, 255) for _ in range(num_registers + 1)]
        program = random_program(draw, num_registers, draw.randint(least, most))
        result.append(trace(program, acc, registers, memory_size))
    return result


def philox(key: tuple[int, int], counter: tuple[int, int, int, int]) -> list[int]:
    """Philox4x32-10."""
    x, k = list(counter), list(key)
    for _ in range(10):
        p, q = 0xD2511F53 * x[0], 0xCD9E8D57 * x[2]
        x = [q >> 32 ^ x[1] ^ k[0], q & 0xFFFFFFFF, p >> 32 ^ x[3] ^ k[1], p & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return x


def philox_instance(
    seed: int, index: int, num_registers: int, memory_size: int, least: int, most: int, small_values: float = 0.0
) -> bytes:
    """One instance of the Philox stream."""

    def words(block: int) -> list[int]:
        return philox((seed & 0xFFFFFFFF, seed >> 32), (block, index & 0xFFFFFFFF, index >> 32, 0))

    def digits(word: int, *sizes: int) -> list[int]:
        result = []
        for size in sizes:
            result.append(word * size >> 32)
            word = word * size & 0xFFFFFFFF
        return result

    mask = 15 if words(0)[1] < int(small_values * 2**32) else 255
    length = max(1, least + digits(words(0)[0], most - least + 1)[0])
    program: Program = []
    for i in range(length - 1):
        first, second = words(17 + i // 2)[i % 2 * 2 :][:2]
        name = NAMES[1 + digits(first, 20)[0]]
        if name == "LOADI":
            program.append((name, [digits(second, 256)[0] & mask]))
            continue
        _, choice, third = digits(first, 20, len(COUNTS[name]), num_registers)
        operands = [*digits(second, num_registers, num_registers), third][: COUNTS[name][choice]]
        program.append((name, [1 + x for x in operands]))
    start_values = b"".join(word.to_bytes(4, "little") for block in range(1, 17) for word in words(block))
    start_values = bytes(value & mask for value in start_values)
    return trace([*program, ("HLT", [])], start_values[0], list(start_values[1 : num_registers + 1]), memory_size)
