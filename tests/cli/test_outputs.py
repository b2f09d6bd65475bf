"""`bgpt-fast generate` and `convert`: files complete or absent, made once, never over others, and all of it told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from support.cli import CommandLine, read_report

from bgpt_fast import BGPT, BGPTConfig, Generator, Prompt
from bgpt_fast.cli.outputs import JOURNAL, OutputFolder
from bgpt_fast.data import PairSource
from bgpt_fast.folder_lock import FolderInUseError

CONFIG = BGPTConfig(patch_size=8, patch_length=8, hidden_size=16, patch_num_layers=1, byte_num_layers=1, num_heads=2)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A random model that ends about half of its files."""
    torch.manual_seed(3)
    model = BGPT(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5)
        base = model.byte_level_decoder.base.transformer
        base.ln_f.bias += 2 * base.wte.weight[256] / base.wte.weight[256].square().sum()
    model.save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in files if path.name not in (JOURNAL, "report.json")
    }


def test_generate_resumes_after_a_stop(tmp_path: Path, checkpoint: Path, cli: CommandLine) -> None:
    (tmp_path / "start").write_bytes(b"RIFF")
    out = tmp_path / "out"
    words = ["generate", "--checkpoint", checkpoint, "--ext", "wav", "--count", "12", "--seed", "4"]
    words += ["--prompt", tmp_path / "start", "--output", out]
    assert "12 files generated" in cli.text(*words)
    report_json = read_report(out)
    whole = contents(out)
    assert list(whole) == [f"{index:05d}.wav" for index in range(12)]
    assert (report_json["made_now"], report_json["there_already"]) == (12, 0)
    assert report_json["ended_by"]["model"] + report_json["ended_by"]["context"] == 12
    assert min(report_json["ended_by"].values()) > 0
    for file in report_json["files"]:
        assert file["finished"] == (file["ended_by"] == "model")
        assert file["bytes"] == len(whole[file["path"]]) == file["new_bytes"] + 4
        assert file["source"].endswith("start")

    # What a kill leaves: a file without its line, a line cut in the middle, a file that is gone.
    lines = (out / JOURNAL).read_bytes().splitlines(keepends=True)
    (out / JOURNAL).write_bytes(b"".join(lines[:9]) + lines[9][:7])
    (out / "00003.wav").unlink()
    (out / ".00004.wav.0123456789abcdef.part").write_bytes(b"RIF")
    assert "existed already and were not generated again" in cli.text(
        *words, "--max-batch", "2", "--max-memory-mb", "50", "--batch-invariant"
    )
    assert contents(out) == whole
    assert read_report(out)["made_now"] in (4, 5), (
        "12 less 8 in the journal, and the one that is gone if it was among them"
    )
    cli.run(*words)
    assert read_report(out)["made_now"] == 0


def test_other_files_are_never_replaced_without_a_flag(tmp_path: Path, checkpoint: Path, cli: CommandLine) -> None:
    out = tmp_path / "out"
    words = ["generate", "--checkpoint", checkpoint, "--count", "2", "--output", out]
    cli.run(*words, "--seed", "1")
    first = contents(out)
    cli.fails("this one was made by other options", *words, "--seed", "2")
    assert contents(out) == first
    (out / JOURNAL).write_bytes((out / JOURNAL).read_bytes().splitlines(keepends=True)[0])
    (out / "00001.bin").write_bytes(b"mine")
    cli.fails("00001.bin: the path holds another file", *words, "--seed", "1")
    assert (out / "00001.bin").read_bytes() == b"mine"
    cli.run(*words, "--seed", "2", "--overwrite")
    assert contents(out) != first
    assert not list(out.glob(".*"))


def test_a_generated_file_that_was_changed_is_named(tmp_path: Path, checkpoint: Path, cli: CommandLine) -> None:
    out = tmp_path / "out"
    (tmp_path / "start").write_bytes(b"RIFF")
    words = ["generate", "--prompt", tmp_path / "start", "--checkpoint", checkpoint, "--ext", "wav", "--count", "2"]
    words += ["--seed", "4", "--output", out]
    cli.run(*words)
    before = contents(out)
    status = (out / "00001.wav").stat()
    changed = bytes([before["00001.wav"][0] ^ 1]) + before["00001.wav"][1:]
    (out / "00001.wav").write_bytes(changed)
    os.utime(out / "00001.wav", ns=(status.st_atime_ns, status.st_mtime_ns))
    cli.fails("00001.wav: expected the file as it was generated, got one that was changed since", *words)
    assert contents(out)["00001.wav"] == changed, "not lost either"
    (out / "00001.wav").unlink()
    cli.run(*words)
    assert contents(out) == before
    assert read_report(out)["made_now"] == 1


