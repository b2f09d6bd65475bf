"""Bytes to patches and back, files from disk to batches, checkpoints to disk and back.

pytest benchmarks/bench_data.py
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from op_cases import Work
from optional_peers import OURS
from suite import Bench

from bgpt_fast import BGPT, PackedPatches
from bgpt_fast.config import EOP
from bgpt_fast.data import FileSource

_PYTHON = "plain Python and torch"


def _documents(count: int, limit: int) -> list[tuple[str, bytes]]:
    stream = random.Random(0)
    return [("bin", stream.randbytes(stream.randrange(1, limit))) for _ in range(count)]


def _plain(documents: list[tuple[str, bytes]], S: int) -> torch.Tensor:
    """The patches of documents as one writes it in Python: lists of tokens, padded, to one tensor."""
    tokens: list[int] = []
    for extension, data in documents:
        for part in (extension.encode(), data):
            tokens += part
            tokens += [EOP] * (-len(part) % S)
        tokens += [EOP] * S
    return torch.tensor(tokens, dtype=torch.int16).view(-1, S)


@pytest.mark.parametrize("implementation", [OURS, _PYTHON], ids=["bgpt_fast", "plain_Python"])
def test_bytes_to_patches(bench: Bench, implementation: str) -> None:
    config = bench.scale.model
    documents = _documents(bench.scale.documents, (config.patch_length - 2) * config.patch_size)
    packed = PackedPatches.from_bytes(documents, config)
    assert torch.equal(packed.patches, _plain(documents, config.patch_size))
    size = sum(len(data) for _, data in documents)
    bench(
        [
            lambda: (
                PackedPatches.from_bytes(documents, config)
                if implementation == OURS
                else _plain(documents, config.patch_size)
            )
        ],
        "bytes to patches",
        implementation=implementation,
        work=Work(size + packed.patches.numel() * 2),
        units=size,
        unit="bytes",
        kind="data",
        memory=False,
    )


def test_patches_to_bytes(bench: Bench) -> None:
    config = bench.scale.model
    documents = _documents(bench.scale.documents, (config.patch_length - 2) * config.patch_size)
    packed = PackedPatches.from_bytes(documents, config)
    assert packed.to_bytes() == documents
    size = sum(len(data) for _, data in documents)
    bench(
        [packed.to_bytes],
        "patches to bytes",
        work=Work(size + packed.patches.numel() * 2),
        units=size,
        unit="bytes",
        kind="data",
        memory=False,
    )


def test_data_loading(bench: Bench, tmp_path: Path) -> None:
    """A batch of whole files, which the system's cache holds, packed."""
    config = bench.scale.model
    documents = _documents(max(bench.scale.documents // 8, 8), (config.patch_length - 2) * config.patch_size)
    for number, (extension, data) in enumerate(documents):
        (tmp_path / f"{number}.{extension}").write_bytes(data)
    patches = PackedPatches.from_bytes(documents, config).num_patches
    source = FileSource([tmp_path], config, max(config.patch_length, patches // 4), split="all")
    batch = source.next_batch().num_patches
    bench([source.next_batch], "loading a batch of files", units=batch, unit="patches", kind="data", memory=False)


def test_checkpoint_save(bench: Bench, tmp_path: Path) -> None:
    model = BGPT(bench.scale.model)
    size = 4 * model.num_parameters()
    bench(
        [lambda: model.save_pretrained(tmp_path / "model")],
        "checkpoint, save",
        work=Work(size),
        units=size,
        unit="bytes",
        kind="checkpoint",
    )


def test_checkpoint_load(bench: Bench, tmp_path: Path) -> None:
    model = BGPT(bench.scale.model)
    model.save_pretrained(tmp_path / "model")
    size = 4 * model.num_parameters()
    bench(
        [lambda: BGPT.from_pretrained(str(tmp_path / "model"), device=bench.device)],
        "checkpoint, load",
        work=Work(size),
        units=size,
        unit="bytes",
        kind="checkpoint",
    )
