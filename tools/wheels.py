"""Builds manylinux wheels of this checkout, one for each Python, whose bytes are the same when they are built again.

    python3 -m tools.wheels                         # for each python3.11 and newer on PATH, into dist/
    python3 -m tools.wheels --output wheels python3.12

The files are those that git does not ignore, in a folder of their own; packages that build are those of
requirements/wheel.txt, checked by their hashes; the times in a wheel are SOURCE_DATE_EPOCH or the last commit's. The
compiler is the machine's. The platform tag is what auditwheel reads from the extension's symbols, so that a build on an
older Linux serves more machines. Needs git and Python's standard library.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_REQUIREMENTS = ROOT / "requirements" / "wheel.txt"
_OLDEST = (3, 11)


def pythons_on_path() -> list[str]:
    """Paths of the Pythons that bgpt_fast supports, one a version, the oldest first."""
    names = [f"python3.{minor}" for minor in range(_OLDEST[1], 30)]
    return [path for name in names if (path := shutil.which(name)) and _runs(path)]


def _runs(python: str) -> bool:
    """False for the commands that pyenv puts on PATH for versions that are not chosen."""
    return subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode == 0


def copy_sources(target: Path) -> None:
    """Copies the files of the working tree that git does not ignore; symbolic links stay links."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    for name in filter(None, listing.stdout.decode().split("\0")):
        source = ROOT / name
        if source.exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name, follow_symlinks=False)


def build_wheel(python: str, output: Path) -> Path:
    """Builds the wheel for one Python.

    Args:
        python: its command or path; it needs venv and the headers of its C interface.
        output: an existing folder.

    Returns:
        The wheel's path.

    Raises:
        subprocess.CalledProcessError: git, pip, the compiler or auditwheel failed; their output says why.
    """
    with tempfile.TemporaryDirectory(prefix="bgpt-fast-wheel-") as temporary:
        folder = Path(temporary)
        sources, unaudited, audited = (folder / name for name in ("sources", "unaudited", "audited"))
        copy_sources(sources)
        subprocess.run([python, "-m", "venv", str(folder / "venv")], check=True)
        programs = folder / "venv" / "bin"
        pip = [str(programs / "python"), "-m", "pip", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "--quiet", "--require-hashes", "-r", str(_REQUIREMENTS)], check=True)
        variables = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
        variables.setdefault("SOURCE_DATE_EPOCH", _time_of_last_commit())
        build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(unaudited), str(sources)]
        subprocess.run([*pip, *build], check=True, env=variables)
        [wheel] = unaudited.iterdir()
        # Nothing is excluded: the extension is built without torch, and CUDA's runtime is linked statically.
        repair = [str(programs / "auditwheel"), "repair", "--wheel-dir", str(audited), str(wheel)]
        subprocess.run(repair, check=True, env=variables)
        [wheel] = audited.iterdir()
        return Path(shutil.copy2(wheel, output))


def _time_of_last_commit() -> str:
    """In seconds since 1970."""
    words = ["git", "log", "-1", "--format=%ct"]
    return subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="the folder of the wheels")
    parser.add_argument("pythons", nargs="*", help="commands or paths; default: each python3.11 and newer on PATH")
    arguments = parser.parse_args()
    pythons = arguments.pythons or pythons_on_path()
    if not pythons:
        parser.error("expected python3.11 or newer on PATH, found none; name one")
    arguments.output.mkdir(parents=True, exist_ok=True)
    for python in pythons:
        print(build_wheel(python, arguments.output))
    return 0


if __name__ == "__main__":
    sys.exit(main())
