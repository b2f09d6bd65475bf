"""The guides' examples: Python runs, at smaller sizes where it would take long; every command line is understood.

That of docs/media.md runs in tests/tasks/media/test_standardise.py, that of docs/assembly.md in
tests/tasks/cpu_states/test_machine.py, the README's in tests/test_readme.py, those of docs/hugging-face.md in
tests/hf/test_docs.py. That commands work is tested in tests/cli;
here it is that they have the options which the guides show.
"""

from __future__ import annotations

import itertools
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import tyro
from conftest import random_documents
from support.paths import EXAMPLES, ROOT
from support.readme import TEXT as README

from bgpt_fast import BGPT, BGPTConfig
from bgpt_fast.cli import bench
from bgpt_fast.cli.main import main
from bgpt_fast.data import FileSource
from bgpt_fast.training import TrainConfig

PAGES = {"README.md": README} | {
    path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))
}
MODEL = "BGPTConfig(patch_size=4, patch_length=24, hidden_size=16, patch_num_layers=1, byte_num_layers=1, num_heads=2)"
SMALLER: dict[str, list[tuple[str, str]]] = {
    "evaluation.md": [],
    "music.md": [],
    "notagen.md": [],
    "recipes.md": [],
    "simulation.md": [("10_000", "20")],
    "training.md": [
        ("BGPTConfig(hidden_size=384, patch_num_layers=6, byte_num_layers=2)", MODEL),
        ("steps=1000, eval_every=100", "steps=2, eval_every=1"),
        ("BGPTConfig()", MODEL),
        ("32_768", "256"),
        ("steps=10_000", "steps=2"),
        ('"/data/', '"'),
        ('"/shared/', '"'),
    ],
}
"""Replacements by guide, each of which occurs in it."""


def blocks(text: str, language: str) -> list[str]:
    fences = re.findall(r"^```(\S*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [content for name, content in fences if name == language]


def test_every_guide_with_python_is_run() -> None:
    assert {name for name, text in PAGES.items() if blocks(text, "python")} == {
        *SMALLER,
        "README.md",
        "media.md",
        "hugging-face.md",
    }


@pytest.mark.parametrize("guide", SMALLER)
def test_the_python_runs(
    guide: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(EXAMPLES / "trade_offs")])
    for name in ("held-out", "my-files", "wiki", "music/test"):
        Path(name).mkdir(parents=True)
        for index, (extension, content) in enumerate(random_documents(0, [20] * 100)):
            Path(name, f"{index}.{extension or 'bin'}").write_bytes(content)
    for extension in ("abc", "mid"):
        Path(f"music/test/tune.{extension}").write_bytes(b"tune")
    Path("examples").symlink_to(EXAMPLES)
    torch.manual_seed(0)
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(f"from bgpt_fast import BGPTConfig\nconfig = {MODEL}", names)
    config: BGPTConfig = names["config"]
    if guide in ("evaluation.md", "music.md"):
        BGPT(config).save_pretrained(re.search(r'"(runs/.*?)"', PAGES[guide])[1])  # type: ignore[index]
    if guide == "recipes.md":  # the recipe that the script belongs to has these
        pytest.importorskip("transformers")
        names["source"] = FileSource(["my-files"], config, patches_per_batch=64)
        names["training"] = TrainConfig(steps=1, device="cpu")
    for program in blocks(PAGES[guide], "python"):
        for text, smaller in SMALLER[guide]:
            assert text in PAGES[guide], text
            program = program.replace(text, smaller)
        exec(compile(program, guide, "exec"), names)
    if guide == "training.md":
        assert all(Path(f"runs/{name}/checkpoints/step-00000002").is_dir() for name in ("mine", "wiki"))
    else:
        assert capsys.readouterr().out.strip()


class Parsed(Exception):
    """A command line has been understood; raised in place of carrying it out."""


def command_lines() -> list[tuple[str, list[str]]]:
    """The words of each console line, with the page's name."""
    lines = []
    for name, text in PAGES.items():
        for block in itertools.chain(blocks(text, "sh"), blocks(text, "")):
            for line in block.replace("\\\n", " ").splitlines():
                if re.match(r"(bgpt-fast|make|python|pip|apt|apt-get|torchrun|nsys|ncu) ", line):
                    # ; separates commands.
                    lines += [(name, shlex.split(part, comments=True)) for part in line.split(";")]
    return lines


def test_the_command_lines_are_understood(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    understand = tyro.cli

    def parse(*arguments: Any, **named: Any) -> None:
        understand(*arguments, **named)
        raise Parsed

    def run_module(checkout: Path, module: str, *words: str) -> int:
        raise Parsed

    monkeypatch.setattr(tyro, "cli", parse)
    monkeypatch.setattr(bench, "_run_module", run_module)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.py").write_text("PATCH_SIZE = 16\n")
    makefile = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    counts = {"bgpt-fast": 0, "make": 0, "python": 0}
    for page, words in command_lines():
        program = next((word for word in ("bgpt-fast", "bgpt_fast.cli.main") if word in words), words[0])
        if program in ("bgpt-fast", "bgpt_fast.cli.main"):
            counts["bgpt-fast"] += 1
            with pytest.raises(Parsed):
                assert main(words[words.index(program) + 1 :]) == 0, (page, words)
        elif program == "make":
            counts["make"] += 1
            assert words[1] in makefile, (page, words)
        elif program == "python":
            counts["python"] += 1
            assert_options_exist(words[1:], page)
    assert counts["bgpt-fast"] > 50
    assert min(counts.values()) > 4, counts


def assert_options_exist(words: Sequence[str], page: str) -> None:
    """A script of examples/ exists, and it or what it shares with others has the options."""
    script = ROOT / words[0]
    shared = [EXAMPLES / "training_runs.py", *script.parent.glob("*.py")]
    source = script.read_text(encoding="utf-8") + "".join(path.read_text(encoding="utf-8") for path in shared)
    for word in words[1:]:
        if word.startswith("--"):
            assert f'"{word}"' in source, (page, words)
