"""NotaGen's patches and generation as plain loops over strings, from the facts of its public code."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np

SIZE = 16
BAR_LINES = ("|:", "::", ":|", "[|", "||", "|]", "|")
BEGIN, END = "\1" * 15 + "\2", "\1" + "\2" * 15

NextPatch = Callable[[list[list[int]], list[int], int], list[int]]
"""(complete patches, known symbols of the next, number of patches written) → the other symbols of the next patch."""


def bars_of(line: str) -> list[str]:
    """The bars of a line of the body.

    The public code pairs bar lines with what follows them; where nothing follows, as in a line that is being written,
    its IndexError drops the rest of the tune. Here, as docs/notagen.md says, such a bar line is a bar.
    """
    pieces, rest = [""], line
    while rest:
        mark = next((mark for mark in BAR_LINES if rest.startswith(mark)), "")
        if mark:
            pieces += [mark, ""]
        else:
            pieces[-1] += rest[0]
        rest = rest[len(mark) or 1 :]
    pieces = [piece for piece in pieces if piece]
    if len(pieces) == 1:
        return pieces
    bars = [] if pieces[0] in BAR_LINES else [pieces.pop(0)]
    while pieces:
        bars.append("".join(pieces[:2]))
        del pieces[:2]
    if "V" not in bars[-1]:
        last = bars.pop()
        bars[-1] += last
    return bars


def cut(part: str) -> list[str]:
    """The patches of a line of the header or of a bar."""
    if len(part) % SIZE:
        part += "\2"
    return [part[i : i + SIZE] for i in range(0, len(part), SIZE)]


def training_patches(text: str, length: int, stream: random.Random) -> list[list[int]]:
    """The patches of a tune for training in the stream format."""
    lines = [line + "\n" for line in text.split("\n") if line]
    at = min(i for i, line in enumerate(lines) if "[V:" in line)
    body = lines[at:]
    body = [f"[r:{i}/{len(body) - 1 - i}]" + line for i, line in enumerate(body)]

    def patches_of(some: Sequence[str]) -> list[str]:
        return [patch for line in some for bar in bars_of(line) for patch in cut(bar)] + [END]

    header = [BEGIN] + [patch for line in lines[:at] for patch in cut(line)]
    patches = patches_of(body)
    excess = len(header) + len(patches) - length
    if excess > 0:
        ends = [0] + [i + 1 for i, patch in enumerate(patches) if "\n" in patch]
        places = [k for k, end in enumerate(ends) if k == 0 or ends[k - 1] < excess]
        choice = stream.choice(["head", "tail", "middle"][: len(places)])
        if choice == "tail":
            patches = patches_of(body[places[-1] :])
        elif choice == "middle":
            patches = patches_of(body[stream.choice(places[1:-1]) :])
    return [[*map(ord, patch), *[0] * (SIZE - len(patch))] for patch in (header + patches)[:length]]


def continued_patches(text: str) -> list[list[int]]:
    """The patches of a tune whose body has begun, to be continued; the last is as long as it is."""
    lines = text.split("\n")
    whole = [line + "\n" for line in lines[:-1] if line]
    last = [lines[-1]] if lines[-1] else []
    lines = whole + last
    at = next((i for i, line in enumerate(lines) if line.startswith(("[V:", "[r:"))), len(lines))
    bars = [bar for line in lines[at:] for bar in bars_of(line)]
    patches = [BEGIN] + [patch for part in [*lines[:at], *bars[:-1]] for patch in cut(part)]
    rows = [[*map(ord, patch), *[0] * (SIZE - len(patch))] for patch in patches]
    if not bars:
        return rows
    return rows + [[*map(ord, bars[-1][i : i + SIZE])] for i in range(0, len(bars[-1]), SIZE)]


def write(next_patch: NextPatch, header: Sequence[str], length: int, most: int) -> tuple[list[list[int]], bool]:
    """The patches that follow a header of whole lines, and whether the model ended the tune.

    Args:
        next_patch: the model, with its sampling.
        header: lines, each with its line break.
        length: the context, in patches.
        most: patches to write at most.
    """
    context = [[*map(ord, BEGIN)]]
    context += [[*map(ord, patch), *[0] * (SIZE - len(patch))] for line in header for patch in cut(line)]
    text, patches, in_body, line_count = "".join(header), [], False, 0
    while len(patches) < most:
        known = context.pop() if len(context[-1]) < SIZE else []
        new = next_patch(context, known, len(patches))
        if not in_body and plain(new).startswith("[r:"):
            in_body, start = True, [*map(ord, "[r:0/")]
            new = start + next_patch(context, start, len(patches))
        if new[0] == 1 and new[1] == 2:
            return patches, True
        text += plain(new)
        end = new.index(2) + 1 if 2 in new else len(new)
        new = new[:end] + [0] * (len(new) - end)
        patches.append(new)
        context.append(known + new)
        if len(context) >= length:
            lines = text.split("\n")
            at = next((i for i, line in enumerate(lines) if line.startswith(("[r:", "[V:"))), None)
            if at is None or at == len(lines) - 1:
                break
            line_count = line_count or len(lines[at:]) // 2
            context = continued_patches("\n".join(lines[:at] + lines[at:][-line_count:]))[:length]
    return patches, False


def plain(patch: Sequence[int]) -> str:
    """A patch's characters up to its first 2, without those of the symbols 0 and 1."""
    symbols = [*patch, 2]
    return "".join(chr(symbol) for symbol in symbols[: symbols.index(2)] if symbol > 1)


def sample(probabilities: np.ndarray, top_k: int, top_p: float, temperature: float, uniform: float) -> int:
    """A symbol: top-k, then top-p over what is left, then temperature; `uniform` in [0, 1) decides."""
    p = np.asarray(probabilities, np.float64)
    order = np.argsort(-p, kind="stable")
    p[order[top_k:]] = 0.0
    p /= p.sum()
    sums = np.cumsum(p[order])
    p[order[int(np.argmax(sums > top_p)) + 1 :]] = 0.0
    p = (p / p.sum()) ** (1 / temperature)
    return int(np.searchsorted(np.cumsum(p / p.sum()), uniform, side="right"))
