"""Damaged checkpoints, options, programs, media and tables: a named error or the same result (RELIABILITY R25)."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from support.cli import CONFIG, MACHINE
from support.hostile import Result, damaged, run

from bgpt_fast import BGPT
from bgpt_fast.checkpoint.save import save_released
from bgpt_fast.cli import train  # noqa: F401  (imported once, before the processes are forked)

MAX_FAILURES = 10


@dataclass
class Kind:
    """Inputs of one kind.

    Args:
        contents: good files by name.
        words: the command for a folder that has one of them, and that file.
        setup: writes what else the command reads into the folder.
        sealed: whether damage that is accepted must not change the result.
    """

    contents: dict[str, bytes]
    words: Callable[[Path, Path], list[object]]
    setup: Callable[[Path], None] = field(default=lambda folder: None)
    sealed: bool = False


def model() -> BGPT:
    torch.manual_seed(0)
    return BGPT(CONFIG)


def with_model(folder: Path) -> None:
    model().save_pretrained(folder)
    (folder / "text.txt").write_bytes(b"some text" * 5)


def scoring(folder: Path, file: Path) -> list[object]:
    checkpoint = file if file.suffix == ".pth" else folder
    return ["evaluate", folder / "text.txt", "--checkpoint", checkpoint, "--json", "--no-baselines"]


def checkpoint_kind(folder: Path) -> Kind:
    with_model(folder)
    save_released(folder / "weights.pth", CONFIG, model().state_dict())
    names = ("model.safetensors", "config.json", "weights.pth")
    return Kind({name: (folder / name).read_bytes() for name in names}, scoring, with_model, sealed=True)


def options_kind(folder: Path) -> Kind:
    options = {
        "data": ["files"], "model": CONFIG.to_dict(), "training": {"steps": 5, "betas": [0.9, 0.95], "device": "cpu"}
    }  # fmt: skip
    contents = {"options.json": json.dumps(options).encode(), "options.yaml": yaml.safe_dump(options).encode()}
    # Data that does not exist, so that no option starts a long training.
    return Kind(contents, lambda folder, file: ["train", "--config", file, "--data", folder / "missing"])


def program_kind(folder: Path) -> Kind:
    program = b"LOADI 5\nPUSH A\nADD A B\nMUL B\nSWAP A\nHLT\n"
    words = [*MACHINE, "--max-batch", "4"]
    return Kind(
        {"program.asm": program},
        lambda folder, file: ["simulate", file, "--checkpoint", folder, "--output", folder / "out", *words],
        lambda folder: model().save_pretrained(folder),
    )


def media_kind(folder: Path) -> Kind:
    from support import media

    contents = {
        "image.png": media.png(0), "image.jpg": media.png(1, file_format="JPEG"),
        "image.bmp": media.png(2, file_format="BMP"),
        "sound.flac": media.sound(0, 900), "sound.wav": media.sound(1, 900, format="WAV"),
        "tune.mid": media.midi([(0, 480, 60), (480, 240, 64)]),
        "tune.abc": b"X:1\nT:x\nM:4/4\nL:1/8\nK:G\n|:GABc d2d2|e2d2 B4:|\n",
        "text.txt": "a täxt\n".encode() * 20,
    }  # fmt: skip
    return Kind(contents, lambda folder, file: ["data", "check", file])


def conversion_kind(folder: Path) -> Kind:
    contents = {name: content for name, content in media_kind(folder).contents.items() if not name.startswith("tune")}
    return Kind(contents, lambda folder, file: ["data", "media", file, "--output", folder / "made"])


def table_kind(folder: Path) -> Kind:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pa.table({"content": [bytes([i]) * (20 + i) for i in range(80)]})
    parquet.write_table(table, folder / "rows.parquet", row_group_size=16)
    with pa.OSFile(str(folder / "rows.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    sizes = ["--model.patch-size", "8", "--model.patch-length", "16", "--model.hidden-size", "16"]
    sizes += ["--model.patch-num-layers", "1", "--model.byte-num-layers", "1", "--patches-per-batch", "64"]
    sizes += ["--training.steps", "1", "--training.device", "cpu", "--eval-share", "0", "--training.no-tensorboard"]
    return Kind(
        {name: (folder / name).read_bytes() for name in ("rows.parquet", "rows.arrow")},
        lambda folder, file: ["train", "--data", file, "--column", "content", "--output", folder / "run", *sizes],
    )


KINDS = {
    "checkpoints": checkpoint_kind,
    "options": options_kind,
    "programs": program_kind,
    "media": media_kind,
    "converted media": conversion_kind,
    "tables": table_kind,
}


def results(folder: Path, kind: Kind, count: int, seed: int) -> Iterator[tuple[str, bytes | None, Result]]:
    """Name, content (None: the good one) and result, first of each good file, then of `count` damaged ones."""
    stream = random.Random(seed)
    names = list(kind.contents)
    for number in range(len(names) + count):
        name = names[number % len(names)]
        content = kind.contents[name]
        case = folder / str(number)
        case.mkdir()
        kind.setup(case)
        changed = None if number < len(names) else damaged(content, stream)
        if changed is not None or name not in ("model.safetensors", "config.json"):
            (case / name).write_bytes(content if changed is None else changed)
        yield name, changed, run(kind.words(case, case / name))


def figures(result: Result) -> Any:
    """What a command found out about a model, without paths and times."""
    report = json.loads(result.out)
    return {name: report[name] for name in ("loss", "bits_per_byte", "accuracy", "bytes", "by_byte_position")}


MANY = [pytest.param(name, 200, marks=[pytest.mark.slow, pytest.mark.timeout(1800)]) for name in KINDS]


@pytest.mark.parametrize(("name", "count"), [*((name, 6) for name in KINDS if name != "tables"), *MANY])
def test_damage_is_named_or_harmless(tmp_path: Path, name: str, count: int) -> None:
    (tmp_path / "good").mkdir()
    kind = KINDS[name](tmp_path / "good")
    problems, expected, printed, noticed = [], {}, {}, 0
    for file, content, result in results(tmp_path, kind, count, seed=count):
        problem = result.problem()
        if content is None:
            printed[file] = result.out
            if kind.sealed:
                assert result.code == 0, result.err
                expected[file] = figures(result)
            assert not problem, f"{file}: {problem}: {result.err[-2000:]}"
            continue
        noticed += result.code != 0 or result.out != printed[file]
        if not problem and kind.sealed and result.code == 0 and figures(result) != expected[file]:
            problem = "accepted with another result"
        if problem:
            example = tmp_path / f"problem-{len(problems)}-{file}"
            example.write_bytes(content)
            problems.append(f"{example}: {problem}: {result.err.strip()[-300:]}")
        if len(problems) == MAX_FAILURES:
            break
    assert not problems, "\n".join(problems)
    assert noticed, "damage that no file shows is no test"


def test_what_a_command_must_not_do_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control."""

    def problem_of(action: Callable[[], object]) -> str:
        monkeypatch.setattr("support.hostile.main", lambda words: action())
        return run([]).problem()

    def forever() -> None:
        while True:
            pass

    assert problem_of(lambda: 0) == ""
    assert problem_of(lambda: 2) == "failed without a word"
    assert problem_of(lambda: 1 / 0) == "exit code 99"
    assert problem_of(lambda: os.kill(os.getpid(), signal.SIGSEGV)) == "was killed by SIGSEGV"
    assert problem_of(lambda: bytearray(3 * 2**30)) == "exit code 99", "more memory than the limit"
    monkeypatch.setattr("support.hostile.CPU_SECONDS", 1)
    assert problem_of(forever).startswith("did not end within")
