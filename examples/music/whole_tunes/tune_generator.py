"""An endless generator of ABC tunes in the manner of music21's Irish tunes.

The shares of metres, keys, unit lengths, forms, layouts and signs are those of the training tunes, counted once and
rounded. A tune depends on nothing but (seed, number, bars). `Tune` objects are lists of bars; bars are lists of beats;
a beat is text.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

Choice = TypeVar("Choice")


def _weights(text: str) -> dict[str, int]:
    """A table of "name=weight; name=weight; …"."""
    return {name: int(weight) for name, _, weight in (entry.rpartition("=") for entry in text.split("; "))}


METRES = {
    "6/8": 285,
    "C|": 230,
    "2/4": 220,
    "C": 153,
    "3/4": 65,
    "9/8": 34,
    "4/4": 12,
    "3/8": 5,
    "12/8": 3,
    "6/4": 2,
    "3/2": 1,
}
KEYS = _weights(
    "G=1309; D=1121; A=340; C=123; Bb=110; F=101; Am=95; Gm=89; Em=85; E Minor=50; Dm=44; A Mixolydian=35; "
    "A Dorian=29; A Minor=28; B Minor=21; Dmix=17; Ador=15; E=14; Amix=13; Bm=11; D Mixolydian=10; "
    "Edor=10; E Dorian=8; Gmix=8; D Minor=6; Eb=8; Glyd=4; Cm=4; G Dorian=4; G Minor=4; Gdor=4; AMix=3; "
    "Ddor=3; Emix=3; Bphr=2"
)
UNITS = {
    "2/4": {"1/16": 74, "1/8": 22, "": 2},
    "3/4": {"1/8": 82, "1/4": 10, "1/16": 4},
    "C": {"1/8": 94, "1/16": 5, "1/4": 2},
    "6/8": {"1/8": 92, "": 7, "1/16": 1},
    "9/8": {"1/8": 70, "": 28},
    "3/8": {"1/8": 55, "1/16": 45},
}
"""Of the unit length field, "" for none; of other metres, nearly always 1/8."""
BEATS = {
    2: _weights("1 1=60; 2=22; 3/2 1/2=4; 1 1/2 1/2=8; 1/2 1/2 1=8; 1/2 1/2 1/2 1/2=6; 1/2 3/2=1; 1>1=14"),
    3: _weights(
        "1 1 1=62; 2 1=22; 3=5; 1>1 1=3; 1 1/2 1/2 1=4; 1/2 1/2 1 1=4; 1 2=2; 1 1 1/2 1/2=1; 3/2 1/2 1=2; "
        "1/2 1/2 1/2 1/2 1/2 1/2=1"
    ),
    4: _weights(
        "1 1 1 1=66; 2 1 1=9; 1 1 2=6; 2 2=5; 3 1=3; 4=1; 1>1 1>1=12; 2 1>1=4; 1 1 1>1=3; 1>1 2=1; 1<1 1>1=1; "
        "1/2 1/2 1/2 1/2 1 1=1; 1 1/2 1/2 1 1=1; 2 1 1/2 1/2=1; 3/2 1/2 1 1=1; 1 2 1=1"
    ),
}
"""How a beat of so many unit lengths is divided; ">" and "<" are broken rhythm."""
STEPS = {0: 9, 1: 22, -1: 27, 2: 13, -2: 13, 3: 5, -3: 5, 4: 3, -4: 2, 5: 2, -5: 1, 7: 1, -7: 1}
SIGNS = {
    "T": (0.14, 0.05),
    "~": (0.07, 0.06),
    ".": (0.26, 0.1),
    "u": (0.16, 0.05),
    "v": (0.12, 0.05),
    "H": (0.2, 0.007),
}
"""Share of the tunes that have a sign, and share of their notes that do."""
TEXTS = ('"4"', '"0"', '"1"', '"3"', '"2"', '">"', '"4"', '"4"')
CHORDS = ("G", "D", "A", "Am", "Em", "C", "D7", "F", "Bb", "Dm", "E7", "Gm")
LETTERS = "CDEFGABcdefgab"


@dataclass(frozen=True)
class Manner:
    """How a tune is notated.

    Args:
        signs: share of the notes with each sign.
        slurs, graces, triplets, accidentals, chords, rests, texts, guitar_chords, ties: shares of notes or beats.
        broken: whether the tune has broken rhythm.
        half: the suffix of a note of half the unit length, "/" or "/2".
        between_beats, around_bars: text between the beats of a bar, and at bar lines.
        bars_a_line: bars of a line of text.
        continued: share of the lines that end with a backslash.
        line_begins: text at the begin of a line of music.
        aligned: whether bars are padded to the same width.
    """

    signs: dict[str, float]
    slurs: float
    graces: float
    triplets: float
    accidentals: float
    chords: float
    rests: float
    texts: float
    guitar_chords: float
    ties: float
    broken: bool
    half: str
    between_beats: str
    around_bars: str
    bars_a_line: int
    continued: float
    line_begins: str
    aligned: bool


PLAIN = Manner(
    signs={},
    **dict.fromkeys(("slurs", "graces", "triplets", "accidentals", "chords", "rests"), 0.0),
    **dict.fromkeys(("texts", "guitar_chords", "ties", "continued"), 0.0),
    broken=False,
    half="/",
    between_beats="",
    around_bars="",
    bars_a_line=4,
    line_begins="",
    aligned=False,
)


@dataclass
class Place:
    """Where the melody is: the degree of the last note, 0 for C, 7 for c; and the middle that it tends to."""

    degree: int
    middle: int


def tune(seed: int, number: int, bars: int | None = None, *, plain: bool = False) -> str:
    """Returns an ABC tune, with X:1: `bars` bars without repeats, or a whole one; "plain": of notes alone."""
    rng = random.Random(f"{seed} {number} {bars} {plain}")
    metre = _choose(rng, METRES)
    unit = _choose(rng, UNITS.get(metre, {"1/8": 97, "1/16": 2, "": 1}))
    header = f"X:1\nM:{metre}\n" + (f"L:{unit}\n" if unit else "") + _tempo(rng, metre) + f"K:{_choose(rng, KEYS)}\n"
    manner = PLAIN if plain else _manner(rng)
    beats = _beats(metre, unit)
    writer = _Writer(rng, manner, beats)
    return header + (writer.excerpt(bars) if bars else writer.whole())


class _Writer:
    """Writes the music of one tune.

    Args:
        rng: all choices.
        manner: the notation.
        beats: unit lengths of each beat of a bar.
    """

    def __init__(self, rng: random.Random, manner: Manner, beats: Sequence[int]) -> None:
        self.rng = rng
        self.manner = manner
        self.beats = beats
        middle = rng.choice((6, 6, 7, 7, 8, 8, 9, 9))
        self.place = Place(middle, middle)
        self.first_ending = rng.choice(("|1 ", "|1", "|[1 ", "|[1"))
        self.home = rng.choice((4, 8, 5, 7, 4, 1, 5))

    def excerpt(self, bars: int) -> str:
        """Some bars as one line."""
        close = self.rng.choice(("|", "|]", "||"))
        return self._lines([self._bar() for _ in range(bars)], "", close)

    def whole(self) -> str:
        """All parts of a tune, with repeats, endings and pickups."""
        rng = self.rng
        parts = _choose(rng, {1: 10, 2: 74, 3: 8, 4: 6, 5: 1, 6: 1})
        length = _choose(rng, {4: 22, 8: 71, 16: 3, 6: 2, 12: 2})
        pickup = rng.random() < 0.55
        repeats = rng.random() < (0.72 if length < 12 and parts < 4 else 0.4)
        opens = rng.random() < 0.35
        endings = rng.random() < 0.09
        joined = rng.random() < 0.09
        text = ""
        shared: list[str] = []
        for part in range(parts):
            bars = self._part(length, shared)
            shared = shared or bars[-2:]
            first = self._pickup() if pickup else ""
            if pickup:
                bars[-1] = self._shortened()
            last = part == parts - 1
            is_repeated = repeats and (rng.random() < 0.93 or text.endswith("::\n"))
            begin = "|:" if is_repeated and (opens or (part and joined and text.endswith("::\n"))) else ""
            if text.endswith("::\n"):
                begin = ""
            close = rng.choice(("||", "||", "|]", "|"))
            if is_repeated:
                close = ":|"
                if joined and not last:
                    close = "::"
            music = bars
            if is_repeated and endings and close == ":|":
                other = self._shortened() if pickup else self._bar(final=True)
                end = rng.choice((":|2", ":|2", ":|2 ", ":|[2"))
                music = [*bars[:-1], f"[1 {bars[-1]}"]
                text += self._lines(music, begin + first, f"{end}{other}{rng.choice(('||', '|]', '||'))}")
            else:
                text += self._lines(music, begin + first, close)
        return text

    def _part(self, length: int, shared: list[str]) -> list[str]:
        """The bars of a part; phrases come again, with or without another end, and parts end alike."""
        rng = self.rng
        phrase = max(length // 2, 2)
        if length % phrase:
            return [self._bar() for _ in range(length)]
        first = [self._bar() for _ in range(phrase)]
        if phrase >= 4 and rng.random() < 0.25:
            first[phrase // 2] = first[0]
        bars = list(first)
        while len(bars) < length:
            if rng.random() < 0.7:
                same = rng.choice((1, 1, 2, phrase - 2 if phrase > 2 else 1))
                bars += first[: max(phrase - same, 0)] + [self._bar() for _ in range(min(same, phrase))]
            else:
                bars += [self._bar() for _ in range(phrase)]
        bars[-1] = self._bar(final=True)
        if shared and rng.random() < 0.45:
            bars[-2:] = shared
        return bars

    def _bar(self, final: bool = False) -> str:
        rng = self.rng
        beats = [self._beat(units) for units in self.beats]
        if final and len(self.beats) > 1:
            beats[-1] = self._note(Fraction(self.beats[-1]), self.home)
        elif rng.random() < 0.03 and len(self.beats) > 1 and self.beats[0] < 4:
            beats[:2] = [self._note(Fraction(self.beats[0] + self.beats[1]))]
        text = self.manner.between_beats.join(beats)
        if rng.random() < self.manner.guitar_chords:
            text = f'"{rng.choice(CHORDS)}"{text}'
        return text

    def _shortened(self) -> str:
        """A last bar that leaves room for a pickup."""
        units = Fraction(self.beats[-1])
        beats = [self._beat(one) for one in self.beats[:-1]]
        rest = units - (2 if units >= 4 else 1)
        if rest:
            beats.append(self._note(rest, self.home))
        return self.manner.between_beats.join(beats)

    def _pickup(self) -> str:
        units = self.beats[-1]
        if units >= 4:
            return "".join(self._note(Fraction(1)) for _ in range(2)) if self.rng.random() < 0.75 else self._beat(2)
        if self.rng.random() < 0.7:
            return self._note(Fraction(1))
        return "".join(self._note(Fraction(1, 2)) for _ in range(2))

    def _beat(self, units: int) -> str:
        rng, manner = self.rng, self.manner
        if rng.random() < manner.triplets:
            # Three notes in the time of two.
            each = Fraction(1) if units in (2, 4) else Fraction(1, 2)
            notes = "".join(self._plain_note() + self._length(each) for _ in range(3))
            text = "(3" + (f"({notes})" if rng.random() < 0.2 else notes)
            rest = units - 2 * each
            return text + "".join(self._note(Fraction(1)) for _ in range(int(rest)))
        rhythm = _choose(rng, BEATS[units])
        while not manner.broken and (">" in rhythm or "<" in rhythm):
            rhythm = _choose(rng, BEATS[units])
        texts: list[str] = []
        for word in rhythm.split():
            for sign in "<>":
                if sign in word:
                    first, second = (Fraction(length) for length in word.split(sign))
                    texts.append(self._note(first, plain=True) + sign + self._note(second, plain=True))
                    break
            else:
                if texts and rng.random() < manner.ties and re.fullmatch(r"[A-Ga-g][,']*[\d/]*", texts[-1]):
                    texts[-1] += "-" + self._plain_note(self.place.degree, natural=True) + self._length(Fraction(word))
                else:
                    texts.append(self._note(Fraction(word)))
        if len(texts) > 1 and rng.random() < manner.slurs:
            place = rng.randrange(len(texts) - 1)
            texts[place] = "(" + texts[place]
            end = rng.choice((place + 1, len(texts) - 1))
            texts[end] += ")"
        return "".join(texts)

    def _note(self, units: Fraction, degree: int | None = None, plain: bool = False) -> str:
        """A note with its signs; "plain" leaves out what may not stand within broken rhythm."""
        rng, manner = self.rng, self.manner
        text = self._plain_note(degree) + self._length(units)
        if plain:
            return text
        if rng.random() < manner.rests:
            return "z" + self._length(units)
        if rng.random() < manner.chords and degree is None:
            notes = (self.place.degree + step for step in (0, rng.choice((2, 4, 5, 7))))
            return "[" + "".join(_letter(one) for one in notes) + "]" + self._length(units)
        for sign, share in manner.signs.items():
            if rng.random() < share:
                return sign + text
        if units >= 1 and rng.random() < manner.graces:
            steps = rng.choice(((1,), (1,), (1, 2), (0, 1)))
            text = "{" + "".join(_letter(self.place.degree + step) for step in steps) + "}" + text
        if rng.random() < manner.texts:
            text = rng.choice(TEXTS) + text
        return text

    def _plain_note(self, degree: int | None = None, natural: bool = False) -> str:
        rng, place = self.rng, self.place
        if degree is None:
            pull = place.middle - place.degree
            step = _choose(rng, STEPS)
            if rng.random() < abs(pull) / 9:
                step = abs(step) if pull > 0 else -abs(step)
            degree = place.degree + step
            if not 1 <= degree <= 12 and rng.random() < 0.85:
                degree = place.degree - step
        place.degree = min(max(degree, -2), 15)
        accidental = "" if natural or rng.random() >= self.manner.accidentals else rng.choice("^^^==_")
        return accidental + _letter(place.degree)

    def _length(self, units: Fraction) -> str:
        if units.denominator == 1:
            return "" if units == 1 else str(units)
        if units.numerator == 1:
            return self.manner.half if units.denominator == 2 else self.manner.half[:1] * 2
        return str(units)

    def _lines(self, bars: Sequence[str], begin: str, close: str) -> str:
        manner = self.manner
        width = max(map(len, bars)) if manner.aligned else 0
        around = manner.around_bars
        lines: list[str] = []
        for start in range(0, len(bars), manner.bars_a_line):
            some = [bar.ljust(width) for bar in bars[start : start + manner.bars_a_line]]
            head = begin if not start else ""
            if manner.aligned and (begin.strip("|:") or not start):
                head = head.ljust(len(begin))
            line = manner.line_begins if not head.startswith("|") else ""
            line += head + ("|" if head.strip("|:") else "") + around.join(["", f"{around}|{around}".join(some)])
            is_last = start + manner.bars_a_line >= len(bars)
            end = close if is_last else "|"
            line += around + end
            if not is_last and self.rng.random() < manner.continued:
                line += "\\"
            lines.append(line.replace(f"|{around}[1 ", self.first_ending).strip())
        return "\n".join(lines) + "\n"


def _manner(rng: random.Random) -> Manner:
    def rate(tunes: float, share: float) -> float:
        """A share for some of the tunes, that varies from tune to tune; 0 for the others."""
        return share * rng.choice((0.3, 0.6, 1.0, 2.0)) if rng.random() < tunes else 0.0

    spaced = rng.random() < 0.74
    return Manner(
        signs={sign: share for sign, (tunes, share) in SIGNS.items() if rng.random() < tunes},
        slurs=rate(0.8, 0.17),
        graces=rate(0.4, 0.03),
        triplets=rate(0.4, 0.06),
        accidentals=rate(0.35, 0.02) or 0.002,
        chords=rate(0.035, 0.03),
        rests=rate(0.28, 0.02),
        texts=rate(0.22, 0.06),
        guitar_chords=rate(0.03, 0.5),
        ties=rate(0.16, 0.03),
        broken=rng.random() < 0.5,
        half=rng.choice(("/", "/", "/", "/", "/", "/2")),
        between_beats=" " if spaced else rng.choice(("", "", " ", "`", "  ")),
        around_bars=rng.choice(("", "", " ")),
        bars_a_line=_choose(rng, {4: 68, 5: 8, 8: 7, 3: 5, 2: 3, 6: 2, 16: 1}),
        continued=1.0 if rng.random() < 0.34 else 0.0,
        line_begins="| " if rng.random() < 0.06 else "",
        aligned=rng.random() < 0.22,
    )


def _beats(metre: str, unit: str) -> list[int]:
    """Unit lengths of each beat of a bar."""
    top, bottom = {"C": (4, 4), "C|": (2, 2)}.get(metre) or tuple(map(int, metre.split("/")))
    bar = Fraction(top, bottom)
    length = Fraction(unit or ("1/8" if bar >= Fraction(3, 4) else "1/16"))
    units = int(bar / length)
    if bottom == 8:
        return [3] * (units // 3) if units % 9 or units == 9 else [2] * (units // 2)
    if units % 4 == 0 and metre != "3/4":
        return [4] * (units // 4)
    return [2] * (units // 2) if units % 2 == 0 else [3]


def _tempo(rng: random.Random, metre: str) -> str:
    if rng.random() < 0.715:
        return ""
    usual = {"6/8": "3/8=120", "9/8": "3/8=120", "C|": "1/2=104"}.get(metre, "1/4=120")
    if rng.random() < 0.35:
        return f"Q:{usual}\n"
    beat = usual.split("=")[0] if rng.random() < 0.9 else rng.choice(("1/4", "1/8", "3/8", "1/2"))
    if rng.random() < 0.04:
        return f"Q:{rng.randrange(40, 140, 10)}\n"
    return f"Q:{beat}={rng.choice((rng.randrange(60, 140, 4), rng.randrange(60, 180)))}" + (
        ' "Slow"\n' if rng.random() < 0.06 else "\n"
    )


def _letter(degree: int) -> str:
    """The note of a degree: 0 is C, 7 is c, 14 is c'."""
    if degree < 0:
        return LETTERS[degree % 7] + "," * -(degree // 7)
    return LETTERS[7 + degree % 7] + "'" * (degree // 7 - 1) if degree >= 7 else LETTERS[degree]


def _choose(rng: random.Random, weights: Mapping[Choice, int]) -> Choice:
    return rng.choices(list(weights), list(weights.values()))[0]
