"""PackedPatches.from_files: extensions, files of all sorts, and refusal of what is no regular file."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch

from bgpt_fast import BGPTConfig, PackedPatches
from bgpt_fast.documents import PatchError, extension_of

CONFIG = BGPTConfig(patch_size=4, patch_length=8, hidden_size=8, num_heads=1)


@pytest.mark.parametrize(
    ("path", "extension"),
    [
        ("a.txt", "txt"),
        ("a/b.tar.gz", "gz"),
        ("A.TXT", "TXT"),
        ("plain", ""),
        ("a.b/file", ""),
        ("a.b/file.c", "c"),
        (".bashrc", ""),
        ("x/.bashrc", ""),
        (".config.json", "json"),
        ("end.", ""),
        ("..", ""),
        ("", ""),
        (b"n\xff.t\xfe", "t\udcfe"),
        (Path("a.bin"), "bin"),
        ("文.書", "書"),
    ],
)
def test_extension_of(path: str | bytes | Path, extension: str) -> None:
    assert extension_of(path) == extension


def test_files_of_all_sorts(tmp_path: Path) -> None:
    folder = tmp_path / "dotted.folder"
    folder.mkdir()
    files = {
        b"empty.txt": b"",
        b"no_extension": b"abc",
        b".dotfile": b"abcd",
        b"n\xffme.\xfe\xff": b"12345",
        b"long.abcdefghijklmnopqrstuvwxyz": b"x",
        b"new\nline.t\nt": b"\x00" * 9,
    }
    for name, content in files.items():
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(content)
    paths = [os.fsencode(folder) + b"/" + name for name in files]
    link = tmp_path / "link.md"
    link.symlink_to(os.fsdecode(paths[1]))
    batch = PackedPatches.from_files([*paths, link], CONFIG)
    expected = ["txt", "", "", "\udcfe\udcff", "abcd", "t\nt", "md"]
    assert batch.to_bytes() == list(zip(expected, [*files.values(), b"abc"], strict=True))
    assert batch.patches[batch.cu_seqlens[3]].tolist() == [0xFE, 0xFF, 256, 256]
    same = PackedPatches.from_bytes(batch.to_bytes(), CONFIG)
    assert torch.equal(batch.patches, same.patches)


@pytest.mark.timeout(20)
def test_what_is_no_regular_file_is_named_and_never_waited_for(tmp_path: Path) -> None:
    fifo = tmp_path / "pipe.txt"
    os.mkfifo(fifo)
    bound = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.fspath(bound))
        for path in (fifo, tmp_path, bound, Path("/dev/zero")):
            with pytest.raises(PatchError, match="expected a regular file") as caught:
                PackedPatches.from_files([path], CONFIG)
            assert str(path) in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"give paths of files that exist.*gone") as missing:
        PackedPatches.from_files([tmp_path / "gone"], CONFIG)
    assert missing.value.filename == str(tmp_path / "gone")


@pytest.mark.timeout(20)
def test_a_file_swapped_for_a_fifo_after_the_check_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"abc")
    real_open = os.open

    def swap(target: object, flags: int) -> int:
        path.unlink()
        os.mkfifo(path)
        return real_open(path, flags)

    monkeypatch.setattr(os, "open", swap)
    descriptors = set(os.listdir("/proc/self/fd"))
    with pytest.raises(PatchError, match="got a FIFO"):
        PackedPatches.from_files([path], CONFIG)
    assert set(os.listdir("/proc/self/fd")) == descriptors


def test_unreadable_vanishing_and_shrinking_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(bytes(20))

    def fail(error: OSError) -> None:
        raise error

    sizes = iter([9, 0])
    for name, call, error, message in (
        ("open", lambda *_: fail(PermissionError(13, "denied", str(path))), PermissionError, r"user may read.*a\.txt"),
        ("pread", lambda *_: fail(OSError(5, "Input/output error")), OSError, r"Input/output error.*a\.txt"),
        ("pread", lambda *_: bytes(next(sizes)), PatchError, r"a\.txt.*expected 20 bytes, got at most 9"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, call)
            with pytest.raises(error, match=message):
                PackedPatches.from_files([path], CONFIG)
    real_pread = os.pread
    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", lambda descriptor, size, offset: real_pread(descriptor, min(size, 3), offset))
        path.write_bytes(bytes(range(20)))
        assert PackedPatches.from_files([path], CONFIG).to_bytes() == [("txt", bytes(range(20)))]


def test_files_that_hide_their_size_are_refused() -> None:
    with pytest.raises(PatchError, match="knows its size"):
        PackedPatches.from_files(["/proc/self/status"], CONFIG)


@pytest.mark.timeout(20)
def test_of_a_sparse_giant_only_the_packed_bytes_are_read(tmp_path: Path) -> None:
    path = tmp_path / "giant.bin"
    path.write_bytes(b"head")
    os.truncate(path, 10 * 2**30)
    batch = PackedPatches.from_files([path, path], CONFIG, truncation="head")
    assert batch.to_bytes()[1] == ("bin", b"head" + bytes(24))
    assert batch.truncated == 2
    assert batch.truncated_bytes == 2 * (10 * 2**30 - 28)
    with pytest.raises(PatchError, match=r"giant.bin.*at most 8 patches.*truncation"):
        PackedPatches.from_files([path], CONFIG, truncation="error")
