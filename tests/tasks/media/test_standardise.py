"""`data media`: folders become data sets without leakage; runs go on where they stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from support.cli import CommandLine
from support.media import png, sound
from support.paths import ROOT

from bgpt_fast.data import DataError, LabelledSource
from bgpt_fast.data.labelled import label_of
from bgpt_fast.files import FileContentError
from bgpt_fast.tasks.media import MediaOptions, Plan, standardise
from bgpt_fast.tasks.media.audio import write_wav
from bgpt_fast.tasks.media.output import JOURNAL, OutputFolder
from bgpt_fast.tasks.media.pool import ordered_map
from bgpt_fast.tasks.media.source import Standardised, read_and_standardise

HALF = Plan(labels="folder", test_share=0.5)


@pytest.fixture
def media(tmp_path: Path) -> Path:
    """Twelve images, six recordings of over two seconds and four texts in two folders."""
    folder = tmp_path / "in"
    for label in ("cat", "dog"):
        (folder / label).mkdir(parents=True)
        shift = 100 * (label == "dog")
        for index in range(6):
            (folder / label / f"{index}.png").write_bytes(png(index + shift))
        for index in range(3):
            (folder / label / f"said{index}.flac").write_bytes(sound(index + shift, 34_000))
        for index in range(2):
            (folder / label / f"{index}.txt").write_text(f"{label} {index}")
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def test_kinds_labels_and_splits(tmp_path: Path, media: Path) -> None:
    report = standardise(media, tmp_path / "out", plan=HALF, workers=1)
    assert (report.sources, report.used, report.skipped) == (22, 22, {})
    files = {name: count for name, count in report.files.items() if count}
    assert {name.split("/")[0] for name in files} == {"train", "test"}
    assert sum(count for name, count in files.items() if name.endswith("image")) == 12
    assert sum(count for name, count in files.items() if name.endswith("audio")) == 6 * 2
    assert sum(count for name, count in files.items() if name.endswith("text")) == 4
    names = [name for name in tree(tmp_path / "out") if name.count("/") == 2]
    assert len(names) == 28
    assert {label_of(name) for name in names} == {f"{a}.{e}" for a in ("cat", "dog") for e in ("bmp", "wav", "txt")}
    assert json.loads((tmp_path / "out/report.json").read_text())["labels"] == report.labels


def check_sides(names: list[tuple[str, str]], count: int) -> None:
    """Each of `count` groups of (group, name) is on one side of the split, and either side has one."""
    sides = {(group, name.split("/")[0]) for group, name in names}
    assert len(sides) == len({group for group, _ in sides}) == count
    assert {side for _, side in sides} == {"train", "test"}, "the split is none otherwise"


def test_clips_of_one_recording_share_a_split(tmp_path: Path, media: Path) -> None:
    standardise(media, tmp_path / "out", plan=HALF, workers=1)
    names = [name for name in tree(tmp_path / "out") if name.endswith(".wav")]
    check_sides([(name.split("/")[2].rpartition("-")[0], name) for name in names], 6)


def test_copies_and_equal_outputs_are_skipped(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for index in range(8):
        (folder / f"{index}.png").write_bytes(png(index, (32, 32)))
        (folder / f"{index}-copy.png").write_bytes(png(index, (32, 32)))
        (folder / f"{index}.tiff").write_bytes(png(index, (32, 32), file_format="TIFF"))
    report = standardise(folder, tmp_path / "out", plan=Plan(test_share=0.5), workers=1)
    assert report.skipped == {"copy": 8, "same bytes as an earlier output": 8}
    contents = [content for name, content in tree(tmp_path / "out").items() if name.endswith(".bmp")]
    assert len(contents) == len(set(contents)) == 8


def test_bad_media_is_skipped_and_named(tmp_path: Path, media: Path) -> None:
    (media / "cmyk.jpg").write_bytes(png(0, mode="CMYK", file_format="JPEG"))
    (media / "cut.wav").write_bytes(sound(0, 9000, format="WAV")[:3000])
    (media / "cut.png").write_bytes(png(0)[:200])
    (media / "empty.ogg").write_bytes(b"")
    (media / "noise").write_bytes(bytes(range(256)))
    (media / "latin.txt").write_bytes(b"caf\xe9")
    (media / "odd\udcff.txt").write_bytes(b"fine")
    (media / "gone.png").symlink_to("nowhere")
    report = standardise(media, tmp_path / "out", plan=HALF, workers=1)
    assert report.skipped == {
        "CMYK image": 1,
        "audio cut short": 1,
        "damaged image": 1,
        "empty": 1,
        "no image, audio or text": 1,
        "text that is not UTF-8": 1,
        "vanished": 1,
    }
    assert report.used == 23
    assert any("cut.wav" in line and "bytes of" in line for line in report.first_skipped)


def test_a_second_run_converts_nothing_and_reports_the_same(
    tmp_path: Path, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (media / "cut.png").write_bytes(png(0)[:200])
    first = standardise(media, tmp_path / "out", plan=HALF, workers=1)
    before = tree(tmp_path / "out")
    monkeypatch.setattr("bgpt_fast.tasks.media.source.standard_files", None)  # converting a source again fails
    assert standardise(media, tmp_path / "out", plan=HALF, workers=1) == first
    assert tree(tmp_path / "out") == before


def test_a_stopped_run_resumes(tmp_path: Path, media: Path) -> None:
    standardise(media, tmp_path / "whole", plan=HALF, workers=1)

    class Stopped(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done == 9:
            raise Stopped

    with pytest.raises(Stopped):
        standardise(media, tmp_path / "out", plan=HALF, workers=1, progress=stop)
    assert 9 <= len((tmp_path / "out" / JOURNAL).read_text().splitlines()) < 22
    with open(tmp_path / "out" / JOURNAL, "a") as journal:
        journal.write('{"key": "torn')
    standardise(media, tmp_path / "out", plan=HALF, workers=1)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_deleted_files_are_made_again(tmp_path: Path, media: Path) -> None:
    silence = write_wav(np.full(8000, 128, np.uint8), 8000)
    for name in ("cat/a.wav", "dog/b.wav"):  # two contents, one clip
        (media / name).write_bytes(silence + b"LIST\4\0\0\0" + name.encode()[-5:-1])
    whole = standardise(media, tmp_path / "out", plan=HALF, workers=1)
    assert whole.skipped == {"same bytes as an earlier output": 1}
    before = tree(tmp_path / "out")
    lost = [name for name in before if name.endswith((".bmp", "00001.wav")) or "a-" in name]
    assert len(lost) > 12
    for name in lost:
        (tmp_path / "out" / name).unlink()
    (media / "cat/0new.wav").write_bytes(silence)  # its clip is still that of a.wav, which comes later
    again = standardise(media, tmp_path / "out", plan=HALF, workers=1)
    assert (again.files, again.skipped) == (whole.files, {"same bytes as an earlier output": 2})
    after = tree(tmp_path / "out")
    for files in (before, after):
        del files["report.json"], files[JOURNAL]
    assert after == before
    assert standardise(media, tmp_path / "out", plan=HALF, workers=1) == again


def test_a_made_file_that_was_changed_is_named(tmp_path: Path, media: Path) -> None:
    standardise(media, tmp_path / "out", plan=HALF, workers=1)
    changed = next((tmp_path / "out").glob("*/image/*.bmp"))
    status = changed.stat()
    content = bytearray(changed.read_bytes())
    content[-1] ^= 1
    changed.write_bytes(content)
    os.utime(changed, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(FileExistsError, match=f"{changed.name}: expected the file as an earlier run wrote it"):
        standardise(media, tmp_path / "out", plan=HALF, workers=1)
    assert changed.read_bytes() == content
    changed.unlink()
    standardise(media, tmp_path / "out", plan=HALF, workers=1)
    assert changed.read_bytes()[:-1] == content[:-1]


def test_a_source_that_was_changed_is_read_again_and_only_it(
    tmp_path: Path, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: str, options: MediaOptions) -> Standardised:
        paths.append(Path(path).name)
        return read_and_standardise(path, options)

    paths: list[str] = []
    monkeypatch.setattr(sys.modules[standardise.__module__], "read_and_standardise", read)
    (media / "notes.txt").write_bytes(b"the first version of it")
    whole = standardise(media, tmp_path / "out", plan=HALF, workers=1)
    assert len(paths) == whole.sources
    paths.clear()
    standardise(media, tmp_path / "out", plan=HALF, workers=1)
    assert not paths
    status = (media / "notes.txt").stat()
    (media / "notes.txt").write_bytes(b"another version of that")
    os.utime(media / "notes.txt", ns=(status.st_atime_ns, status.st_mtime_ns))  # as `touch -r` sets it back
    os.chmod(media / "cat" / "0.png", 0o600)
    standardise(media, tmp_path / "out", plan=HALF, workers=1)
    assert sorted(paths) == ["0.png", "notes.txt"]
    texts = {path.read_bytes() for path in (tmp_path / "out").glob("*/text/*.txt")}
    assert b"another version of that" in texts
    paths.clear()
    standardise(media, tmp_path / "out", plan=HALF, workers=1)
    assert not paths, "the new times are recorded"


@pytest.mark.parametrize("line", ["7", "[]", "{}", '{"key": "k", "files": 1}', "no JSON", "[" * 10_000])
def test_a_line_of_the_journal_that_is_no_record_is_named(tmp_path: Path, media: Path, line: str) -> None:
    standardise(media, tmp_path / "out", plan=HALF, workers=1)
    journal = tmp_path / "out" / JOURNAL
    lines = journal.read_text().splitlines()
    journal.write_text("\n".join([*lines[:2], line, *lines[2:]]) + "\n")
    with pytest.raises(FileContentError, match=r"sources.jsonl, line 3: "):
        standardise(media, tmp_path / "out", plan=HALF, workers=1)


def test_new_sources_are_added(tmp_path: Path, media: Path) -> None:
    standardise(media, tmp_path / "out", plan=HALF, workers=1)
    before = tree(tmp_path / "out")
    (media / "cat/new.png").write_bytes(png(77))
    (media / "dog/copy.png").write_bytes(png(0))
    report = standardise(media, tmp_path / "out", plan=HALF, workers=1)
    assert report.skipped == {"copy with another label": 1}
    after = tree(tmp_path / "out")
    [new] = after.keys() - before.keys()
    assert "cat_new-" in new


def test_other_options_and_foreign_folders_are_refused(tmp_path: Path, media: Path) -> None:
    standardise(media, tmp_path / "out", plan=HALF, workers=1)
    with pytest.raises(FileExistsError, match="same options"):
        standardise(media, tmp_path / "out", MediaOptions(image_size=(8, 8)), plan=HALF, workers=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years")
    with pytest.raises(FileExistsError, match="new or empty folder"):
        standardise(media, tmp_path / "mine", workers=1)
    assert tree(tmp_path / "mine") == {"thesis.txt": b"years"}


def test_a_file_in_the_way_is_not_replaced(tmp_path: Path) -> None:
    with OutputFolder(tmp_path, "test", {}, {}) as folder:
        (tmp_path / "a.txt").write_text("mine")
        with pytest.raises(FileExistsError, match="no run here wrote"):
            folder.add({"key": "1", "files": {}}, [("a.txt", b"ours")])
        with pytest.raises(BlockingIOError, match="another run"), OutputFolder(tmp_path, "test", {}, {}):
            pass
    assert (tmp_path / "a.txt").read_text() == "mine"


def test_several_processes_give_the_same_files(tmp_path: Path, media: Path) -> None:
    for index in range(250):
        (media / f"{index}.txt").write_text(f"number {index}")
    one = standardise(media, tmp_path / "one", plan=HALF, workers=1)
    two = standardise(media, tmp_path / "two", plan=HALF, workers=2)
    assert one == two
    both = [tree(tmp_path / name) for name in ("one", "two")]
    assert both[0] == both[1]


def _kills_at_seven(item: int) -> int:
    if item == 7:
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGKILL)
    return -item


@pytest.mark.slow
def test_a_crash_of_a_process_fails_one_item_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bgpt_fast.tasks.media.pool._FEW", 0)
    report_json = list(ordered_map(_kills_at_seven, range(20), workers=2, crashed=lambda item: 1000 + item))
    assert report_json == [1007 if item == 7 else -item for item in range(20)]


def test_test_inputs_are_the_test_set(tmp_path: Path, media: Path) -> None:
    held_out = tmp_path / "held-out"
    held_out.mkdir()
    (held_out / "a.png").write_bytes(png(500))
    (held_out / "b.png").write_bytes(png(0))  # as cat/0.png
    report = standardise(media, tmp_path / "out", test_inputs=held_out, workers=1)
    assert report.files["test/image"] == 2
    assert report.files["train/image"] == 11
    assert report.skipped == {"copy": 1}
    with pytest.raises(DataError, match="earlier run put into train"):
        standardise(media, tmp_path / "out", test_inputs=media / "cat/1.png", workers=1)


def test_groups_share_a_split(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for speaker in range(8):
        for take in range(4):
            (folder / f"speaker{speaker}-{take}.txt").write_text(f"{speaker} {take}")
    standardise(folder, tmp_path / "out", plan=Plan(test_share=0.5, group=r"speaker(\d+)-"), workers=1)
    names = [name for name in tree(tmp_path / "out") if name.endswith(".txt")]
    check_sides([(name.split("speaker")[1][0], name) for name in names], 8)


def test_documents_of_one_file_have_independent_splits(tmp_path: Path) -> None:
    texts = [f"{number} one two three\nfour five six {number}" for number in range(20)]
    (tmp_path / "cookies").write_text("\n%\n".join([*texts, texts[0]]))
    options = MediaOptions(text_separator="\\n%\\n", text_bytes=24)
    report = standardise(tmp_path / "cookies", tmp_path / "out", options, Plan(test_share=0.5), workers=1)
    assert report.skipped == {"same bytes as an earlier output": 2}
    assert sum(report.files.values()) == 40
    names = []
    for name, content in tree(tmp_path / "out").items():
        if name.endswith(".txt"):
            number = (content.split() if content[:1].isdigit() else content.split()[::-1])[0].decode()
            names.append((number, name))
    check_sides(names, 20)


def test_label_rules(tmp_path: Path) -> None:
    folder = tmp_path / "in" / "big_cats"
    folder.mkdir(parents=True)
    (folder / "lion_1_2.txt").write_text("lion")
    (folder / "plain.txt").write_text("plain")
    expected = {
        "name": {"lion_1_2", "plain"},
        "folder": {"big-cats_lion_1_2", "big-cats_plain"},
        "none": {"lion-1-2", "plain"},
    }
    for labels, names in expected.items():
        plan = Plan(labels=labels, test_share=0)  # type: ignore[arg-type]
        standardise(folder, tmp_path / labels, plan=plan, workers=1)
        assert {path.stem.rpartition("-")[0] for path in (tmp_path / labels / "train/text").iterdir()} == names
    other = tmp_path / "in" / "big-cats"
    other.mkdir()
    (other / "x.txt").write_text("x")
    with pytest.raises(ValueError, match="got 'big-cats' for both"):
        standardise(tmp_path / "in", tmp_path / "clash", plan=Plan(labels="folder"), workers=1)


def many(folder: Path, counts: dict[str, int]) -> None:
    for label, count in counts.items():
        (folder / label).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            (folder / label / f"{index}.txt").write_text(f"{label} {index}")


def test_every_label_has_its_share_of_test_files(tmp_path: Path, cli: CommandLine) -> None:
    counts = {"one": 1, "two": 2, "ten": 10, "forty": 40}
    many(tmp_path / "in", counts)
    for index in range(3):  # the lowest digests of the label "two" may be those of damaged files
        (tmp_path / f"in/two/bad{index}.png").write_bytes(png(index)[:99])
    plan = Plan(labels="folder", test_share=0.1, stratify=True)
    report = standardise(tmp_path / "in", tmp_path / "out", plan=plan, workers=1)
    tests = {label: number.get("test", 0) for label, number in report.labels.items()}
    assert tests == {"one": 0, "two": 1, "ten": 1, "forty": 4}
    assert (report.without_test, report.without_train) == (["one.txt"], [])

    class Stopped(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done == 20:
            raise Stopped

    with pytest.raises(Stopped):
        standardise(tmp_path / "in", tmp_path / "other", plan=plan, workers=1, progress=stop)
    standardise(tmp_path / "in", tmp_path / "other", plan=plan, workers=1)
    assert tree(tmp_path / "other") == tree(tmp_path / "out"), "a stopped run resumes"
    before = set(tree(tmp_path / "out"))
    for path in (tmp_path / "out/test/text").iterdir():
        path.unlink()
    many(tmp_path / "in", {"one": 4, "ten": 30})
    words = ["data", "media", tmp_path / "in", "--output", tmp_path / "out", "--workers", "1", "--labels", "folder"]
    assert "without" not in cli.run(*words, "--stratify").out
    after = set(tree(tmp_path / "out"))
    assert before <= after, "made again in their split"
    tests = {label: sum(f"test/text/{label}_" in name for name in after) for label in counts}
    assert tests == {"one": 1, "two": 1, "ten": 3, "forty": 4}
    other = [*words[:4], tmp_path / "third", *words[5:]]
    assert "classes without test files: " in cli.run(*other).out
    for wrong, more in (("no test_inputs", {"test_inputs": tmp_path / "in"}), ("no text_separator", {})):
        options = None if more else MediaOptions(text_separator="%")
        with pytest.raises(ValueError, match=f"stratify: expected {wrong}"):
            standardise(tmp_path / "in", tmp_path / "wrong", options, plan, **more)  # type: ignore[arg-type]


def test_labels_are_composed_and_keep_their_marks(tmp_path: Path) -> None:
    names = {"cafe\u0301": "café", "caf\u00e9": "café", "हिन्दी": "हिन्दी", "ไทยที่": "ไทยที่", "naïve?": "naïve"}
    for number, name in enumerate(names):
        (tmp_path / f"in{number}" / name).mkdir(parents=True)
        (tmp_path / f"in{number}" / name / "x.txt").write_text(f"text {number}")
    inputs = [tmp_path / f"in{number}" for number in range(len(names))]
    report = standardise(inputs, tmp_path / "out", plan=Plan(labels="folder", test_share=0), workers=1)
    assert report.labels == {label: {"train": 2 if label == "café" else 1} for label in sorted(set(names.values()))}
    assert label_of("cafe\u0301_x.txt") == label_of("caf\u00e9_x.txt") == "caf\u00e9.txt"
    (tmp_path / "in0/cafe").mkdir()
    (tmp_path / "in0/cafe/y.txt").write_text("another label")
    assert len(standardise(inputs, tmp_path / "out", plan=Plan(labels="folder", test_share=0), workers=1).labels) == 5


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: MediaOptions(kinds=()),
        lambda: MediaOptions(image_size=(0, 3)),
        lambda: MediaOptions(text_bytes=3),
        lambda: MediaOptions(clip_seconds=-1),
        lambda: Plan(test_share=1.5),
        lambda: Plan(group="("),
        lambda: Plan(group="a", stratify=True),
        lambda: Plan(labels="x"),  # type: ignore[arg-type]
    ],
)
def test_wrong_options_are_named(wrong: object) -> None:
    with pytest.raises(ValueError, match="expected"):
        wrong()  # type: ignore[operator]


def test_inputs_without_usable_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="got none"):
        standardise(tmp_path, tmp_path / "out")
    with pytest.raises(DataError, match="nowhere"):
        standardise(tmp_path / "nowhere", tmp_path / "out")


def test_the_command_writes_files_for_a_classifier(
    tmp_path: Path, media: Path, cli: CommandLine, tiny_config: object
) -> None:
    (media / "cut.wav").write_bytes(sound(0, 9000, format="WAV")[:3000])
    words = ["data", "media", media, "--output", tmp_path / "out", "--labels", "folder", "--workers", "1"]
    output = cli.run(*words, "--audio", "both", "--image-size", "8", "8", "--test-share", "0.3").out
    assert "1 audio cut short" in output
    assert "train/image" in output
    source = LabelledSource(tmp_path / "out/train", tiny_config, 64, split="all")  # type: ignore[arg-type]
    assert set(source.labels) == {f"{label}.{kind}" for label in ("cat", "dog") for kind in ("bmp", "txt", "wav")}
    images = list((tmp_path / "out").glob("*/image/*.bmp"))
    assert len(images) == 12 + 12
    assert all(path.stat().st_size == 54 + 192 for path in images)
    cli.fails("outside of the output folder", "data", "media", media, "--output", tmp_path)
    cli.fails("expected a new or empty folder", "data", "media", media / "cat", "--output", media / "dog")


def run_script(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    (folder / "script.py").write_text(text)
    return subprocess.run([sys.executable, "script.py"], cwd=folder, capture_output=True, text=True, timeout=100)


@pytest.mark.slow
def test_the_example_in_the_guide_and_a_script_without_main_guard(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for index in range(256):
        (tmp_path / f"photos/{index}.png").write_bytes(png(index, (4, 4)))
    (tmp_path / "photo.jpg").write_bytes(png(0, file_format="JPEG"))
    guide = (ROOT / "docs/media.md").read_text()
    example = guide.split("```python\n")[1].split("```")[0].replace("photos/", "photos")
    guard = next(line for line in example.splitlines(keepends=True) if line.startswith("if __name__"))
    done = run_script(tmp_path, example)
    assert done.returncode == 0, done.stderr
    assert "decodes=True" in done.stdout
    shutil.rmtree(tmp_path / "media")
    head, _, body = example.partition(guard)
    report = "options, plan, workers=2)"
    done = run_script(tmp_path, head + textwrap.dedent(body).replace("options, plan)", report))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("bgpt_fast.tasks.media.pool.WorkerStartError: worker processes end")
    assert 'if __name__ == "__main__":' in done.stderr
    assert "another run writes there" not in done.stderr
