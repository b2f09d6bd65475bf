"""Shared fixtures: tiny models and batches, seeded."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from huggingface_hub import constants
from support.cli import CommandLine
from support.hub import TOKEN, LocalHub
from torch import nn

if not torch.cuda.is_available():
    # Triton reads it when it is first imported, by whichever test module is collected first.
    os.environ["TRITON_INTERPRET"] = "1"

from bgpt_fast import BGPT, BGPTConfig, PackedPatches

AnyModule = TypeVar("AnyModule", bound=nn.Module)

TINY = BGPTConfig(patch_size=4, patch_length=24, hidden_size=32, patch_num_layers=2, byte_num_layers=2, num_heads=4)


@pytest.fixture
def tiny_config() -> BGPTConfig:
    return TINY


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(capsys)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """A hub of Hugging Face on this machine, an empty cache, the right to write to it; the current folder is empty."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with LocalHub(tmp_path / "hub").serving() as local_hub:
        monkeypatch.setattr(constants, "ENDPOINT", local_hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{local_hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield local_hub


@pytest.fixture
def tiny_model(tiny_config: BGPTConfig) -> BGPT:
    torch.manual_seed(0)
    return BGPT(tiny_config).eval()


def random_documents(seed: int, sizes: list[int]) -> list[tuple[str, bytes]]:
    """One document of each size in bytes, with extensions of several lengths."""
    stream = random.Random(seed)
    extensions = ["bin", "", "txt", "md"]
    return [(extensions[i % 4], stream.randbytes(size)) for i, size in enumerate(sizes)]


def randomised(model: AnyModule, seed: int = 0) -> AnyModule:
    """In eval mode, with biases and LayerNorms away from 0 and 1, so that a missing one changes results."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model.eval()


@pytest.fixture
def tiny_batch(tiny_config: BGPTConfig) -> PackedPatches:
    return PackedPatches.from_bytes(random_documents(0, [9, 0, 33, 1, 16, 64]), tiny_config)
