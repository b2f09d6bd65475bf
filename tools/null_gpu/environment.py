"""What the null GPU needs, kept in the user's cache folder: an environment with CUDA packages, and what is built there.

Each folder is named by the hash of what it was made from (the pins and Python, or the sources), so that a second run
finds it, and other checkouts share it. Needs only the standard library.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_REQUIREMENTS = ROOT / "requirements" / "cuda-host.txt"
_LIBRARY = Path(__file__).parent / "library"
_MARKER = ".complete"


class EnvironmentFailed(RuntimeError):
    """A package could not be installed, or something could not be built; the text has the end of the output."""


@dataclass(frozen=True)
class NullGPU:
    """Paths of the finished environment.

    Args:
        venv: with the packages of requirements/cuda-host.txt.
        library: libcuda.so.1 of the null GPU.
        extension: `bgpt_fast._C`, built with CUDA.
        cache: the folder that holds them, for Triton's compilations too.
    """

    venv: Path
    library: Path
    extension: Path
    cache: Path

    @property
    def python(self) -> Path:
        return self.venv / "bin" / "python"

    def environ(self, *, gpu: bool = True) -> dict[str, str]:
        """Environment variables of a process; without `gpu`, it has the packages, but sees no GPU."""
        variables = {**os.environ, "OMP_WAIT_POLICY": "passive"}
        variables["PATH"] = os.pathsep.join([str(self.venv / "bin"), str(_cuda(self.venv) / "bin"), os.environ["PATH"]])
        paths = [Path(__file__).parent / "startup", ROOT]
        variables["PYTHONPATH"] = os.pathsep.join(map(str, paths))
        variables["TRITON_CACHE_DIR"] = str(self.cache / "triton")
        variables["BGPT_FAST_EXTENSION"] = str(self.extension)
        if gpu:
            variables["LD_PRELOAD"] = str(self.library)
            variables["TRITON_LIBCUDA_PATH"] = str(self.library.parent)
        return variables


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bgpt_fast"


def prepare(report: Callable[[str], None] = print) -> NullGPU:
    """Makes what is missing: minutes the first time, and a fraction of a second when nothing has changed.

    Raises:
        EnvironmentFailed: pip, CMake or the compiler failed.
    """
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    pins = _hash([_REQUIREMENTS], sys.version, sys.prefix)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        venv = cache / f"cuda-host-{pins}"
        with _making(venv, report, "CUDA packages, some 5 GB") as missing:
            if missing:
                _install(venv)
        library = cache / f"null-gpu-{_hash(_LIBRARY.iterdir(), pins)}"
        with _making(library, report, "the null GPU's library") as missing:
            if missing:
                include = f"-DCUDA_INCLUDE={_cuda(venv) / 'include'}"
                _build(venv, _LIBRARY, library, [include], "libcuda.so.1", library / "build")
        sources = [path for path in (ROOT / "csrc").rglob("*") if path.is_file()]
        extension = cache / f"extension-{_hash([*sources, ROOT / 'CMakeLists.txt'], pins)}"
        with _making(extension, report, "bgpt_fast._C with CUDA") as missing:
            if missing:
                _build(venv, ROOT, extension, _extension_options(venv), "_C*.so", ROOT / "build" / f"cuda-host-{pins}")
    _link(ROOT / ".venv-cuda", venv)
    return NullGPU(venv, library / "libcuda.so.1", next(extension.glob("_C*.so")), cache)


def _cuda(venv: Path) -> Path:
    """The folder of CUDA's programs, headers and libraries, installed by pip."""
    return next((venv / "lib").glob("python3.*")) / "site-packages" / "nvidia" / "cu13"


def _hash(paths: Iterable[Path], *words: str) -> str:
    """A short hash of the files' names and contents and of the words."""
    digest = hashlib.sha256("\0".join(words).encode())
    for path in sorted(path for path in paths if path.is_file()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def _making(folder: Path, report: Callable[[str], None], what: str) -> Iterator[bool]:
    """Whether the folder has to be made; it counts as made once the block has ended without an error."""
    if (folder / _MARKER).exists():
        yield False
        return
    report(f"{folder}: making {what}")
    shutil.rmtree(folder, ignore_errors=True)
    yield True
    (folder / _MARKER).touch()


def _install(venv: Path) -> None:
    _run([sys.executable, "-m", "venv", str(venv)])
    pip = [str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*pip, "-r", str(_REQUIREMENTS)])
    # nvcc looks for its libraries there, and the packages have them in lib.
    _link(_cuda(venv) / "lib64", Path("lib"))


def _extension_options(venv: Path) -> list[str]:
    python = venv / "bin" / "python"
    pybind11 = _run([str(python), "-m", "pybind11", "--cmakedir"]).strip()
    return [
        f"-DPython_EXECUTABLE={python}",
        f"-Dpybind11_DIR={pybind11}",
        f"-DCMAKE_CUDA_COMPILER={_cuda(venv) / 'bin' / 'nvcc'}",
        "-DBGPT_FAST_CUDA=ON",
        "-DBGPT_FAST_CUDA_ARCHITECTURES=90a-real",
        # The null GPU's library has the runtime; a static one would ask the driver for what the null GPU has not.
        "-DBGPT_FAST_CUDA_RUNTIME=None",
    ]


def _build(venv: Path, source: Path, target: Path, options: list[str], pattern: str, build: Path) -> None:
    """Builds with CMake in `build` and copies the file that matches `pattern` to `target`."""
    variables = {**os.environ, "PATH": f"{venv / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    output = build / "output"
    configure = ["cmake", "-S", str(source), "-B", str(build), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"]
    _run([*configure, f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={output}", *options], variables)
    _run(["cmake", "--build", str(build)], variables)
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy2(next(output.glob(pattern)), target)


def _run(command: list[str], variables: dict[str, str] | None = None) -> str:
    """Runs a command and returns its standard output."""
    try:
        ended = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    except OSError as error:
        raise EnvironmentFailed(f"{command[0]}: {error}") from error
    if ended.returncode:
        raise EnvironmentFailed(
            f"{' '.join(command)}: exit code {ended.returncode}\n{(ended.stdout + ended.stderr)[-4000:]}"
        )
    return ended.stdout


def _link(link: Path, target: Path) -> None:
    if link.is_symlink() and link.readlink() == target:
        return
    link.unlink(missing_ok=True)
    link.symlink_to(target)
