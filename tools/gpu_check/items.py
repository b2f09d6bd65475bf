"""Names of the items of each piece in pieces.py. Standard library only."""

from __future__ import annotations

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
ITEMS = {
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