@pytest.mark.parametrize(
    ("line", "got"),
    [
        ("5", "expected a record, got '5'"),
        ("null", "expected a record, got 'None'"),
        ('["00000.bin"]', "expected a record"),
        ("{}", "expected a record with 'path', got none"),
        ('{"path": "00000.bin", "written": 1, "bytes": 3}', "expected a record with 'written', got int"),
        ('{"path": "00000.bin", "written": true, "bytes": true}', "expected a record with 'bytes', got bool"),
        ("no JSON", "expected JSON"),
        ("[" * 10_000, "nested"),
    ],
)
def test_a_line_that_is_no_record_is_named(
    tmp_path: Path, checkpoint: Path, cli: CommandLine, line: str, got: str
) -> None:
    out = tmp_path / "out"
    words = ["generate", "--checkpoint", checkpoint, "--count", "1", "--output", out]
    cli.run(*words)
    with open(out / JOURNAL, "a") as journal:
        journal.write(line + "\n")
    before = contents(out)
    cli.fails(got, *words)
    cli.fails("made.jsonl, line 3", *words)
    assert contents(out) == before


def test_a_failed_write_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = OutputFolder(tmp_path / "out", {"a": (1, 2)}, "files")

    def full(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="disk full"):
            folder.add("x/y.bin", b"abc", {"bytes": 3, "new_bytes": 3, "ended_by": "model", "prompt": "p"}, write=True)
    assert not folder.has("x/y.bin", "p")
    assert list((tmp_path / "out/x").iterdir()) == []
    folder.add("x/y.bin", b"abc", {"bytes": 3, "new_bytes": 3, "ended_by": "model", "prompt": "p"}, write=True)
    with pytest.raises(FolderInUseError, match=f"out: process {os.getpid()} on"):
        OutputFolder(tmp_path / "out", {"a": (1, 2)}, "files")
    folder.close()
    again = OutputFolder(tmp_path / "out", {"a": (1, 2)}, "files")
    assert again.has("x/y.bin", "p")
    assert not again.has("x/y.bin", "of another prompt")


def test_wrong_generate_options_are_named(tmp_path: Path, checkpoint: Path, cli: CommandLine) -> None:
    (tmp_path / "long.txt").write_bytes(bytes(56))
    words = ["generate", "--checkpoint", checkpoint, "--output", tmp_path / "out"]
    for more, message in (
        ([tmp_path / "long.txt"], "long.txt: expected a prompt of fewer than 56 bytes"),
        (["--count", "0"], "--count: expected 1…1,000,000, got 0"),
        (["--max-new-bytes", "-1"], "--max-new-bytes: expected at least 0"),
        (["--top-p", "0"], "--top-p: expected a number over 0"),
        (["--max-memory-mb", "0"], "max_memory: expected at least 1"),
    ):
        cli.fails(message, *words, *more)


@pytest.fixture
def tunes(tmp_path: Path) -> Path:
    folder = tmp_path / "tunes"
    (folder / "below").mkdir(parents=True)
    for index in range(6):
        (folder / f"{index}.abc").write_bytes(b"X:%d" % index)
    (folder / "below/odd[red].abc").write_bytes(b"K:G\nabc")
    (folder / "0.mid").write_bytes(b"MThd")
    (folder / "long.abc").write_bytes(bytes(48))
    (folder / "empty.abc").write_bytes(b"")
    return folder


