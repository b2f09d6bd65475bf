"""A wheel holds the package, the kernels and the extension, is built again alike, and works where nothing else is."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
import torch
from support.paths import ROOT
from support.readme import readme_program

from bgpt_fast import _C
from bgpt_fast.version import __version__
from tools.wheels import Interpreter, candidates, choose


def test_extras_that_texts_name_exist() -> None:
    """The package is on no index, so that every text names the repository, as in pip install ".[data]"."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    known = {*project["optional-dependencies"]}
    folders = ("bgpt_fast", "examples", "docs", "benchmarks", "tools", "tests")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".md")]
    texts = {path: path.read_text(encoding="utf-8") for path in [*paths, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]}
    index_name = "bgpt-fast" + "["
    assert [str(path) for path, text in texts.items() if index_name in text] == []
    named = {
        extra
        for text in texts.values()
        for extras in re.findall(r"[\"']\.\[([\w,-]+)\]", text)
        for extra in extras.split(",")
    }
    assert {"data", "plot", "train", "music", "image", "audio"} <= named <= known
    guide = (ROOT / "docs/installation.md").read_text(encoding="utf-8")
    assert known - set(re.findall(r"`([\w-]+)`", guide)) == {"peers", "dev", "bench-baselines"}


def test_every_import_is_a_declared_dependency() -> None:
    """Else it fails on a machine that has no more than the requirements (lucidrains/MEGABYTE-pytorch#21)."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    names = {"pyyaml": "yaml", "scikit-learn": "sklearn", "pillow": "PIL", "huggingface-hub": "huggingface_hub"}

    def modules(requirements: list[str]) -> set[str]:
        distributions = {re.split(r"[^\w.-]", requirement)[0] for requirement in requirements}
        return {names.get(name, name.replace("-", "_")) for name in distributions}

    always = modules(project["dependencies"]) | {*sys.stdlib_module_names, "bgpt_fast"}
    optional = modules([requirement for extra in extras.values() for requirement in extra])
    optional |= {"triton", "flash_attn", "flash_attn_interface"}  # of torch's CUDA build; flash-attn 2 and 3
    optional |= {"benchmarks"}  # of the checkout
    for path in [*(ROOT / "bgpt_fast").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                imported = {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported = {(node.module or "").split(".")[0]}
            else:
                continue
            on_demand = path.name in ("triton_kernels.py", "one_hot.py") or path.parent.name == "hf"
            at_import = node in tree.body and not on_demand
            assert imported <= (always if at_import else always | optional), f"{path}:{node.lineno}: {imported}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel for this Python, by `make wheel`'s program."""
    return build(sys.executable, tmp_path_factory.mktemp("wheel"))


