"""ABC collections become pairs; what abc2midi does not take is named."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import stat
import struct
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest
from support.cli import CommandLine
from support.media import midi, mido

from bgpt_fast import BGPTConfig
from bgpt_fast.data import DataError, PairSource
from bgpt_fast.tasks.media import MediaError
from bgpt_fast.tasks.music import Note, abc_to_midi, make_pairs, read_notes, split_collection, tidy
from bgpt_fast.tasks.music.collections import irish_collections, title_key

needs_abc2midi = pytest.mark.skipif(shutil.which("abc2midi") is None, reason="abc2midi is not installed")
HEAD = "M:4/4\nL:1/8\n"


def tune(number: int, title: str, music: str, key: str = "C") -> str:
    return f"X: {number}\nT:{title}\nN:a note\n{HEAD}K:{key}\n{music}\n\n"


COLLECTION = (
    "% a collection\n\n"
    + tune(1, "The Long Road", "CDEF GABc|")
    + "text between tunes\n\n"
    + tune(2, "Long Road, The", "cBAG FEDC|")
    + tune(3, "Empty", "")
    + tune(4, "Again", "CDEF GABc|")
    + tune(5, "Other", "ccGG ccGG|")
    + "X:6\nT:no key\nABC|\n\n"
    + tune(7, "Rests", "!fermata!z8|")
    + tune(8, "Chords", '"nonsense"C2D2 E-F|')
)


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/tunes.abc").write_bytes(COLLECTION.replace("\n", "\r\n").encode())
    (tmp_path / "in/none.abc").write_text("no tune at all")
    (tmp_path / "in/readme.txt").write_text("read me")
    return tmp_path / "in"


def test_collections_are_split_into_tunes() -> None:
    tunes = split_collection(COLLECTION.encode())
    assert [one.number for one in tunes] == list("12345678")
    assert tunes[0].title == "The Long Road"
    assert "text between" not in "".join(one.text for one in tunes)
    assert split_collection("X:1\nT:Café\nK:C\nC|".encode("latin-1"))[0].title == "Café"
    assert len(split_collection(b"X:1\nK:C\nC|\nX:2\nK:C\nD|")) == 2, "without an empty line between"
    with pytest.raises(MediaError, match="no ABC tune"):
        split_collection(b"nothing")


def test_tidy_keeps_what_sounds() -> None:
    (one,) = split_collection(
        b"X: 12\nT:Title\nC:someone\nM:6/8 % time\nL:1/8\nQ:1/4=90\nK:Ador % key\n%%MIDI program 5\n% comment\n"
        b'A2B c2d|% what follows\nw:la la\nM:3/4\n"50\\%"A6|]\n'
    )
    assert tidy(one) == (b'X:1\nM:6/8\nL:1/8\nQ:1/4=90\nK:Ador\n%%MIDI program 5\nA2B c2d|\nM:3/4\n"50\\%"A6|]\n')
    assert tidy(one, "all").startswith(b"X:1\nT:Title\nC:someone\n")


def test_settings_of_a_title_share_a_key() -> None:
    assert title_key("The Long Road") == title_key("long road, The") != title_key("Long Roads")
    assert title_key("Paddy's") == title_key("PADDYS")
    assert title_key("Cafe\u0301") == title_key("Caf\u00e9") != title_key("Cafe")


def test_notes_follow_the_tempo() -> None:
    assert read_notes(midi([(480, 240, 60), (0, 960, 64)], tempo=1_000_000)) == [Note(0, 2, 64), Note(1, 1.5, 60)]
    assert read_notes(midi([])) == []
    # The same pitch twice at once: the first that began ends first.
    assert read_notes(midi([(0, 480, 60), (240, 480, 60)])) == [Note(0, 0.5, 60), Note(0.25, 0.75, 60)]
    for wrong in (b"", b"MThd", midi([(0, 480, 60)])[:-5], b"RIFF" * 9):
        with pytest.raises(MediaError):
            read_notes(wrong)


def smf(tracks: list[bytes], kind: int = 1, division: int = 480) -> bytes:
    """A MIDI file of raw tracks."""
    chunks = b"".join(b"MTrk" + struct.pack(">I", len(track)) + track for track in tracks)
    return b"MThd" + struct.pack(">IHHh", 6, kind, len(tracks), division) + chunks


NOTE = bytes([0, 0x90, 60, 64, 0x83, 0x60, 60, 0])  # 480 ticks, the end by running status
END = b"\0\xff\x2f\0"


@pytest.mark.parametrize("seed", range(20))
def test_notes_are_those_of_mido(seed: int) -> None:
    draw = random.Random(seed)
    tracks = []
    for _ in range(draw.randint(1, 3)):
        track = mido.MidiTrack()
        for _ in range(draw.randint(0, 60)):
            ticks, channel = draw.choice([0, 0, 5, 200, 5000]), draw.randrange(16)
            track.append(
                draw.choice(
                    [
                        mido.Message("note_on", channel=channel, note=draw.randint(60, 64), velocity=64, time=ticks),
                        mido.Message("note_off", channel=channel, note=draw.randint(60, 64), time=ticks),
                        mido.Message("program_change", channel=channel, program=7, time=ticks),
                        mido.Message("pitchwheel", channel=channel, pitch=99, time=ticks),
                        mido.Message("sysex", data=[1, 2, 3], time=ticks),
                        mido.MetaMessage("set_tempo", tempo=draw.randint(100_000, 900_000), time=ticks),
                        mido.MetaMessage("text", text="x" * 200, time=ticks),
                    ]
                )
            )
        tracks.append(track)
    song = mido.MidiFile(type=1, tracks=tracks, ticks_per_beat=draw.choice([24, 96, 480]))
    file = io.BytesIO()
    song.save(file=file)
    now, sounding, expected = 0.0, defaultdict(list), []
    for message in mido.MidiFile(file=io.BytesIO(file.getvalue())):
        now += message.time
        if message.type == "note_on":
            sounding[message.channel, message.note].append(now)
        elif message.type == "note_off" and sounding[message.channel, message.note]:
            expected.append((sounding[message.channel, message.note].pop(0), now, message.note))
    expected += [(onset, now, pitch) for (_, pitch), onsets in sounding.items() for onset in onsets]
    notes = read_notes(file.getvalue())
    assert sorted(notes, key=lambda note: (note.pitch, *note)) == [
        pytest.approx(one) for one in sorted(expected, key=lambda one: (one[2], *one))
    ]


def test_types_and_divisions_of_midi_files() -> None:
    faster = b"\0\xff\x51\3" + (250_000).to_bytes(3, "big")
    one = faster + NOTE + END
    assert read_notes(smf([one], 0)) == [Note(0, 0.25, 60)]
    assert read_notes(smf([one, NOTE], 1)) == [Note(0, 0.25, 60), Note(0, 0.25, 60)], "the tempo is that of all tracks"
    assert read_notes(smf([one, NOTE], 2)) == [Note(0, 0.25, 60), Note(0.25, 0.75, 60)], "one after the other"
    for frames, rate in ((24, 24), (25, 25), (29, 30_000 / 1001), (30, 30)):
        [note] = read_notes(smf([one], 1, -(frames << 8) + 40))
        assert note.end == pytest.approx(480 / 40 / rate), "a tempo changes nothing"
    other = b"XFIH" + struct.pack(">I", 3) + b"any"
    content = smf([one])
    assert read_notes(content[:14] + other + content[14:]) == read_notes(content), "chunks of other kinds are ignored"
    for wrong in (smf([one], 3), smf([one], 1, 0), smf([one], 1, -(26 << 8) + 40), smf([one], 1, -(25 << 8))):
        with pytest.raises(MediaError, match="damaged MIDI file"):
            read_notes(wrong)


@pytest.mark.parametrize(
    ("track", "said"),
    [
        (b"\0\x3c\x40", "running status without a status"),
        (b"\0\xff\1\1x\0\x3c\x40", "running status without a status"),
        (b"\0\x90\x80\x40", "data byte over 127"),
        (b"\0\xf4", "status byte 0xf4"),
        (b"\0\xff\1\x09xx", "longer than its track"),
        (b"\0\x90\x3c", "ends within an event"),
        (b"\xff" * 3_000_000, "an integer of more than 4 bytes"),
        (b"\0\xff\1" + b"\xff" * 3_000_000, "an integer of more than 4 bytes"),
    ],
)
def test_damaged_tracks_are_named_at_once(track: bytes, said: str) -> None:
    start = time.process_time()
    with pytest.raises(MediaError, match=said):
        read_notes(smf([track]))
    assert time.process_time() - start < 1, "linear"
    with pytest.raises(MediaError, match="too large"):
        read_notes(smf([bytes(1 << 23)]))


@needs_abc2midi
def test_music_without_note_letters_at_the_start_of_a_line_or_at_all(tmp_path: Path) -> None:
    drums = f"X:1\nT:Drums\n{HEAD}K:C\n%%MIDI drum dzdz 38 38\n%%MIDI drumon\nz8|z8|\n\n"
    macro = f"X:2\nT:Macro\n{HEAD}m:H=A/G/F/G/\nK:C\nH H|\n\n"
    repeat = f"X:3\nT:Repeat\n{HEAD}K:C\n|:CDEF GAB\nA:|\n\n"
    double = f"X:4\nT:Double\n{HEAD}K:C\n|:CDEF GAB\nc::d\ne:|\n\n"
    instruction = f"X:5\nT:Instruction\n{HEAD}I:MIDI transpose 12\nK:C\nCDEF|\n\n"
    (tmp_path / "in.abc").write_text(drums + macro + repeat + double + instruction)
    report = make_pairs(tmp_path / "in.abc", tmp_path / "out", test_share=0)
    assert (report.pairs["train"], report.skipped) == (5, {})
    pitches = {
        path.name.split("-")[0]: [note.pitch for note in read_notes(path.read_bytes())]
        for path in (tmp_path / "out/train").glob("*.mid")
    }
    assert pitches == {
        "drums": [38] * 4,
        "macro": [69, 67, 65, 67] * 2,
        "repeat": [60, 62, 64, 65, 67, 69, 71, 69] * 2,
        "double": [60, 62, 64, 65, 67, 69, 71, 72] * 2 + [74, 76] * 2,
        "instruction": [72, 74, 76, 77],
    }


def test_macros_are_replaced_by_what_they_stand_for() -> None:
    [tune] = split_collection(
        b"X:1\nT:~G2\nm: ~G2 = A/G/F/G/\nm:~n3=n<o/2m/2 n\nm:H=CDE\nK:C\n~G2 ~B3 ~c'3 ~C,3 H ~D2| % ~G2\nw:H la\n"
    )
    music = "A/G/F/G/ B<c/2A/2 B c'<d'/2b/2 c' C,<D,/2B,,/2 C, CDE ~D2|"
    assert tidy(tune).decode() == f"X:1\nK:C\n{music}\n"
    assert tidy(tune, "all").decode() == f"X:1\nT:~G2\nK:C\n{music} % A/G/F/G/\nw:H la\n"
    doubling = "".join(f"m:{chr(72 + step)}={chr(73 + step) * 9}\n" for step in range(14))
    [tune] = split_collection(f"X:1\n{doubling}K:C\nH|\n".encode())
    with pytest.raises(MediaError, match="ABC macros too long"):
        tidy(tune)


def test_the_header_of_a_file_is_part_of_each_tune() -> None:
    header = "%abc-2.1\nH:history\nL:1/16\nm:~G2=A/G/F/G/\n%%MIDI program 5\n"
    tunes = split_collection(f"{header}\nX:1\nK:C\n~G2|\n\nX:2\nL:1/4\nK:C\nD|\n".encode())
    for tune, rest in zip(tunes, ("K:C\nA/G/F/G/|\n", "L:1/4\nK:C\nD|\n"), strict=True):
        assert tidy(tune).decode() == "X:1\nL:1/16\n%%MIDI program 5\n" + rest
    [tune] = split_collection(b"A book of tunes\nL: is for length\n\nX:1\nK:C\nC|\n")
    assert tidy(tune) == b"X:1\nK:C\nC|\n", "text about the collection"


@needs_abc2midi
def test_abc2midi_converts_the_notes() -> None:
    midi_file, complaint = abc_to_midi(f"X:1\n{HEAD}Q:1/4=120\nK:C\nC2 ^D4 c2|\n".encode())
    assert [note.pitch for note in read_notes(midi_file)] == [60, 63, 72]
    assert [note.onset for note in read_notes(midi_file)] == pytest.approx([0, 0.5, 1.5], abs=0.002)
    assert not complaint
    assert abc_to_midi(f'X:1\n{HEAD}K:C\n"2nonsense"C8-|\n'.encode()).complaint
    for wrong in (b"", b"hello", b"X:1\nABC|\n", b"\0\xff"):
        with pytest.raises(MediaError, match="abc2midi rejects it"):
            abc_to_midi(wrong)


@needs_abc2midi
def test_pairs(tmp_path: Path, collection: Path) -> None:
    report = make_pairs(collection, tmp_path / "out", test_share=0.4)
    assert (report.collections, report.tunes) == (2, 7)
    assert sum(report.pairs.values()) == 4
    assert report.complaints == 1
    assert any("X:6 no key (No valid K: field" in line for line in report.first_skipped)
    assert report.skipped == {
        "empty tune": 1,
        "abc2midi rejects it": 1,
        "no .abc file": 1,
        "no ABC tune": 1,
        "copy": 1,
        "tune without a note": 1,
    }
    for side, count in report.pairs.items():
        files = list((tmp_path / "out" / side).glob("*")) if count else []
        assert len(files) == 2 * count
        for path in files:
            if path.suffix == ".abc":
                assert path.with_suffix(".mid").read_bytes() == abc_to_midi(path.read_bytes()).midi
    roads = list((tmp_path / "out").glob("*/long-road-*.abc"))
    assert len(roads) == 2
    assert roads[0].parent == roads[1].parent, "settings of a title are on one side"
    source = PairSource(tmp_path / "out", "abc&mid", BGPTConfig(patch_length=64), 64, split="all")
    assert len(source.paths) == 8


@needs_abc2midi
def test_equal_music_is_skipped_and_strict_skips_complaints(tmp_path: Path, collection: Path) -> None:
    spelled = f"X:1\nT:Spelled\n{HEAD}K:C\nCDE F G A B c|\n"
    (collection / "zz.abc").write_text(spelled)
    report = make_pairs(collection, tmp_path / "out", strict=True)
    assert report.skipped["sounds as an earlier tune"] == 1
    assert report.skipped["abc2midi reports an error"] == 1
    assert sum(report.pairs.values()) == 3


@needs_abc2midi
def test_a_second_run_converts_nothing(tmp_path: Path, collection: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make_pairs(collection, tmp_path / "out")
    monkeypatch.setattr("bgpt_fast.tasks.music.pairs.abc_to_midi", None)
    assert make_pairs(collection, tmp_path / "out") == first
    with pytest.raises(FileExistsError, match="same options"):
        make_pairs(collection, tmp_path / "out", fields="all")


@needs_abc2midi
def test_deleted_pairs_are_made_again_and_changed_ones_named(tmp_path: Path, collection: Path) -> None:
    first = make_pairs(collection, tmp_path / "out")
    files = {path: path.read_bytes() for path in (tmp_path / "out").glob("*/*")}
    lost = list(files)[::3]
    assert lost
    for path in lost:
        path.unlink()
    assert make_pairs(collection, tmp_path / "out") == first
    assert {path: path.read_bytes() for path in (tmp_path / "out").glob("*/*")} == files
    lost[0].write_bytes(files[lost[0]][:-1] + b"?")
    with pytest.raises(FileExistsError, match=f"{lost[0].name}: expected the file as an earlier run wrote it"):
        make_pairs(collection, tmp_path / "out")


def fake_abc2midi(folder: Path, body: str) -> str:
    program = folder / "abc2midi"
    program.write_text(f"#!{sys.executable}\n{body}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return str(program)


def test_a_program_that_crashes_hangs_or_writes_nonsense(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crashes = fake_abc2midi(tmp_path, "import os; os.abort()")
    with pytest.raises(MediaError, match="abc2midi crashed: signal 6"):
        abc_to_midi(b"X:1", crashes)
    hangs = fake_abc2midi(tmp_path, "import time; time.sleep(60)")
    monkeypatch.setattr("bgpt_fast.tasks.music.abc2midi._SECONDS", 0.2)
    with pytest.raises(MediaError, match="took too long"):
        abc_to_midi(b"X:1", hangs)
    monkeypatch.undo()
    fake_abc2midi(tmp_path, "import sys; open(sys.argv[3], 'wb').write(b'nonsense')")
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "in.abc").write_text(tune(1, "One", "C8|"))
    report = make_pairs(tmp_path / "in.abc", tmp_path / "out")
    assert report.skipped == {"no MIDI file": 1}


def test_without_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: CommandLine) -> None:
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    (tmp_path / "a.abc").write_text(tune(1, "One", "C8|"))
    cli.fails("apt install abcmidi", "data", "music", tmp_path / "a.abc", "--output", tmp_path / "out", code=1)
    assert not (tmp_path / "out").exists()


def test_wrong_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="test_share"):
        make_pairs(tmp_path, tmp_path / "out", test_share=2)
    with pytest.raises(ValueError, match="fields"):
        make_pairs(tmp_path, tmp_path / "out", fields="some")  # type: ignore[arg-type]
    fake_abc2midi(tmp_path, "")
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    (tmp_path / "in").mkdir()
    with pytest.raises(DataError, match=r"expected \.abc files"):
        make_pairs(tmp_path / "in", tmp_path / "out")


@needs_abc2midi
def test_the_irish_tunes(tmp_path: Path, cli: CommandLine) -> None:
    pytest.importorskip("music21")
    folders = irish_collections()
    assert len(folders) == 3
    [first] = sorted(Path(folders[0]).glob("0001-0050.abc"))
    output = cli.run("data", "music", first, "--output", tmp_path / "out").out
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["tunes"] == 50
    assert sum(report["pairs"].values()) == 50
    assert "mean bytes of ABC" in output
