"""Writes the Triton ops as a package for Hugging Face's `kernels` library: `make kernels-hub`.

A kernel package is loaded from any folder, several versions in one process: its imports are relative, it imports
nothing but torch, Triton and the standard library, and its ops have a namespace of their own, which follows from the
sources. Without the extension (csrc/) the ops run on the CPU by their references in torch; ops whose forward is C++ or
CUDA are left out.
"""

from __future__ import annotations

import ast
import base64
import hashlib
import json
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
OPS = (
    "bias_gelu",
    "byte_attention",
    "byte_embed",
    "cached_attention",
    "invariant_linear",
    "layer_norm",
    "linear_cross_entropy",
)
"""The folders of ops whose GPU implementation is Triton in both directions."""
_FILES = ("op.py", "reference.py", "triton_kernels.py")
_ALLOWED = {*sys.stdlib_module_names, "torch", "triton"}
_HERE = Path(__file__).parent


def build(folder: Path, root: Path = ROOT) -> dict[str, str]:
    """Writes the kernel repository: build.toml, README.md, and build/torch-BACKEND for each backend of build.toml.

    Args:
        folder: created if missing; must be empty.
        root: the checkout.

    Returns:
        The op namespace of each backend.

    Raises:
        FileExistsError: `folder` is not empty.
        ValueError: a source has an import or a name that a kernel package may not have.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(f"{folder}: expected a new or empty folder, got one with files; remove it")
    configuration = (_HERE / "build.toml").read_text()
    general = tomllib.loads(configuration)["general"]
    sources = _sources(root)
    functions = {op: _public_functions(sources[f"{op}/op.py"]) for op in OPS}
    sources["__init__.py"] = _init_text(functions)
    digest = hashlib.sha256(json.dumps([general["version"], sources], sort_keys=True).encode()).hexdigest()
    python_name = general["name"].replace("-", "_")
    namespaces = {backend: f"_{python_name}_{backend}_{digest[:7]}" for backend in general["backends"]}
    for backend, namespace in namespaces.items():
        files = {name: _in_namespace(name, text, namespace) for name, text in sources.items()}
        variant = folder / "build" / f"torch-{backend}"
        for name, text in files.items():
            path = variant / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        (variant / "metadata.json").write_text(_metadata(general, backend, namespace, files))
    listing = "\n".join(f"- `{name}`" for names in functions.values() for name in names)
    card = (_HERE / "card.md").read_text()
    for name, value in {"repository": general["hub"]["repo-id"], "version": general["version"], "ops": listing}.items():
        card = card.replace(f"{{{name}}}", str(value))
    (folder / "README.md").write_text(card)
    (folder / "build.toml").write_text(configuration)
    return namespaces


def _sources(root: Path) -> dict[str, str]:
    """The package's files with relative imports, in which the ops' namespace is still `bgpt_fast`."""
    paths = {f"{op}/{name}": root / "kernels" / op / name for op in OPS for name in _FILES}
    common = sorted(path for path in (root / "kernels/common").glob("*.py") if path.name != "products.py")
    paths |= {f"common/{path.name}": path for path in common}
    paths["config.py"] = root / "bgpt_fast/config.py"
    return {name: _without_extension(_relative(path.read_text())) for name, path in paths.items()}


def _relative(text: str) -> str:
    text = re.sub(r"^(\s*)from bgpt_fast\.kernels\.", r"\1from ..", text, flags=re.MULTILINE)
    text = re.sub(r"^(\s*)from bgpt_fast\.config ", r"\1from ..config ", text, flags=re.MULTILINE)
    return text.replace(
        '(f"bgpt_fast.kernels.{self.folder}.triton_kernels")', '(f"..{self.folder}.triton_kernels", __package__)'
    )


def _without_extension(text: str) -> str:
    """Without the implementations for the CPU, which need the extension, and what only they use."""
    text = re.sub(r"^\s+cpu=\w+,\n", "", text, flags=re.MULTILINE)
    text = re.sub(r'^\s+\("CPU", op\.cpu\),\n', "", text, flags=re.MULTILINE)
    text = text.replace("from bgpt_fast import _C\n", "")
    while (shorter := _without_unused(text)) != text:
        text = shorter
    return text


def _without_unused(text: str) -> str:
    """Without the module's private functions, constants and imported names that nothing in it refers to."""
    tree = ast.parse(text)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            name = node.name
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
        elif isinstance(node, ast.ImportFrom) and node.level and len(node.names) == 1:
            name = node.names[0].name
        else:
            continue
        others = (other for part in tree.body if part is not node for other in ast.walk(part))
        uses = any(isinstance(other, ast.Name) and other.id == name for other in others)
        is_private = isinstance(node, ast.ImportFrom) or (name.startswith("_") and name != "_library")
        if is_private and not uses:
            lines = text.splitlines(keepends=True)
            first = min([node.lineno, *(item.lineno for item in getattr(node, "decorator_list", []))])
            return "".join(lines[: first - 1] + lines[node.end_lineno :])
    return text


def _public_functions(text: str) -> list[str]:
    return [node.name for node in ast.parse(text).body if isinstance(node, ast.FunctionDef) and node.name[0] != "_"]


def _init_text(functions: dict[str, list[str]]) -> str:
    lines = ['"""The Triton ops of bgpt_fast, the engine for byte models (arXiv 2402.19155)."""', ""]
    lines += [f"from .{op}.op import {', '.join(names)}" for op, names in functions.items()]
    lines += ["", f"__all__ = {sorted(name for names in functions.values() for name in names)}", ""]
    return "\n".join(lines)


def _in_namespace(name: str, text: str, namespace: str) -> str:
    """The text with `namespace` as that of the ops; raises ValueError for what a kernel package may not have."""
    text = text.replace("torch.ops.bgpt_fast", f"torch.ops.{namespace}")
    text = text.replace("bgpt_fast::", f"{namespace}::").replace('Library("bgpt_fast"', f'Library("{namespace}"')
    for node in ast.walk(ast.parse(text)):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
        for module in modules:
            if module.split(".")[0] not in _ALLOWED:
                raise ValueError(f"{name}: expected imports of torch, triton and the standard library, got {module}")
        if isinstance(node, ast.Name) and node.id == "_C":
            raise ValueError(f"{name}, line {node.lineno}: expected no use of the extension _C outside CPU functions")
    return text


def _metadata(general: dict[str, object], backend: str, namespace: str, files: dict[str, str]) -> str:
    digests = {name: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for name, text in files.items()}
    metadata = {
        "name": general["name"],
        "id": namespace,
        "version": general["version"],
        "license": general["license"],
        "python-depends": [],
        "backend": {"type": backend},
        "digest": {"algorithm": "sha256", "files": digests},
    }
    return json.dumps(metadata, indent=2) + "\n"
