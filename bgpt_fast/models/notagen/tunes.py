"""Tunes as patches: by lines of the header and bars of the body, each cut into patches of S characters.

A tune is `[bos … bos eos][header][body][bos eos … eos]`. A header line or a bar that does not fill its last patch ends
it with `eos`, then `pad`. In the stream format each line of the body begins with `[r:i/j]`, the number of lines before
and after it, so that a model with a short context writes long tunes (arXiv 2502.18008, section 3).
Shape letters: P patches, S characters a patch.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from bgpt_fast.config import NOTAGEN_ALPHABET, BGPTConfig

BOS: int = NOTAGEN_ALPHABET["bos"]
EOS: int = NOTAGEN_ALPHABET["eos"]
PAD: int = NOTAGEN_ALPHABET["pad"]
_BAR_LINE = re.compile(r"(\|:|::|:\||\[\||\|\||\|\]|\|)")
_SIZES = {
    "110M": (2048, 768, 12, 3),
    "244M": (2048, 1024, 16, 3),
    "516M": (1024, 1280, 20, 6),
}

Patch = list[int]
"""S symbols, or in a prompt's last patch fewer."""


class TuneError(ValueError):
    """A text that is no tune in ABC notation with voices, or has characters outside ASCII."""


def notagen_config(size: str = "110M", **fields: Any) -> BGPTConfig:
    """The config of a released NotaGen; with no dropout (the released training used 0.1).

    Args:
        size: "110M", "244M" or "516M" (which NotaGen-X is too).
        fields: other values for fields of `BGPTConfig`.

    Raises:
        ValueError: another size.
    """
    if size not in _SIZES:
        raise ValueError(f"notagen_config: size: expected one of {tuple(_SIZES)}, got {size!r}")
    length, width, patch_layers, char_layers = _SIZES[size]
    config = BGPTConfig(16, length, width, patch_layers, char_layers, **NOTAGEN_ALPHABET)
    return replace(config, num_heads=None, byte_num_heads=None, **fields)


def is_notagen(config: BGPTConfig) -> bool:
    """Whether a config has NotaGen's alphabet."""
    return {field: getattr(config, field) for field in NOTAGEN_ALPHABET} == NOTAGEN_ALPHABET


def check_alphabet(name: str, config: BGPTConfig) -> None:
    """Raises ValueError, which begins with `name`, unless the config has NotaGen's alphabet."""
    if not is_notagen(config):
        alphabet = {field: getattr(config, field) for field in NOTAGEN_ALPHABET}
        raise ValueError(f"{name}: expected NotaGen's alphabet {NOTAGEN_ALPHABET}, got {alphabet}; use notagen_config")


def split_bars(line: str) -> list[str]:
    """The bars of a line of a tune's body, each with the bar line before it.

    The line's last bar line and line break belong to its last bar, unless there is a voice in it. Other than in the
    released code, which drops the rest of the tune there, a bar line at the end of the text is a bar.
    """
    pieces = [piece for piece in _BAR_LINE.split(line) if piece]
    if len(pieces) < 2:
        return pieces
    first = 0 if _BAR_LINE.fullmatch(pieces[0]) else 1
    bars = pieces[:first] + ["".join(pieces[i : i + 2]) for i in range(first, len(pieces), 2)]
    if len(bars) > 1 and "V" not in bars[-1]:
        bars[-2:] = [bars[-2] + bars[-1]]
    return bars


def tune_patches(
    text: str, config: BGPTConfig, *, stream: bool = True, window: random.Random | None = None
) -> list[Patch]:
    """The patches of a tune for training, at most `config.patch_length`.

    Args:
        text: ABC notation whose body's lines have voices such as "[V:1]"; the first of them begins the body.
        config: with NotaGen's alphabet.
        stream: numbers the body's lines by `[r:i/j]`, as the released models were trained.
        window: chooses what a tune longer than the context keeps, as the released training does: with the header, the
            body from its start, from its last line that fits, or from a line between, each with the same probability.
            None keeps the start. Without `stream` always the start.

    Returns:
        P lists of S symbols 0…127: the first is the beginning's; the last is the end's, if it is within the context.

    Raises:
        TuneError: no line with a voice, or a character outside ASCII.
    """
    lines = _lines(text)
    body_at = next((i for i, line in enumerate(lines) if "[V:" in line), None)
    if body_at is None:
        raise TuneError(f"tune_patches: text: expected lines with voices such as [V:1], got {text!r:.80}")
    header, body = lines[:body_at], lines[body_at:]
    if stream:
        body = [f"[r:{i}/{len(body) - i - 1}]{line}" for i, line in enumerate(body)]
    S, L = config.patch_size, config.patch_length
    before = [begin_patch(S), *_filled(header, S)]
    body_patches = [_filled(split_bars(line), S) for line in body]
    excess = len(before) + sum(map(len, body_patches)) + 1 - L
    start = _window_start(body_patches, excess, window) if stream and window is not None and excess > 0 else 0
    return [*before, *(patch for line in body_patches[start:] for patch in line), end_patch(S)][:L]


