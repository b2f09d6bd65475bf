"""Builds `bgpt_fast._C` with CUDA, on a machine without a GPU, for another one's Python.

    make gpu-extension GPU_PYTHON=python3.12

The file lies beside the ordinary extension, whose name has another Python's version, and is loaded once by that Python,
which needs no packages. `make gpu-contact` there uses it if it can be imported and one of its kernels runs, and
otherwise builds it anew.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

import pybind11

from benchmarks.environment import ROOT

LOAD = """
import sys, sysconfig
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
path = f"{sys.argv[1]}/_C{sysconfig.get_config_var('EXT_SUFFIX')}"
loader = ExtensionFileLoader("_C", path)
module = module_from_spec(spec_from_loader("_C", loader))
loader.exec_module(module)
if not module.with_cuda:
    sys.exit(f"{path} was built without CUDA")
print(path)
"""
"""A program that loads the extension without its package, which needs torch, and prints its path."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="an interpreter of the GPU machine's version")
    parser.add_argument("--architectures", default="90a-real", help="as CMake names them (default: H100, H200)")
    arguments = parser.parse_args()
    build = ROOT / "build" / "gpu-extension"
    configure = ["cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", "--fresh"]
    configure += [f"-DPython_EXECUTABLE={arguments.python}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
    configure += ["-DBGPT_FAST_CUDA=ON", f"-DBGPT_FAST_CUDA_ARCHITECTURES={arguments.architectures}"]
    configure += [f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={ROOT / 'bgpt_fast'}"]
    load = [arguments.python, "-c", LOAD, str(ROOT / "bgpt_fast")]
    for command in (configure, ["cmake", "--build", str(build)], load):
        ended = subprocess.run(command, check=False)
        if ended.returncode:
            return ended.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
