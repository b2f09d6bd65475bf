"""Runs each mutant's test on a copy of the source: it must pass without the mutant and fail with it."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tools.mutants.mutant import Mutant, MutantError

_ALL_PASSED, _SOME_FAILED = 0, 1
_TEST_SECONDS = 300
_BUILD_SECONDS = 1800
Run = Callable[[Path, Sequence[str]], int]


@dataclass(frozen=True)
class Outcome:
    """What a mutant's test did: "killed" the mutant, or let it survive."""

    mutant: Mutant
    result: Literal["killed", "survived"]
    seconds: float

    def to_dict(self) -> dict[str, object]:
        """JSON-ready."""
        return {**dataclasses.asdict(self.mutant), "result": self.result, "seconds": round(self.seconds, 1)}


@contextmanager
def copied_tree(root: Path) -> Iterator[Path]:
    """A temporary copy of the tracked files as they are now, and of the built extension."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, check=True).stdout
    with tempfile.TemporaryDirectory(prefix="bgpt-mutants-") as folder:
        copy = Path(folder)
        built = [str(path.relative_to(root)) for path in root.glob("bgpt_fast/_C*.so")]
        for name in (*filter(None, names.decode().split("\0")), *built):
            if (root / name).exists():
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(root / name, copy / name, follow_symlinks=False)
        yield copy


def run_tests(copy: Path, tests: Sequence[str]) -> int:
    """Runs tests in the copy, and returns pytest's exit code."""
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    return _run(command, copy, environment, _TEST_SECONDS * len(tests))


def build(copy: Path) -> None:
    """Builds the extension of the copy; only what has changed since the last build."""
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace", "--build-temp", str(copy / "build")]
    environment = {**os.environ, "BGPT_FAST_CUDA": "OFF"}
    if _run(command, copy, environment, _BUILD_SECONDS) != 0:
        raise MutantError("the extension of the copy does not build; run `make build` to see why")


def _run(command: Sequence[str], folder: Path, environment: dict[str, str], seconds: float) -> int:
    try:
        return subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, timeout=seconds, check=False
        ).returncode
    except subprocess.TimeoutExpired as error:
        raise MutantError(f"{' '.join(command)}: expected an end within {seconds:.0f} s, got none") from error


def outcomes(
    copy: Path, mutants: Sequence[Mutant], run: Run = run_tests, build: Callable[[Path], None] = build
) -> Iterator[Outcome]:
    """Tries mutants one after the other, once all their tests have passed without any.

    Args:
        copy: a tree that may be changed; each file is restored after its mutant.
        mutants: those that need the extension to be built are tried last.
        run: runs tests in the copy and returns pytest's exit code.
        build: builds the copy's extension.

    Raises:
        MutantError: a mutant does not fit the source, or a test does not pass without its mutant, or cannot be run.
    """
    _check_all_pass(copy, mutants, run)
    for mutant in sorted(mutants, key=lambda mutant: mutant.needs_build):
        start = time.monotonic()
        text = mutant.apply(copy)
        try:
            if mutant.needs_build:
                build(copy)
            code = run(copy, [mutant.test])
        finally:
            (copy / mutant.file).write_text(text)
        _check(mutant, code, (_ALL_PASSED, _SOME_FAILED), "with the mutant")
        yield Outcome(mutant, "killed" if code == _SOME_FAILED else "survived", time.monotonic() - start)


def _check_all_pass(copy: Path, mutants: Sequence[Mutant], run: Run) -> None:
    """One run of all tests, as starting pytest takes longer than most of them; then one by one, to name what fails."""
    tests = list(dict.fromkeys(mutant.test for mutant in mutants))
    code = run(copy, tests)
    if code != _ALL_PASSED:
        for mutant in mutants:
            _check(mutant, run(copy, [mutant.test]), (_ALL_PASSED,), "without the mutant")
        raise MutantError(
            f"expected pytest's exit code {_ALL_PASSED} of all tests together as of each alone, got {code}; run "
            f"`pytest {' '.join(tests)}` to see why"
        )


def _check(mutant: Mutant, code: int, expected: Sequence[int], state: str) -> None:
    if code not in expected:
        raise MutantError(
            f"{mutant.name}: expected pytest's exit code {' or '.join(map(str, expected))} {state}, got {code}; run "
            f"`pytest {mutant.test}` to see why"
        )