def _window_start(body: Sequence[Sequence[Patch]], excess: int, window: random.Random) -> int:
    """The first line that a tune which is `excess` patches too long keeps."""
    # Up to the first line from which on everything fits, or the end of the tune.
    starts, skipped = [0], 0
    for number, patches in enumerate(body, 1):
        if skipped >= excess:
            break
        skipped += len(patches)
        starts.append(number)
    choice = window.choice(("head", "tail", "middle")[: len(starts)])
    if choice == "head":
        return 0
    return starts[-1] if choice == "tail" else window.choice(starts[1:-1])


def prompt_patches(text: str, config: BGPTConfig) -> list[Patch]:
    """The patches of the beginning of a tune, to be continued: of a header alone, or of header and lines of the body.

    Returns:
        Patches of S symbols; the last is shorter where the text ends within a bar.

    Raises:
        TuneError: a character outside ASCII.
    """
    S, lines = config.patch_size, _lines(text)
    body_at = body_start(lines)
    if body_at < len(lines) and not text.endswith("\n"):
        lines[-1] = lines[-1][:-1]
    bars = [bar for line in lines[body_at:] for bar in split_bars(line)]
    if not bars:
        return [begin_patch(S), *_filled(lines, S)]
    last = [bars[-1][i : i + S] for i in range(0, len(bars[-1]), S)]
    return [begin_patch(S), *_filled([*lines[:body_at], *bars[:-1]], S), *([ord(c) for c in part] for part in last)]


def prompt_context(name: str, text: str, config: BGPTConfig) -> list[Patch]:
    """As `prompt_patches`, of a tune that a model with this config can continue.

    Raises:
        ValueError: it fills the context; begins with `name`, as the TuneError does.
    """
    try:
        patches = prompt_patches(text, config)
    except TuneError as error:
        raise TuneError(f"{name}: {error}") from error
    if len(patches) >= config.patch_length:
        raise ValueError(
            f"{name}: expected fewer patches than the context's {config.patch_length}, got {len(patches)}; cut it, or "
            "use a model with a longer context"
        )
    return patches


def body_start(lines: Sequence[str]) -> int:
    """The index of the first line of a tune's body, or the number of lines."""
    return next((i for i, line in enumerate(lines) if line.startswith(("[V:", "[r:"))), len(lines))


def text_of(patches: Iterable[Sequence[int]]) -> str:
    """The characters of patches, each up to its first `eos`; without the control characters 0, 1 and 2."""
    text = []
    for patch in patches:
        symbols = [int(symbol) for symbol in patch]
        end = symbols.index(EOS) if EOS in symbols else len(symbols)
        text.append("".join(chr(symbol) for symbol in symbols[:end] if symbol > EOS))
    return "".join(text)


def begin_patch(S: int) -> Patch:
    """The patch before every tune."""
    return [BOS] * (S - 1) + [EOS]


def end_patch(S: int) -> Patch:
    """The patch after every tune; a model ends a tune by its first two symbols."""
    return [BOS] + [EOS] * (S - 1)


def _filled(parts: Iterable[str], S: int) -> list[Patch]:
    """The patches of texts, each of which begins a patch."""
    patches = []
    for part in parts:
        symbols = [ord(character) for character in part]
        if len(symbols) % S:
            symbols.append(EOS)
        symbols += [PAD] * (-len(symbols) % S)
        patches += [symbols[i : i + S] for i in range(0, len(symbols), S)]
    return patches


def _lines(text: str) -> list[str]:
    """The lines that are not empty, each with its line break."""
    bad = next((character for character in text if not EOS < ord(character) < 128), None)
    if bad is not None:
        raise TuneError(f"text: expected characters of ASCII above U+0002, got {bad!r} in {text!r:.80}; replace it")
    return [line + "\n" for line in text.split("\n") if line]
