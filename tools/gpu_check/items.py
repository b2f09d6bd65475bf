"""The items of each piece of gpu_check that computes, by name. Standard library only."""

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
"""The cases of op_cases.py that have an implementation of their own on a GPU."""
FOLDERS = {"add_layer_norm": "layer_norm", "byte_attention_projected": "byte_attention"}
"""In kernels/, of the ops that share one."""
IMPLEMENTATIONS = (OURS, RELEASED, COMPILED)
"""Of training; the one that takes a minute to compile is last."""
BATCHES = ("1", "64", "2048")
"""Files side by side in generation."""
DECODED = ("1", "2", "4", "8", "16", "24", "32", "64", "256", "1024", "4096")
"""Patches side by side in the byte decoder; the faster of its two engines changes somewhere among the first."""
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
