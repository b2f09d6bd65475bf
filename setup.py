"""Builds the C++/CUDA extension `bgpt_fast._C` with CMake and ninja; everything else is in pyproject.toml."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Hands the one extension to CMake. `BGPT_FAST_CUDA=OFF` builds without CUDA even where nvcc is found.

    `BGPT_FAST_CUDA_ARCHITECTURES` compiles for some GPU generations alone, in CMake's notation, such as 90a-real.
    """

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve() / "cmake"
        build.mkdir(parents=True, exist_ok=True)
        cmake = shutil.which("cmake")
        if cmake is None:
            raise RuntimeError("cmake was not found; `pip install cmake ninja` or your system's package provides it")
        configure = [
            cmake, "-S", str(ROOT), "-B", str(build), "-G", "Ninja",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DBGPT_FAST_CUDA={os.environ.get('BGPT_FAST_CUDA', 'AUTO')}",
        ]  # fmt: skip
        if architectures := os.environ.get("BGPT_FAST_CUDA_ARCHITECTURES"):
            configure.append(f"-DBGPT_FAST_CUDA_ARCHITECTURES={architectures}")
        ninja = shutil.which("ninja")
        if ninja is None:
            raise RuntimeError("ninja was not found; `pip install ninja` or your system's package provides it")
        # A build folder of another interpreter or of a deleted build environment would keep stale paths.
        (build / "CMakeCache.txt").unlink(missing_ok=True)
        subprocess.run([*configure, f"-DCMAKE_MAKE_PROGRAM={ninja}"], check=True)
        subprocess.run([cmake, "--build", str(build)], check=True)


setup(ext_modules=[Extension("bgpt_fast._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
