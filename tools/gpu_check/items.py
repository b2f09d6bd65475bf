"""Names of the items of each piece in pieces.py and contact.py, and what an item of the check needs from the contact.

Standard library only.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.names import COMPILED, OURS, RELEASED

OPS = (
    "layer_norm",
    "add_layer_norm",
    "bias_gelu",
    "byte_attention",
    "byte_attention_projected",
    "patch_attention",
    "linear_cross_entropy",
    "patch_embed",
    "byte_embed",
)
"""The cases in op_cases.py that have their own GPU implementation."""
FOLDERS = {"add_layer_norm": "layer_norm", "byte_attention_projected": "byte_attention"}
"""Folders in kernels/ of the ops that share a folder."""
IMPLEMENTATIONS = (OURS, RELEASED, COMPILED)
"""Implementations of training; the one that takes a minute to compile is last."""
BATCHES = ("1", "64", "2048")
"""Batch sizes of generation, in files."""
DECODED = ("1", "2", "4", "8", "16", "24", "32", "64", "256", "1024", "4096")
"""Batch sizes of the byte decoder, in patches; the crossover between its two engines is among the first."""
DTYPES = ("float32", "bfloat16", "float16")
FORWARD_ONLY = ("byte_attention_projected",)
"""Ops without gradients."""
ENGINES = ("graphed", "invariant", "persistent")
"""Engines of the byte decoder."""
STEPS = tuple(f"step {dtype}" for dtype in DTYPES[:2])
BYTES = tuple(f"bytes {engine}" for engine in ENGINES)
PRODUCTS = ("forward qkv", "forward proj", "forward fc", "forward fc_out", "dx fc", "dweight fc")
"""Matrix products of the byte decoder's layers, which have four fifths of a step's arithmetic."""


def value_items(op: str) -> tuple[str, ...]:
    """The items of the piece "values" of an op, such as "layer_norm float32 gradients"."""
    passes = ("forward",) if op in FORWARD_ONLY else ("forward", "gradients")
    return tuple(f"{op} {dtype} {name}" for dtype in DTYPES for name in passes)


ITEMS = {
    "extension": ("cuda",),
    "values": tuple(item for op in OPS for item in value_items(op)),
    "first": (*STEPS, "graph", *BYTES, "CPU states"),
    "products": PRODUCTS,
    "steps": ("timed", "trace"),
    "peak": ("matmul", "copy"),
    "ops": OPS,
    "correctness": OPS,
    "graphs": OPS,
    "exercise": (*OPS, "byte_decode"),
    "training": ("losses", *IMPLEMENTATIONS),
    "byte_decode": ("bytes", *DECODED),
    "generation": (*BATCHES, RELEASED),
    "cpu_states": ("parallel stream",),
}

_PIECES = {
    "training": ("first", STEPS),
    "steps": ("first", STEPS),
    "byte_decode": ("first", BYTES),
    "generation": ("first", (*STEPS, *BYTES)),
    "cpu_states": ("first", ("CPU states",)),
}
_TESTS = {"generation": ("first", BYTES), "training": ("first", STEPS), "cpu_states": ("first", ("CPU states",))}


def needs(piece: str, item: str) -> tuple[str, tuple[str, ...]]:
    """A piece of the contact and those of its items that must be ok before an item of the check is run."""
    if piece in ("ops", "correctness", "graphs", "exercise"):
        return ("first", BYTES) if item == "byte_decode" else ("values", value_items(item))
    if piece == "tests":
        folder = Path(item).parent.name
        stem = Path(item).stem.removeprefix("test_")
        ops = [op for op in OPS if folder == "kernels" and FOLDERS.get(op, op) == stem]
        subject = "generation" if stem == "byte_decode" else folder
        return _TESTS.get(subject, ("values", tuple(name for op in ops for name in value_items(op))))
    return _PIECES.get(piece, ("values", ()))
