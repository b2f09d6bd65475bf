"""Atomic files: old or new, whole, whatever fails on the way."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from support.write_faults import dies_in_step, disk_full, largest_file, step_fails

from bgpt_fast import files
from bgpt_fast.files import FileContentError, atomic_write, exchange, fsync_folder, read_file, write_json

STEPS = ["make", "write", "fsync", "replace", "fsync"]
AFTER_RENAME = STEPS.index("replace") + 1


def write(path: Path, content: bytes) -> None:
    with atomic_write(path) as file:
        file.write(content)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A file named a."""
    (tmp_path / "a").write_bytes(b"old")
    return tmp_path / "a"


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_writes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folders" / "a.bin"
    write(path, b"one")
    assert path.read_bytes() == b"one"
    write(path, b"")
    assert path.read_bytes() == b""
    assert listing(path.parent) == ["a.bin"]


def test_the_target_is_untouched_until_the_block_ends(old: Path) -> None:
    with atomic_write(old) as file:
        file.write(b"new")
        file.flush()
        assert old.read_bytes() == b"old"
    assert old.read_bytes() == b"new"


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_permissions_follow_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write(tmp_path / "a", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~umask


def test_long_and_odd_names(tmp_path: Path) -> None:
    for name in ("n" * 255, "with\nnewline", "ü" * 100, os.fsdecode(b"\xff\xfe")):
        write(tmp_path / name, b"x")
        assert (tmp_path / name).read_bytes() == b"x"


def test_an_exception_in_the_block_leaves_the_old_file_alone(tmp_path: Path, old: Path) -> None:
    def interrupted() -> None:
        with atomic_write(old) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert old.read_bytes() == b"old"
    assert listing(tmp_path) == ["a"]


def test_the_steps_are_write_fsync_rename_fsync(tmp_path: Path) -> None:
    with step_fails(-1, disk_full) as steps:
        write(tmp_path / "a", b"content")
    assert steps == STEPS


@pytest.mark.parametrize("existed", [True, False])
@pytest.mark.parametrize("number", range(len(STEPS)))
def test_a_failure_of_each_step_leaves_the_old_or_the_new_file(tmp_path: Path, number: int, existed: bool) -> None:
    path = tmp_path / "a"
    if existed:
        path.write_bytes(b"old")
    with step_fails(number, disk_full), pytest.raises(OSError, match="No space left"):
        write(path, b"content")
    if number >= AFTER_RENAME:
        assert path.read_bytes() == b"content"
    elif existed:
        assert path.read_bytes() == b"old"
    assert listing(tmp_path) == (["a"] if existed or number >= AFTER_RENAME else []), "nothing half-written is left"


@pytest.mark.parametrize("number", range(len(STEPS)))
def test_a_crash_in_each_step_leaves_the_old_or_the_new_file(old: Path, number: int) -> None:
    assert dies_in_step(number, lambda: write(old, b"content"))
    assert old.read_bytes() == (b"content" if number >= AFTER_RENAME else b"old")
    assert not dies_in_step(len(STEPS), lambda: write(old, b"content"))
    assert old.read_bytes() == b"content"


def test_the_fault_tests_catch_writing_in_place(old: Path) -> None:
    def write_in_place() -> None:
        with os.fdopen(os.open(old, os.O_WRONLY | os.O_TRUNC), "wb") as file:
            file.write(b"content")

    with step_fails(0, disk_full), pytest.raises(OSError, match="No space left"):
        write_in_place()
    assert old.read_bytes() not in (b"old", b"content")


def test_a_real_limit_of_the_file_size_leaves_the_old_file(tmp_path: Path, old: Path) -> None:
    with largest_file(4096), pytest.raises(OSError, match="File too large"):
        write(old, bytes(1 << 20))
    assert old.read_bytes() == b"old"
    assert listing(tmp_path) == ["a"]


def test_a_folder_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(IsADirectoryError):
        write(tmp_path / "a", b"x")
    assert listing(tmp_path) == ["a"]
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(OSError, match="file"):
        write(tmp_path / "file" / "below", b"x")


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_the_kernel_sees_write_fsync_rename_fsync_of_the_folder(tmp_path: Path) -> None:
    # The module alone, without torch, keeps the trace short.
    script = (
        "import runpy, sys; module = runpy.run_path(sys.argv[1])\n"
        "with module['atomic_write'](sys.argv[2]) as file: file.write(b'content')"
    )
    trace = tmp_path / "trace"
    traced = "trace=openat,write,fsync,rename,renameat,renameat2"
    command = ["strace", "-y", "-e", traced, "-o", trace, sys.executable, "-I", "-c", script, files.__file__, "a.bin"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    if "ptrace" in done.stderr:
        pytest.skip("ptrace is forbidden here")
    assert done.returncode == 0, done.stderr
    part, folder = r"[^>]*/\.a\.bin\.\w+\.part", re.escape(str(tmp_path))
    order = rf"write\(\d+<{part}>, \"content\".*fsync\(\d+<{part}>\).*rename\w*\(.*a\.bin\".*fsync\(\d+<{folder}>\)"
    assert re.search(order, trace.read_text(), re.DOTALL), trace.read_text()


def test_write_json(tmp_path: Path) -> None:
    value = {"ü": [1, 2.5, None], "nested": {"a": True}}
    write_json(tmp_path / "a.json", value)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == value
    assert (tmp_path / "a.json").read_text(encoding="utf-8").endswith("}\n")
    for wrong, error in (({"x": float("nan")}, ValueError), ({"x": float("inf")}, ValueError), ({"x": {1}}, TypeError)):
        with pytest.raises(error):
            write_json(tmp_path / "a.json", wrong)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == value
    assert listing(tmp_path) == ["a.json"]


def test_fsync_folder_names_what_is_missing(tmp_path: Path) -> None:
    fsync_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match="gone"):
        fsync_folder(tmp_path / "gone")


def test_what_json_does_not_have_is_named_with_its_place(tmp_path: Path) -> None:
    value = {"figures": [{"loss": 1.0}, {"loss": float("nan")}]}
    with pytest.raises(ValueError, match=r"a\.json: figures\.1\.loss: expected a finite number, got nan"):
        write_json(tmp_path / "a.json", value)
    with pytest.raises(ValueError, match="the value: expected a finite number, got -inf"):
        write_json(tmp_path / "a.json", float("-inf"))
    assert listing(tmp_path) == []


@pytest.mark.parametrize("number", range(len(STEPS)))
def test_the_error_of_each_step_names_a_path(tmp_path: Path, number: int) -> None:
    with step_fails(number, disk_full), pytest.raises(OSError, match="No space left") as caught:
        write(tmp_path / "a", b"content")
    assert str(tmp_path) in str(caught.value)


def test_a_real_full_disk_is_named(tmp_path: Path) -> None:
    with largest_file(4096), pytest.raises(OSError, match="File too large") as caught:
        write(tmp_path / "a", bytes(1 << 20))
    assert str(tmp_path / "a") in str(caught.value)


def test_files_that_grow_are_read_up_to_the_limit(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert read_file(tmp_path / "a", 5) == b"12345"
    with pytest.raises(FileContentError, match="at most 4 bytes, got 5"):
        read_file(tmp_path / "a", 4)
    # A file of /proc says that it has 0 bytes.
    with pytest.raises(FileContentError, match="at most 4 bytes, got 5"):
        read_file("/proc/self/status", 4)


def test_exchange(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    write(tmp_path / "one" / "a", b"1")
    write(tmp_path / "other", b"2")
    exchange(tmp_path / "one", tmp_path / "other")
    assert (tmp_path / "one").read_bytes() == b"2"
    assert (tmp_path / "other" / "a").read_bytes() == b"1"
    with pytest.raises(FileNotFoundError, match=r"one.*gone"):
        exchange(tmp_path / "one", tmp_path / "gone")
