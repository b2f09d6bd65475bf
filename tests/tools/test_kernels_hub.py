"""The kernel package for Hugging Face's `kernels` library: built, loaded from its folder, run."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from support.interpreter import DEVICE  # isort: skip  # before triton
from support.paths import ROOT

from bgpt_fast.kernels.layer_norm.op import layer_norm
from bgpt_fast.kernels.layer_norm.reference import layer_norm_reference
from tools.kernels_hub import OPS, build

kernels = pytest.importorskip("kernels")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kernels") / "bgpt-fast-ops"
    build(path)
    return path


@pytest.fixture(scope="module")
def package(folder: Path) -> ModuleType:
    return kernels.get_local_kernel(folder)


def rows(seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(DEVICE) for shape in ((5, 96), (96,), (96,))]


def test_what_it_has(folder: Path, package: ModuleType) -> None:
    assert {path.name for path in folder.iterdir()} == {"README.md", "build.toml", "build"}
    assert {path.name for path in (folder / "build").iterdir()} == {"torch-cuda", "torch-cpu"}
    assert set(OPS) - {"byte_attention"} <= set(package.__all__)
    assert all(callable(getattr(package, name)) for name in package.__all__)
    assert all(f"`{name}`" in (folder / "README.md").read_text() for name in package.__all__)
    for variant in (folder / "build").iterdir():
        metadata = json.loads((variant / "metadata.json").read_text())
        files = {str(path.relative_to(variant)): path for path in variant.rglob("*.py")}
        assert metadata["digest"]["files"].keys() == files.keys()
        for name, path in files.items():
            expected = base64.b64encode(hashlib.sha256(path.read_bytes()).digest()).decode()
            assert metadata["digest"]["files"][name] == expected


def test_an_op_and_its_gradient(package: ModuleType) -> None:
    results = []
    for function in (package.layer_norm, layer_norm):
        tensors = [tensor.requires_grad_() for tensor in rows()]
        y = function(*tensors)
        y.square().sum().backward()
        results.append([y.detach(), *(tensor.grad for tensor in tensors)])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="layer_norm: weight: expected"):
        package.layer_norm(rows()[0], rows()[1][:5], rows()[2])


def test_a_triton_kernel_of_the_package_runs(package: ModuleType) -> None:
    """On a GPU by the op; without one its launcher in Triton's interpreter."""
    __import__(f"{package.__name__}.layer_norm.triton_kernels")
    triton_kernels = sys.modules[f"{package.__name__}.layer_norm.triton_kernels"]
    assert Path(triton_kernels.__file__ or "").is_relative_to(Path(package.__file__ or "").parent)
    x, weight, bias = rows(1)
    y, mean, rstd = triton_kernels.layer_norm_forward(x, weight, bias, 1e-5, torch.float32)
    expected = layer_norm_reference(x, weight, bias, 1e-5, torch.float32)
    for ours, other in zip((y, mean, rstd), expected, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-5, atol=1e-5)


def test_every_op_is_registered_in_the_packages_own_namespace(package: ModuleType, folder: Path) -> None:
    namespace = package.__name__
    assert namespace.startswith("_bgpt_fast_ops_")
    cuda = kernels.get_local_kernel(folder / "build" / "torch-cuda")
    assert cuda.__name__ != namespace
    for op in OPS:
        names = [one.name for one in sys.modules[f"{cuda.__name__}.{op}.op"].OPS]
        assert names
        for name in names:
            assert torch._C._dispatch_has_kernel_for_dispatch_key(f"{cuda.__name__}::{name}", "CUDA"), name
            assert not torch._C._dispatch_has_kernel_for_dispatch_key(f"{cuda.__name__}::{name}", "CPU"), name
    torch.library.opcheck(getattr(torch.ops, namespace).layer_norm, (*rows(), 1e-5, torch.float32))


def test_two_versions_in_one_process(package: ModuleType, tmp_path: Path) -> None:
    """Other sources have another namespace; both work side by side, and equal sources have the same."""
    assert build(tmp_path / "same")["cpu"] in (package.__name__, package.__name__.replace("cuda", "cpu"))
    checkout = tmp_path / "checkout"
    for name in ("kernels", "bgpt_fast/config.py"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, checkout / name)
    path = checkout / "kernels/layer_norm/reference.py"
    path.write_text(path.read_text().replace("* weight + bias", "* weight + bias + 1"))
    build(tmp_path / "other", checkout)
    other = kernels.get_local_kernel(tmp_path / "other")
    assert other.__name__ != package.__name__
    tensors = [tensor.cpu() for tensor in rows()]
    torch.testing.assert_close(other.layer_norm(*tensors), package.layer_norm(*tensors) + 1)


def test_it_needs_no_bgpt_fast(folder: Path, tmp_path: Path) -> None:
    program = (
        "import sys, torch; sys.modules['bgpt_fast'] = None\n"
        "from pathlib import Path; from kernels import get_local_kernel\n"
        f"ops = get_local_kernel(Path({str(folder)!r}), backend='cpu')\n"
        "print(ops.bias_gelu(torch.ones(2, 3), torch.ones(3)).shape)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "torch.Size([2, 3])" in done.stdout


def test_what_a_package_may_not_have_is_refused(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT / "kernels", checkout / "kernels")
    (checkout / "bgpt_fast").mkdir()
    config = (ROOT / "bgpt_fast/config.py").read_text()
    for added, message in (("import numpy", "got numpy"), ("from bgpt_fast.model import BGPT", "got bgpt_fast.model")):
        (checkout / "bgpt_fast/config.py").write_text(f"{config}\n{added}\n")
        with pytest.raises(ValueError, match=f"config.py: expected imports of torch.*{message}"):
            build(tmp_path / message, checkout)
    (checkout / "bgpt_fast/config.py").write_text(f"{config}\nprint(_C)\n")
    with pytest.raises(ValueError, match="expected no use of the extension _C"):
        build(tmp_path / "extension", checkout)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(FileExistsError, match="expected a new or empty folder"):
        build(tmp_path / "full")
