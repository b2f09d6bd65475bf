"""How often a byte waits for memory in the persistent byte decoder: its longest chain of loads, by its machine code.

A warp begins loads until it needs a value of one; while it waits, all that it has begun arrive, so a wait is one round
trip to L2 (about 0.3 µs with the barrier's poll, 0.15 µs otherwise). Only loads that begin after a wait can lengthen
the chain. The machine code's line information tells which function of csrc/byte_decode a load is in, through which
calls; `BYTE` says how often one byte runs through it and how many loads a lane needs there. So a loop that has loads
waited for one by one, by a branch or for want of registers, counts as many round trips as it has loads.

Letters: D width, F hidden width, d channels a head.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

KERNEL = "_byte_decode_kernel"
MAX_ROUND_TRIPS = 60
"""For one byte of one patch at the paper's size."""

_FOLDER = "csrc/byte_decode/"
_HELPERS = {"for_each", "for_each_loaded", "load_groups", "run"}
_LINE = re.compile(r'\s*//## File "([^"]+)", line (\d+)')
_INSTRUCTION = re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)\s*([^;]*);")
_LABEL = re.compile(r"(\.L_x_\d+):")
_JUMP = re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:BRA `\((\.L_x_\d+)\)|EXIT|RET)")
_REGISTER = re.compile(r"\bR(\d+)\b")
_WIDTHS = {"64": 2, "128": 4, "256": 8}


class Visits(NamedTuple):
    """How often a byte runs through a function, and the loads of a lane each time."""

    times: int
    loads: int


BYTE = {
    # The embedding of a byte, for the residual stream and for the first norm: two values of D = 768 on 384 threads.
    "product/load/store_embeddings/embedding": Visits(1, 2),
    "product/load/load_normed/load_residual/embedding": Visits(1, 4),
    # The residual stream before QKV of layers 2 and 3 and the head, and after attention with three groups of heads.
    "product/load/load_normed/load_residual": Visits(3, 2),
    "product/load/load_normed/load_residual/after_attention": Visits(3, 12),
    # The norms' weights and biases.
    "product/load/load_normed": Visits(7, 4),
    # FC2's inputs: F = 3072 in fours.
    "product/load/load_rows": Visits(3, 2),
    # d = 64 channels of a query and a key, in fours; 16 positions' values.
    "product/load/load_attended/attend_head/attention_scores/with_channels": Visits(3, 32),
    "product/load/load_attended/attend_head": Visits(3, 16),
    # Biases and residuals of the products.
    "product/load": Visits(12, 3),
    # The barriers' counter.
    "wait/arrived_count": Visits(13, 1),
    # A token: the logits; its prefix token, random stream, offset and limit.
    "choose/choose_by_warp/load_logits": Visits(1, 9),
    "choose": Visits(1, 4),
    # Weights, which are begun before a barrier.
    "fetch_first/fetch/load": Visits(13, 8),
}
"""One byte of one patch at the paper's size, D = 768, 3 layers, on 132 blocks of 12 warps, by path of calls."""

OTHER = {
    "attend/attend_head/attention_scores/with_channels",  # three patches or more
    "attend/attend_head",
    "product/load/load_normed/load_residual/with_further_groups",  # more than four groups of heads
    "product/value/with_further_groups",
    "choose/store_logits",  # only where the caller wants the logits
}
"""Paths that such a byte does not take."""

FURTHER_WEIGHTS = {"bf16": 0, "fp32": 9}
"""Times that a byte's weights do not fit the registers at once, so that their second half is waited for: QKV, FC1 and
FC2 of each layer in fp32."""


class Load(NamedTuple):
    """A load: its path of calls, and their lines, which tell copies of the last function apart."""

    path: str
    copy: tuple[tuple[str, int], ...]


def round_trips(listing: str, sources: Path, dtype: str) -> int:
    """Round trips of a byte.

    Args:
        listing: of the kernel alone, by `nvdisasm -gi`, compiled with -lineinfo.
        sources: the folder that contains csrc/.
        dtype: of the weights.

    Raises:
        ValueError: a function waits for memory that is in none of the lists.
    """
    loads, waits = _loads_and_waits(listing, sources)
    total, unknown = FURTHER_WEIGHTS[dtype], []
    for path, copies in waits.items():
        if path in OTHER:
            continue
        if path not in BYTE:
            unknown.append(path)
            continue
        times, needed = BYTE[path]
        # Of a loop and its remainder, the one that begins most loads at once.
        total += times * min(-(-needed * copies[copy] // count) for copy, count in loads[path].items())
    if unknown:
        raise ValueError(
            f"expected waits for memory in the functions that BYTE or OTHER of round_trips.py lists, got "
            f"{', '.join(sorted(unknown))} too"
        )
    return total


def _loads_and_waits(listing: str, sources: Path) -> tuple[dict[str, dict[object, int]], dict[str, dict[object, int]]]:
    """The number of loads, and of waits for one of them, by path and copy."""
    loads: dict[str, dict[object, int]] = defaultdict(lambda: defaultdict(int))
    waits: dict[str, dict[object, int]] = defaultdict(lambda: defaultdict(int))
    names = _Names(sources)
    frames: list[tuple[str, int]] = []
    pending: dict[int, Load] = {}
    carried: dict[str, dict[int, Load]] = {}  # to labels further down
    is_new = True
    for line in listing.splitlines():
        if at := _LINE.match(line):
            frames = [] if is_new else frames
            is_new = False
            frames.append((at[1], int(at[2])))
            continue
        if label := _LABEL.match(line):
            pending |= carried.pop(label[1], {})
        if jump := _JUMP.match(line):
            carried[jump[1] or ""] = pending
            pending, is_new = {}, True
            continue
        instruction = _INSTRUCTION.match(line)
        if instruction is None:
            continue
        is_new = True
        code, operands = instruction.groups()
        first, _, others = operands.partition(",")
        stores = code.startswith(("ST", "RED", "ATOM", "BRA", "BAR"))
        read = [int(number) for number in _REGISTER.findall(operands if stores else others)]
        if waited := [pending[register] for register in read if register in pending]:
            waits[waited[-1].path][waited[-1].copy] += 1
            pending = {}
        target = None if stores else _REGISTER.match(first.strip())
        if target is None:
            continue
        width = next((_WIDTHS[part] for part in code.split(".") if part in _WIDTHS), 1)
        registers = range(int(target[1]), int(target[1]) + width)
        for register in registers:
            pending.pop(register, None)
        if code.startswith("LDG"):
            load = names.load_of(frames)
            loads[load.path][load.copy] += 1
            pending |= dict.fromkeys(registers, load)
    return loads, waits


class _Names:
    """The functions that lines of csrc/byte_decode are in."""

    def __init__(self, sources: Path) -> None:
        self._starts: dict[str, list[tuple[int, str]]] = {}
        for path in sorted((sources / _FOLDER).glob("*.h")):
            starts = [
                (number, name[1])
                for number, line in enumerate(path.read_text().splitlines(), 1)
                if (name := re.search(r"BGPT_DEVICE [^(]*?(\w+)\(", line))
            ]
            self._starts[path.name] = starts

    def load_of(self, frames: list[tuple[str, int]]) -> Load:
        calls = []
        for file, line in reversed(frames):
            name = Path(file).name
            if _FOLDER in file and name.endswith(".h") and name != "lanes.h":
                function = [function for start, function in self._starts[name] if start <= line][-1]
                calls.append((function, name, line))
        path: list[str] = []
        begin = 0
        for i, (function, _, _) in enumerate(calls):
            if function not in _HELPERS and path[-1:] != [function]:
                path.append(function)
                begin = i
        return Load("/".join(path), tuple((name, line) for _, name, line in calls[:begin]))