def test_convert_generates_after_the_source(tmp_path: Path, checkpoint: Path, tunes: Path, cli: CommandLine) -> None:
    out = tmp_path / "out"
    words = ["convert", tunes, "--to", "mid", "--checkpoint", checkpoint, "--output", out]
    assert "2 sources skipped" in cli.text(*words, "--keep-cut")
    report_json = read_report(out)
    outputs = contents(out)
    assert sorted(outputs) == sorted([*(f"{index}.mid" for index in range(6)), "below/odd[red].mid"])
    reasons = {os.path.basename(item["source"]): item["reason"] for item in report_json["skipped"]}
    assert reasons["empty.abc"] == "empty"
    assert reasons["long.abc"] == "over the context: 8 patches with the target's extension, and the context holds 8"
    model = BGPT.from_pretrained(checkpoint, dtype=torch.float32)
    for name, content in outputs.items():
        source = (tunes / name).with_suffix(".abc").read_bytes()
        [alone] = Generator(model).generate([Prompt("mid", source=("abc", source))])
        assert alone.data == content
        assert len(content) <= (CONFIG.patch_length - 1 - 1 - -(-len(source) // 8)) * 8
    assert len(set(outputs.values())) > 1, "it reads its source"


@pytest.mark.parametrize("source", [b"a", b"K:G\nabc|", b"seventeen bytes!!"])
def test_conversion_prompts_equal_training_pairs(tmp_path: Path, checkpoint: Path, source: bytes) -> None:
    """Each byte is the likeliest, teacher-forced on the document that `PairSource` makes of source and result."""
    model = BGPT.from_pretrained(checkpoint, dtype=torch.float32).eval()
    [outputs] = Generator(model).generate([Prompt("mid", source=("abc", source))], max_new_bytes=16)
    (tmp_path / "pair").mkdir()
    (tmp_path / "pair/x.abc").write_bytes(source)
    (tmp_path / "pair/x.mid").write_bytes(outputs.data[:-1] or b"x")
    pairs = PairSource(tmp_path / "pair", "abc->mid", CONFIG, 64, split="eval", eval_share=1.0)
    [batch] = list(pairs.one_pass())
    before = 2 - -len(source) // CONFIG.patch_size
    with torch.no_grad():
        # The first target is patch 1: what follows the source's patches and the target's extension is the target.
        likeliest = model.logits(batch).argmax(-1)[before - 1 :].flatten().tolist()
    assert bytes(likeliest[: len(outputs.data)]) == outputs.data
    assert len(outputs.data) > 3


def test_convert_leaves_out_cut_files_and_resumes(
    tmp_path: Path, checkpoint: Path, tunes: Path, cli: CommandLine
) -> None:
    out = tmp_path / "out"
    words = ["convert", tunes, "--to", "mid", "--checkpoint", checkpoint, "--output", out]
    words += ["--temperature", "1", "--seed", "2", "--max-new-bytes", "20"]
    assert "cut ones left out" in cli.text(*words)
    report_json = read_report(out)
    assert 0 < report_json["left_out"] < 7
    assert {file["path"] for file in report_json["files"] if file["finished"]} == set(contents(out))
    before = contents(out)
    (tunes / "new.abc").write_bytes(b"new")
    cli.run(*words, "--max-batch", "1", "--batch-invariant")
    assert read_report(out)["there_already"] == len(before)
    assert read_report(out)["made_now"] + read_report(out)["left_out"] == 8 - len(before)
    assert before.items() <= contents(out).items()


def test_wrong_convert_options_are_named(tmp_path: Path, checkpoint: Path, tunes: Path, cli: CommandLine) -> None:
    words = ["convert", "--checkpoint", checkpoint, "--output", tmp_path / "out", "--to"]
    (tunes / "0.txt").write_bytes(b"x")
    for name in ("report", "made"):
        (tunes / f"below/{name}.abc").write_bytes(b"x")  # only at the top are these the command's own
        (tmp_path / f"{name}.abc").write_bytes(b"x")
    for more, code, message in (
        (["json", tmp_path / "report.abc"], 2, "report.abc' would become 'report.json', which the command writes"),
        (["jsonl", tmp_path / "made.abc"], 2, "made.abc' would become 'made.jsonl', which the command writes"),
        (["mid", tunes], 2, "would both become '0.mid'"),
        (["mid", tunes, "--from", "abc", "--too-long", "error"], 2, "long.abc: over the context: 8 patches"),
        (["mid", tunes, "--from", "wav"], 2, "expected at least one file to convert, got none"),
        (["../x", tunes], 2, "--to: expected an extension"),
        (["", tunes], 2, "--to: expected an extension"),
        (["mid", tmp_path / "nowhere"], 2, "give files and folders that exist"),
        (["mid"], 2, "expected at least one file to convert, got none"),
    ):
        assert message in cli.run(*words, *more, code=code).err
    assert not (tmp_path / "out").exists()
