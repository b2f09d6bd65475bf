"""Where a command takes a file, a FIFO, an endless or a sparse one is named at once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from support.cli import CONFIG

from bgpt_fast import BGPT, BGPTForClassification
from bgpt_fast.cli.main import main


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    BGPT(CONFIG).save_pretrained(folder / "generative")
    BGPTForClassification(CONFIG, {"a.bin": 0, "b.bin": 1}).save_pretrained(folder / "classifier")
    return folder


@pytest.mark.parametrize("kind", ["pipe", "sparse", "endless"])
@pytest.mark.parametrize(
    "words",
    [
        ("train", "--config", "{}.json"),
        ("train", "--config", "{}.yaml"),
        ("train", "--data", "{}.txt", "--init-from", "{}.pth"),
        ("train", "--data", "{}.parquet", "--column", "content"),
        ("migrate-config", "{}.py"),
        ("generate", "{}.txt", "--checkpoint", "{model}/generative", "--ext", "txt"),
        ("generate", "--ext", "txt", "--checkpoint", "{}.safetensors"),
        ("evaluate", "{}.txt", "--checkpoint", "{}.safetensors"),
        ("classify", "{model}/classifier", "{}.bin", "--labels", "{}.json"),
        ("simulate", "{}.asm", "--checkpoint", "{model}/generative"),
        ("simulate", "{}.bin", "--checkpoint", "{model}/generative"),
        ("simulate", "{}.parquet", "--checkpoint", "{model}/generative"),
        ("data", "check", "{}.bmp"),
    ],
)
def test_files_that_are_none_are_named(
    tmp_path: Path,
    model: Path,
    words: tuple[str, ...],
    kind: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = []
    for suffix in sorted({word.rsplit(".", 1)[1] for word in words if word.startswith("{}.")}):
        path = tmp_path / f"a.{suffix}"
        files.append(path.name)
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "sparse":
            with path.open("wb") as file:
                file.truncate(10 << 30)
        else:
            path.symlink_to("/dev/zero")
    monkeypatch.chdir(tmp_path)
    code = main([word.replace("{model}", str(model)).replace("{}", "a") for word in words])
    output = "".join(capsys.readouterr())
    if words[:2] == ("data", "check"):
        assert "too large" in output or "not a regular file" in output
        return
    assert code in (1, 2), output
    assert "Traceback" not in output
    assert any(name in output for name in files), output
