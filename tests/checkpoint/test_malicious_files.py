"""Checkpoints: pickles that call something, and archives that claim more than they hold."""

from __future__ import annotations

import copy
import io
import os
import pickle
import random
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from support.checkpoints import (
    EMBEDDING,
    Weights,
    assert_refused,
    is_refused,
)


class Calls:
    """Calls a function of a given name when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def touches(marker: Path) -> Calls:
    """Runs a shell command when it is unpickled without restrictions."""
    return Calls(os.system, f"touch '{marker}'")


def rewritten(source: Path, target: Path, change: Callable[[bytes], bytes]) -> None:
    """Copies an archive of torch.save with another data.pkl."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            new.writestr(entry.filename, change(content) if entry.filename.endswith("data.pkl") else content)


def test_pickled_calls_are_refused_and_do_nothing(tmp_path: Path, weights: Weights) -> None:
    marker = tmp_path / "ran"
    for number, content in enumerate(
        [
            touches(marker),
            {"model": weights, "epoch": touches(marker)},
            {"model": {**weights, "x": touches(marker)}},
            {"model": weights, "x": Calls(eval, f"open({str(marker)!r}, 'w')")},
            {"model": weights, "x": Calls(bytearray, 10**11)},
            {"model": weights, "x": Calls(torch.FloatTensor, 10**11)},
        ]
    ):
        path = tmp_path / f"{number}.pth"
        torch.save(content, path)
        assert_refused(path, r"\.pth: expected plain tensors, got a call of")
        assert not marker.exists()
    torch.load(tmp_path / "0.pth", weights_only=False)
    assert marker.exists(), "the payload does run where it is let"


def test_other_pickles_and_archives_are_refused(tmp_path: Path, weights: Weights) -> None:
    marker = tmp_path / "ran"
    path = tmp_path / "a.pth"
    torch.save({"model": weights}, path)
    hostile: dict[str, bytes] = {"raw pickle": pickle.dumps(touches(marker)), "junk": random.Random(0).randbytes(5000)}
    old = io.BytesIO()
    torch.save({"model": weights, "x": touches(marker)}, old, _use_new_zipfile_serialization=False)
    hostile["torch.save of old"] = old.getvalue()
    for compression, label in ((zipfile.ZIP_STORED, "stored"), (zipfile.ZIP_DEFLATED, "bomb")):
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", compression) as archive:
            archive.writestr("a/data.pkl", pickle.dumps(touches(marker)))
            archive.writestr("a/data/0", bytes(10**7 if label == "bomb" else 10))
        hostile[label] = packed.getvalue()
    overlapping = io.BytesIO(path.read_bytes())
    with zipfile.ZipFile(overlapping, "a") as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
        for number in range(100):
            twin = copy.copy(largest)
            twin.filename = f"{twin.filename}{number}"
            archive.filelist.append(twin)
            archive.NameToInfo[twin.filename] = twin
        archive.writestr("a/last", b"")
    for label, twin in (("two of one name", "archive/data.pkl"), ("in upper case", "archive/DATA/0")):
        doubled = io.BytesIO((tmp_path / "a.pth").read_bytes())
        with zipfile.ZipFile(doubled, "a") as archive, warnings.catch_warnings(action="ignore"):
            prefix = archive.namelist()[0].split("/")[0]
            archive.writestr(twin.replace("archive", prefix), pickle.dumps({"model": {}}))
        hostile[label] = doubled.getvalue()
    hostile["entries over one another"] = overlapping.getvalue()
    for label, content in hostile.items():
        path.write_bytes(content)
        assert is_refused(path), label
        assert not marker.exists(), label


def test_storages_and_views_larger_than_the_file_are_refused(tmp_path: Path, weights: Weights) -> None:
    honest, hostile = tmp_path / "honest.pth", tmp_path / "hostile.pth"
    name = "patch_level_decoder.base.ln_f.weight"
    torch.save({"model": {**weights, name: torch.arange(8.0)}}, honest)
    assert not is_refused(honest)

    def replaced(before: bytes, after: bytes) -> Callable[[bytes], bytes]:
        def change(content: bytes) -> bytes:
            assert before in content
            return content.replace(before, after)

        return change

    for label, change in (
        ("storage", replaced(b"K\x08tq", b"J\xff\xff\xff\x7ftq")),
        ("view", replaced(b"K\x08\x85", b"J\xff\xff\xff\x7f\x85")),
    ):
        rewritten(honest, hostile, change)
        assert is_refused(hostile), label
    for label, tensor in (
        ("stride 0", torch.ones(1).expand(10**6, 514)),
        ("sparse", torch.sparse_coo_tensor([[0], [0]], [1.0], (10**9, 514), check_invariants=True)),
        ("meta", torch.empty(10**6, 514, device="meta")),
    ):
        torch.save({"model": {**weights, EMBEDDING: tensor}}, hostile)
        assert is_refused(hostile), label