def build(python: str, output: Path) -> Path:
    environment = {**os.environ, "BGPT_FAST_CUDA": "OFF", "SOURCE_DATE_EPOCH": "1700000000"}
    words = [sys.executable, "-m", "tools.wheels", "--output", str(output), python]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    if "No matching distribution" in done.stderr or "Connection" in done.stderr:
        pytest.skip("the packages of requirements/wheel.txt cannot be had here")
    assert done.returncode == 0, done.stderr
    [path] = output.glob("*.whl")
    return path


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_wheel(wheel: Path) -> None:
    version = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert re.fullmatch(rf"bgpt_fast-[\d.]+-{version}-{version}-manylinux_\d+_\d+_\w+\.whl", wheel.name), wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    kernels = [str(file.relative_to(ROOT)) for file in ROOT.glob("kernels/*/*.py")]
    assert len(kernels) > 10
    assert {f"bgpt_fast/{file}" for file in kernels} <= set(names)
    assert "bgpt_fast/py.typed" in names
    libraries = [name for name in names if ".so" in name]
    assert [name.split(".")[0] for name in libraries] == ["bgpt_fast/_C"], "no other library is in it"
    assert {name.split("/")[0] for name in names} == {"bgpt_fast", f"bgpt_fast-{__version__}.dist-info"}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_second_build_has_the_same_bytes(wheel: Path, tmp_path: Path) -> None:
    again = build(sys.executable, tmp_path)
    assert again.name == wheel.name
    assert again.read_bytes() == wheel.read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_wheel_runs_the_readme_in_a_bare_environment(wheel: Path, tmp_path: Path) -> None:
    """Its environment has the dependencies' packages, but no checkout, and PATH has no compiler."""
    venv = tmp_path / "venv"
    # Without pip, and so without the old setuptools that comes with it.
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    [site] = venv.glob("lib/python3.*/site-packages")
    dependencies = tmp_path / "dependencies"
    dependencies.mkdir()
    for folder in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for path in Path(folder).iterdir():
            if "bgpt_fast" not in path.name:
                (dependencies / path.name).symlink_to(path)
    (site / "dependencies.pth").write_text(f"{dependencies}\n")
    alone = {"PATH": str(venv / "bin"), "HOME": str(tmp_path)}
    for compiler in ("c++", "g++", "gcc", "cc", "clang", "nvcc", "cmake", "ninja"):
        assert shutil.which(compiler, path=alone["PATH"]) is None
    python = str(venv / "bin" / "python")
    # Not --no-deps: pip refuses a wheel whose requirements the environment has not.
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index"]
    subprocess.run([*pip, str(wheel)], check=True, env=alone)
    program = readme_program() + "\nimport bgpt_fast\nprint(bgpt_fast.__file__)\n"
    done = subprocess.run([python, "-c", program], env=alone, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "state bytes right" in done.stdout
    assert str(site) in done.stdout


# Of the extension alone, so that no torch of this Python is needed: LayerNorm of two rows in arrays of ctypes.
EXTENSION_PROGRAM = """
import ctypes, importlib.util, json, sys
spec = importlib.util.spec_from_file_location("bgpt_fast._C", sys.argv[1])
extension = importlib.util.module_from_spec(spec)
spec.loader.exec_module(extension)
x, y = (ctypes.c_float * 32)(*[i * i % 13 for i in range(32)]), (ctypes.c_float * 32)(*[float("nan")] * 32)
weight, bias = (ctypes.c_float * 16)(*[1.0] * 16), (ctypes.c_float * 16)()
mean, rstd = (ctypes.c_float * 2)(), (ctypes.c_float * 2)()
addresses = [ctypes.addressof(array) for array in (x, x, y, weight, bias, mean, rstd)]
extension.layer_norm_forward(0, *addresses, 2, 16, 1e-5, False, False, 1, extension.best_isa())
names = sorted(name for name in dir(extension) if not name.startswith("_"))
print(json.dumps({"version": sys.version_info[:2], "names": names, "torch": "torch" in sys.modules, "y": list(y)}))
"""


def other_pythons() -> list[Interpreter]:
    return [python for python in choose(candidates(), lambda line: None) if python.version[:2] != sys.version_info[:2]]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_extension_of_every_other_python_works_without_torch(tmp_path: Path) -> None:
    pythons = other_pythons()
    if not pythons:
        pytest.skip("no other Python that a wheel can be built for is here")
    x = torch.tensor([float(i * i % 13) for i in range(32)]).view(2, 16)
    expected = torch.nn.functional.layer_norm(x, (16,))
    own_names = sorted(name for name in dir(_C) if not name.startswith("_"))
    for python in pythons:
        version = "".join(map(str, python.version[:2]))
        folder = tmp_path / version
        folder.mkdir()
        path = build(python.path, folder)
        assert f"-cp{version}-cp{version}-manylinux_" in path.name
        with zipfile.ZipFile(path) as archive:
            [library] = [name for name in archive.namelist() if ".so" in name]
            archive.extract(library, folder)
        words = [python.path, "-I", "-c", EXTENSION_PROGRAM, str(folder / library)]
        outcome = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
        assert outcome["version"] == list(python.version[:2])
        assert outcome["names"] == own_names
        assert not outcome["torch"]
        assert torch.allclose(torch.tensor(outcome["y"]).view(2, 16), expected, atol=1e-6)
