"""Shared fixtures: tiny models and batches, seeded."""

from __future__ import annotations

import random

import pytest
import torch
from support.cli import CommandLine

from bgpt_fast import BGPT, BGPTConfig, PackedPatches

TINY = BGPTConfig(patch_size=4, patch_length=24, hidden_size=32, patch_num_layers=2, byte_num_layers=2, num_heads=4)


@pytest.fixture
def tiny_config() -> BGPTConfig:
    return TINY


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(capsys)


@pytest.fixture
def tiny_model(tiny_config: BGPTConfig) -> BGPT:
    torch.manual_seed(0)
    return BGPT(tiny_config).eval()


def random_documents(seed: int, sizes: list[int]) -> list[tuple[str, bytes]]:
    """One document of each size in bytes, with extensions of several lengths."""
    stream = random.Random(seed)
    extensions = ["bin", "", "txt", "md"]
    return [(extensions[i % 4], stream.randbytes(size)) for i, size in enumerate(sizes)]


@pytest.fixture
def tiny_batch(tiny_config: BGPTConfig) -> PackedPatches:
    return PackedPatches.from_bytes(random_documents(0, [9, 0, 33, 1, 16, 64]), tiny_config)
