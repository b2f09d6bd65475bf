"""The null GPU's environment where it cannot be had: named within a minute, and nothing of it stays on the disk."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest
from support.paths import ROOT

from tools.null_gpu import environment
from tools.null_gpu.environment import EnvironmentFailed, EnvironmentUnavailable

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "bgpt_fast"


def folders(cache: Path) -> list[str]:
    return [path.name for path in cache.iterdir() if path.is_dir()]


def test_without_an_index_of_packages_it_is_unavailable(cache: Path) -> None:
    """By the command, as .ci/run calls it."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    # A port that nothing listens on, and no local wheels.
    variables |= {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_CONFIG_FILE": os.devnull}
    started = time.monotonic()
    words = [sys.executable, "-m", "tools.null_gpu"]
    ended = subprocess.run(words, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 3, ended.stderr
    assert "triton" in ended.stderr
    assert time.monotonic() - started < 60
    assert folders(cache) == []


def test_a_full_disk_is_named_before_anything_is_installed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(100 << 30, 93 << 30, 7 << 30))
    monkeypatch.setattr(environment, "_run", lambda *words, **options: pytest.fail("ran a command"))
    with pytest.raises(EnvironmentUnavailable, match=r"expected 8 GiB of free disk space, got 7\.0"):
        environment.prepare(lambda text: None)
    assert folders(cache) == []


def test_an_installation_has_a_limit_of_time(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = environment._run

    def slow_install(command: list[str], *rest: object, seconds: float | None = None) -> str:
        is_install = "install" in command
        return run([sys.executable, "-c", f"import time; time.sleep({60 * is_install})"], seconds=seconds)

    monkeypatch.setattr(environment, "_run", slow_install)
    with pytest.raises(EnvironmentUnavailable, match=r"timed out after 0\.5 seconds"):
        environment.prepare(lambda text: None, install_seconds=0.5)
    assert folders(cache) == []


def test_a_build_that_fails_is_not_called_unavailable(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def install(venv: Path, seconds: float | None) -> None:
        (venv / "lib" / "python3.99" / "site-packages").mkdir(parents=True)

    def failing(command: list[str], *rest: object, **options: object) -> str:
        raise EnvironmentFailed(f"{command[0]}: exit code 1")

    monkeypatch.setattr(environment, "_install", install)
    monkeypatch.setattr(environment, "_run", failing)
    with pytest.raises(EnvironmentFailed, match="cmake") as error:
        environment.prepare(lambda text: None)
    assert not isinstance(error.value, EnvironmentUnavailable)
    assert [name.partition("-")[0] for name in folders(cache)] == ["cuda"], "the packages stay"


def test_what_is_complete_waits_for_no_other_process(cache: Path) -> None:
    """Another checkout may build its extension for minutes."""
    calls: list[str] = []
    folder = cache / "folder"
    folder.mkdir(parents=True)
    (folder / ".complete").touch()
    with (cache / "folder.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        environment._make(folder, calls.append, "it", lambda: calls.append("made"))
    assert calls == []
    (folder / ".complete").unlink()
    environment._make(folder, calls.append, "it", folder.mkdir)
    assert calls == [f"{folder}: making it"]
    assert (folder / ".complete").exists()
