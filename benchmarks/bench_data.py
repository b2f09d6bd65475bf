"""Packing bytes into patches and unpacking them, loading files into batches, saving and loading checkpoints.

pytest benchmarks/bench_data.py
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.names import OURS
from benchmarks.op_cases import Work
from benchmarks.suite import Bench
from benchmarks.training import random_documents
from bgpt_fast import BGPT, BGPTConfig, PackedPatches
from bgpt_fast.config import EOP
from bgpt_fast.data import FileSource


def _documents(count: int, limit: int) -> list[tuple[str, bytes]]:
    """Documents of 1 to `limit` bytes."""
    stream = random.Random(0)
    return random_documents([stream.randrange(1, limit) for _ in range(count)])


def _full_context(config: BGPTConfig) -> int:
    """Bytes of a document that fills the context."""
    return (config.patch_length - 2) * config.patch_size


def _in_python(documents: list[tuple[str, bytes]], S: int) -> torch.Tensor:
    """Packs documents in plain Python: lists of tokens, padded, then converted to one tensor."""
    tokens: list[int] = []
    for extension, data in documents:
        for part in (extension.encode(), data):
            tokens += part
            tokens += [EOP] * (-len(part) % S)
        tokens += [EOP] * S
    return torch.tensor(tokens, dtype=torch.int16).view(-1, S)


def _packed(bench: Bench) -> tuple[list[tuple[str, bytes]], PackedPatches, dict[str, Any]]:
    """Documents, their patches, and the details recorded for packing and unpacking them."""
    config = bench.scale.model
    documents = _documents(bench.scale.documents, _full_context(config))
    packed = PackedPatches.from_bytes(documents, config)
    size = sum(len(data) for _, data in documents)
    work = Work(size + packed.patches.numel() * 2)
    return documents, packed, {"work": work, "units": size, "unit": "bytes", "kind": "data", "memory": False}


@pytest.mark.parametrize("implementation", [OURS, "plain Python and torch"], ids=["bgpt_fast", "plain_Python"])
def test_bytes_to_patches(bench: Bench, implementation: str) -> None:
    config = bench.scale.model
    documents, packed, details = _packed(bench)
    assert torch.equal(packed.patches, _in_python(documents, config.patch_size))

    def pack() -> object:
        return (
            PackedPatches.from_bytes(documents, config)
            if implementation == OURS
            else _in_python(documents, config.patch_size)
        )

    bench(pack, "bytes to patches", implementation=implementation, **details)


def test_patches_to_bytes(bench: Bench) -> None:
    documents, packed, details = _packed(bench)
    assert packed.to_bytes() == documents
    bench(packed.to_bytes, "patches to bytes", **details)


def _write_files(folder: Path, documents: list[tuple[str, bytes]]) -> None:
    for number, (extension, data) in enumerate(documents):
        (folder / f"{number}.{extension}").write_bytes(data)


def test_data_loading(bench: Bench, tmp_path: Path) -> None:
    """Loads and packs a batch of whole files, which are in the system's page cache."""
    config = bench.scale.model
    documents = _documents(max(bench.scale.documents // 8, 8), _full_context(config))
    _write_files(tmp_path, documents)
    patches = PackedPatches.from_bytes(documents, config).num_patches
    source = FileSource([tmp_path], config, max(config.patch_length, patches // 4), split="all")
    batch = source.next_batch().num_patches
    bench(source.next_batch, "loading a batch of files", units=batch, unit="patches", kind="data", memory=False)


def test_loading_small_files(bench: Bench, tmp_path: Path) -> None:
    """Loads an epoch of files of up to 300 bytes, which are in the system's page cache, as one batch."""
    config, count = bench.scale.model, bench.scale.small_files
    documents = _documents(count, min(300, _full_context(config)))
    _write_files(tmp_path, documents)
    patches = PackedPatches.from_bytes(documents, config).num_patches
    source = FileSource([tmp_path], config, max(config.patch_length, patches), split="all")
    assert source.next_batch().num_documents == count
    what = f"loading {count:,} small files"
    bench(source.next_batch, what, units=count, unit="files", kind="data", memory=False)


@pytest.mark.parametrize("direction", ["save", "load"])
def test_checkpoint(bench: Bench, direction: str, tmp_path: Path) -> None:
    model = BGPT(bench.scale.model)
    model.save_pretrained(tmp_path / "model")
    size = 4 * model.num_parameters()

    def load() -> object:
        return BGPT.from_pretrained(str(tmp_path / "model"), device=bench.device)

    bench(
        load if direction == "load" else lambda: model.save_pretrained(tmp_path / "model"),
        f"checkpoint, {direction}",
        work=Work(size),
        units=size,
        unit="bytes",
        kind="checkpoint",
    )
