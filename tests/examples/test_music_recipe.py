"""The ABC and MIDI recipe: its bars sound as in their tunes, its baselines are what they say, and it runs."""

from __future__ import annotations

import importlib
import json
import random
import shutil
from pathlib import Path
from types import ModuleType

import pytest
from support.paths import EXAMPLES

from bgpt_fast.tasks.music import abc_to_midi, read_notes, split_collection

FOLDER = EXAMPLES / "music"
needs_abc2midi = pytest.mark.skipif(shutil.which("abc2midi") is None, reason="abc2midi is not installed")
HEAD = "X:1\nT:A tune\nM:4/4\nL:1/8\nK:D\n"


@pytest.fixture
def excerpts(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("excerpts")


@pytest.fixture
def recipe(excerpts: ModuleType) -> ModuleType:
    return importlib.import_module("abc_midi")


def bars_of(excerpts: ModuleType, text: str) -> list[str]:
    (tune,) = split_collection(text.encode())
    result = list(excerpts.plain_bars(tune, 2, 5))
    assert all(bar.startswith(HEAD) for bar in result)
    return [bar[len(HEAD) :] for bar in result]


def test_only_plain_bars_are_extracted(excerpts: ModuleType) -> None:
    music = "|: D2 F>A | ^c,/2d'3/2 _e/ | DFA |1 A2 (3def | [DF]A FA :|2 {g}AF DA | C-C DE | D2 zA || D2 F>A |]\n"
    assert bars_of(excerpts, HEAD + music) == ["D2F>A|\n", "^c,/2d'3/2_e/|\n", "DFA|\n"]
    # A line's end is no bar's end; comments, and broken rhythm that nothing follows, are none of it.
    assert bars_of(excerpts, HEAD + "DF % AAA|\\\nAA|G> |~DA|d|DFADFA|\n") == ["DFAA|\n"]
    for change in ("K:G\n", "M:3/4\n", "L:1/4\n"):
        assert bars_of(excerpts, HEAD + "DFA|\n" + change + "DFA|\n") == []
    assert bars_of(excerpts, HEAD.replace("K:D", "K:D exp ^f") + "DFA|\n") == []
    assert bars_of(excerpts, HEAD.replace("L:1/8\n", "") + "DFA|\n") == []


@needs_abc2midi
def test_bars_sound_as_in_their_tune(excerpts: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("mido")
    stream = random.Random(0)
    notes = ["D", "^F2", "=c/2", "_b", "A,3/2", "G>", "d'"]
    bars = ["".join(stream.choices(notes, k=4)) + "E" for _ in range(9)]
    assert len(set(bars)) == 9
    whole = HEAD + " | ".join(bars) + " |]\n"
    (tmp_path / "in").mkdir()
    (tmp_path / "in/tunes.abc").write_text(whole)
    (tmp_path / "in/none.abc").write_text("no tune")
    assert excerpts.write_excerpts([tmp_path / "in"], tmp_path / "bars.abc", fewest=4, most=5) == 9
    pitches = []
    for bar in split_collection((tmp_path / "bars.abc").read_bytes()):
        pitches += [note.pitch for note in read_notes(abc_to_midi(bar.text.encode()).midi)]
    assert pitches == [note.pitch for note in read_notes(abc_to_midi(whole.encode()).midi)]


def test_the_baselines(recipe: ModuleType, tmp_path: Path) -> None:
    stream = random.Random(0)
    contents = [("GAB", b"one" * 20), ("GAc", b"two" * 20), ("dAB", stream.randbytes(60))]
    training = []
    for number, (source, target) in enumerate(contents):
        paths = tmp_path / f"{number}.abc", tmp_path / f"{number}.mid"
        paths[0].write_text(source)
        paths[1].write_bytes(target)
        training.append(paths)
    for source, number in (("GA", 0), ("GAcd", 1), ("A", 0), ("dzz", 2), ("zzz", 2)):
        (tmp_path / "source.abc").write_text(source)
        (tmp_path / "source.mid").write_bytes(b"truth")
        (result,) = recipe.nearest_prefix([(tmp_path / "source.abc", tmp_path / "source.mid")], training)
        assert result == ("source.mid", contents[number][1], b"truth"), source
    for examples, least, most in ((training, -1, 3), (training[:2], 7.9, 12)):
        for bits in recipe.compressors(training[2:], examples).values():
            assert least < bits < most


@needs_abc2midi
def test_a_tiny_run(recipe: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("mido")
    stream = random.Random(1)
    tunes = [f"X:{n}\nT:{n}\nM:6/8\nL:1/8\nK:D\n{''.join(stream.choices('CDEFGABcdefg', k=6))}|\n" for n in range(60)]
    (tmp_path / "tunes.abc").write_text("\n".join(tunes))
    words = ["--minutes", "0.02", "--held-out", "3", "--collections", str(tmp_path / "tunes.abc")]
    words += ["--runs", str(tmp_path / "runs"), "--output", str(tmp_path / "o.json")]
    assert recipe.main(words) == 1
    results = json.loads((tmp_path / "o.json").read_text())
    assert results["data"]["pairs"]["train"] > 45
    assert list(results["directions"]) == ["abc->mid", "mid->abc"]
    for direction in results["directions"].values():
        assert not direction["holds"]
        assert direction["converted"]["files"] == direction["training_pair_that_begins_alike"]["files"] == 3
        assert min(direction["compressors_bits_per_byte"].values()) < direction["bits_per_byte"]
    steps = results["steps"]
    assert recipe.main(words) == 1
    assert json.loads((tmp_path / "o.json").read_text())["steps"] == steps, "the run was at its end"
    assert "NOT as claimed" in capsys.readouterr().out
    (tmp_path / "others.abc").write_text("\n".join(tunes[:3]))
    with pytest.raises(ValueError, match="choose another --runs"):
        recipe.main([*words, "--collections", str(tmp_path / "others.abc")])


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.cpu.json")), ids=lambda path: path.name)
def test_the_results_beside_the_script_hold(path: Path) -> None:
    results = json.loads(path.read_text())
    assert results["command"].startswith("python examples/music/abc_midi.py")
    assert all(direction["holds"] for direction in results["directions"].values())
