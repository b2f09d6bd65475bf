"""`bgpt-fast` with a NotaGen: files of ABC notation, as its Python functions write them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.cli import CommandLine

from bgpt_fast import BGPT, BGPTConfig, Prompt
from bgpt_fast.checkpoint.save import save_released
from bgpt_fast.config import NOTAGEN_ALPHABET
from bgpt_fast.models.notagen import TuneGenerator, generate

CONFIG = BGPTConfig(16, 24, 64, 1, 1, **NOTAGEN_ALPHABET)
HEADER = "%Baroque\nX:1\nK:G\n"


@pytest.fixture
def model() -> BGPT:
    torch.manual_seed(0)
    model = BGPT(CONFIG).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model


@pytest.fixture
def weights(model: BGPT, tmp_path: Path) -> Path:
    """A file as the authors release them."""
    save_released(tmp_path / "weights_notagen.pth", CONFIG, model.state_dict())
    return tmp_path / "weights_notagen.pth"


def test_generate_writes_what_the_python_function_does(
    model: BGPT, weights: Path, tmp_path: Path, cli: CommandLine
) -> None:
    """With the released sampling, resumed with a missing file, and cut at a number of bytes."""
    prompt, out = tmp_path / "start.abc", tmp_path / "out"
    prompt.write_text(HEADER)
    words = ["generate", prompt, "--count", "3", "--checkpoint", weights, "--output", out, "--seed", "5"]
    words += ["--max-new-bytes", "60", "--precision", "float32"]
    cli.run(*words)
    tunes = generate(model, [HEADER] * 3, max_patches=60, seed=5)
    expected = {f"{index:05d}.abc": tune.text[: len(HEADER) + 60] for index, tune in enumerate(tunes)}
    assert {path.name: path.read_bytes().decode() for path in out.glob("*.abc")} == expected
    assert len(set(expected.values())) == 3
    report = json.loads((out / "report.json").read_text())
    assert report["ended_by"] == {"max_new_bytes": 3}
    assert (report["options"]["temperature"], report["options"]["top_k"]) == (1.2, 9)
    (out / "00001.abc").unlink()
    cli.run(*words, "--max-batch", "1")
    assert {path.name: path.read_bytes().decode() for path in out.glob("*.abc")} == expected
    assert json.loads((out / "report.json").read_text())["made_now"] == 1


def test_without_a_prompt_files_are_abc(weights: Path, tmp_path: Path, cli: CommandLine) -> None:
    greedy = ["generate", "--checkpoint", weights, "--max-new-bytes", "9", "--temperature", "0", "--output"]
    cli.run(*greedy, tmp_path / "out")
    assert (tmp_path / "out/00000.abc").is_file()


def test_a_tune_generator_is_independent_of_batch_and_limit(model: BGPT) -> None:
    prompts = [Prompt("abc", b""), Prompt("abc", HEADER.encode(), 7), Prompt("abc", b"%A\n")]
    sampling = {"temperature": 1.0, "seed": 3}
    whole = TuneGenerator(model).generate(prompts, max_new_bytes=90, **sampling)
    short = TuneGenerator(model, max_batch=1).generate(prompts, max_new_bytes=30, **sampling)
    for prompt, a, b in zip(prompts, whole, short, strict=True):
        assert len(b.new_bytes) == 30
        assert not b.finished
        assert a.data[: len(prompt.data) + 30] == b.data
    [other] = TuneGenerator(model).generate([Prompt("abc", HEADER.encode(), 8)], max_new_bytes=30, **sampling)
    assert other.data != short[1].data
    [nothing] = TuneGenerator(model).generate(prompts[:1], max_new_bytes=0)
    assert (nothing.data, nothing.finished) == (b"", False)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["generate", "latin.abc"], "latin.abc: text: expected characters of ASCII"),
        (["generate", "long.abc"], "long.abc: expected fewer patches than the context's 24, got"),
        (["generate", "--drafter", "weights_notagen.pth"], "--drafter: "),
        (["convert", "start.abc", "--to", "mid"], "expected a model of bytes, with 257 symbols, got one of 128"),
    ],
)
def test_what_a_notagen_cannot_do_is_named(
    words: list[str], message: str, weights: Path, tmp_path: Path, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("start.abc").write_text(HEADER)
    Path("latin.abc").write_bytes("T:Für Elise\n".encode("latin-1"))
    Path("long.abc").write_text("%A\n" * 30)
    assert message in cli.run(*words, "--checkpoint", weights, "--output", "out", code=2).err
    assert not Path("out").exists()
