"""What the null GPU needs, kept in the user's cache folder: an environment with CUDA packages, and what is built there.

Each folder is named by the hash of what it was made from (the pins and Python, or the sources), so that a second run
finds it, and other checkouts share it. Needs only the standard library.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_REQUIREMENTS = ROOT / "requirements" / "cuda-host.txt"
_LIBRARY = Path(__file__).parent / "library"
_MARKER = ".complete"
_PACKAGES_BYTES, _WHEELS_BYTES, _BUILD_BYTES = 8 << 30, 4 << 30, 1 << 30
"""Free disk space for the packages, for their wheels in the folder of temporary files meanwhile, and for a build."""


class EnvironmentFailed(RuntimeError):
    """Something could not be built; the text has the end of the output."""


class EnvironmentUnavailable(EnvironmentFailed):
    """The packages cannot be had here: no index of packages in reach, or too little disk space or time."""


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


def prepare(report: Callable[[str], None] = print, *, install_seconds: float | None = None) -> NullGPU:
    """Makes what is missing: minutes the first time, and a fraction of a second when nothing has changed.

    Args:
        report: called with a line for each part that is made.
        install_seconds: most time for the installation of the packages; None means no limit.

    Raises:
        EnvironmentUnavailable: the packages cannot be had.
        EnvironmentFailed: CMake or the compiler failed.
    """
    cache = cache_folder()
    pins = _hash([_REQUIREMENTS], sys.version, sys.base_prefix)
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentUnavailable(f"the cache folder cannot be made: {error}") from error
    venv = cache / f"cuda-host-{pins}"
    _make(venv, report, "CUDA packages, some 5 GB", lambda: _install(venv, install_seconds))
    library = cache / f"null-gpu-{_hash(_LIBRARY.iterdir(), pins)}"
    _make(library, report, "the null GPU's library", lambda: _build_library(venv, library))
    sources = [path for path in (ROOT / "csrc").rglob("*") if path.is_file()]
    extension = cache / f"extension-{_hash([*sources, ROOT / 'CMakeLists.txt'], pins)}"
    tree = ROOT / "build" / f"cuda-host-{pins}"
    _make(extension, report, "bgpt_fast._C with CUDA", lambda: _build_extension(venv, extension, tree))
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


def _make(folder: Path, report: Callable[[str], None], what: str, make: Callable[[], None]) -> None:
    """Calls `make` if the folder is not complete, in one process at a time; after an error, removes the folder."""
    marker = folder / _MARKER
    if marker.exists():
        return
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if marker.exists():
            return
        report(f"{folder}: making {what}")
        shutil.rmtree(folder, ignore_errors=True)
        try:
            make()
            marker.touch()
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def _check_space(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < size:
        raise EnvironmentUnavailable(f"{folder}: expected {size >> 30} GiB of free disk space, got {free / 2**30:.1f}")


def _install(venv: Path, seconds: float | None) -> None:
    _check_space(venv.parent, _PACKAGES_BYTES)
    _check_space(Path(tempfile.gettempdir()), _WHEELS_BYTES)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    try:
        # Without an index in reach, an installation would retry for many minutes.
        _run([*pip, "index", "versions", "triton", "--timeout", "10", "--retries", "0"], seconds=45)
        _run([sys.executable, "-m", "venv", str(venv)])
        pip[0] = str(venv / "bin" / "python")
        _run([*pip, "install", "--quiet", "--no-cache-dir", "-r", str(_REQUIREMENTS)], seconds=seconds)
    except EnvironmentFailed as error:
        raise EnvironmentUnavailable(str(error)) from error
    # nvcc looks for its libraries there, and the packages have them in lib.
    _link(_cuda(venv) / "lib64", Path("lib"))


def _build_library(venv: Path, target: Path) -> None:
    options = [f"-DCUDA_INCLUDE={_cuda(venv) / 'include'}"]
    _build(venv, _LIBRARY, target, options, "libcuda.so.1", target / "build")


def _build_extension(venv: Path, target: Path, tree: Path) -> None:
    python = venv / "bin" / "python"
    pybind11 = _run([str(python), "-m", "pybind11", "--cmakedir"]).strip()
    options = [
        f"-DPython_EXECUTABLE={python}",
        f"-Dpybind11_DIR={pybind11}",
        f"-DCMAKE_CUDA_COMPILER={_cuda(venv) / 'bin' / 'nvcc'}",
        "-DBGPT_FAST_CUDA=ON",
        "-DBGPT_FAST_CUDA_ARCHITECTURES=90a-real",
        # The null GPU's library has the runtime; a static one would ask the driver for what the null GPU has not.
        "-DBGPT_FAST_CUDA_RUNTIME=None",
    ]
    _build(venv, ROOT, target, options, "_C*.so", tree)


def _build(venv: Path, source: Path, target: Path, options: list[str], pattern: str, build: Path) -> None:
    """Builds with CMake in `build` and copies the file that matches `pattern` to `target`."""
    for folder in (target.parent, build.parent):
        folder.mkdir(parents=True, exist_ok=True)
        _check_space(folder, _BUILD_BYTES)
    variables = {**os.environ, "PATH": f"{venv / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    output = build / "output"
    configure = ["cmake", "-S", str(source), "-B", str(build), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"]
    _run([*configure, f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={output}", *options], variables)
    _run(["cmake", "--build", str(build)], variables)
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy2(next(output.glob(pattern)), target)


def _run(command: list[str], variables: dict[str, str] | None = None, *, seconds: float | None = None) -> str:
    """Runs a command, for `seconds` at most, and returns its standard output."""
    try:
        ended = subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=seconds)
    except (OSError, subprocess.TimeoutExpired) as error:
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
