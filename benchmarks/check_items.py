"""What each worker piece of `gpu_check.py` consists of, by name. Standard library only."""

from __future__ import annotations

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
"""The cases of op_cases.py that a GPU has its own path for."""
OURS, RELEASED, COMPILED = CONTENDERS = ("bgpt_fast", "released way", "reference, torch.compile")
"""Who trains; the one that takes a minute to compile comes last."""
BATCHES = ("1", "64", "2048")
"""Files side by side in generation."""
DECODED = ("1", "2", "4", "8", "16", "24", "32", "64", "256", "1024", "4096")
"""Patches side by side in the byte decoder, whose two engines meet somewhere among the first."""
ITEMS = {
    "ceilings": ("matmul", "copy"),
    "ops": OPS,
    "correctness": OPS,
    "graphs": OPS,
    "exercise": (*OPS, "byte_decode"),
    "training": ("losses", *CONTENDERS),
    "byte_decode": ("bytes", *DECODED),
    "generation": (*BATCHES, RELEASED),
    "cpu_states": ("parallel stream",),
}
