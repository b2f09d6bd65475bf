"""Lower bounds on the work of whole model passes: operations (`bgpt_fast.flops`) and bytes of memory traffic.

Bytes: every weight that a pass uses is read once, and again for each later pass that depends on the previous one;
training also reads and writes AdamW's moments. Activations are not counted, since they can stay in caches, so the
reported share of the peak rate is a lower bound.

Shape letters: B files, L patches of context, S bytes a patch, D width, V = 257 tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.op_cases import Work
from bgpt_fast import BGPTConfig
from bgpt_fast.config import VOCAB_SIZE
from bgpt_fast.flops import forward_flops, training_flops


def weights(config: BGPTConfig) -> dict[str, int]:
    """Parameters by part: the two decoders' layers with their final norms, and the tables, including the head."""
    S, D = config.patch_size, config.hidden_size
    layer = 12 * D * D + 13 * D  # four linears with biases, two norms
    return {
        "patch decoder": config.patch_num_layers * layer + 2 * D,
        "byte decoder": config.byte_num_layers * layer + 2 * D,
        "patch tables": (S * VOCAB_SIZE + 1 + config.patch_length + 1) * D,
        "byte tables": (VOCAB_SIZE + S + 1) * D,
    }


def training_work(config: BGPTConfig, lengths: Sequence[int], element: int) -> Work:
    """One step of training with AdamW.

    Args:
        config: the model.
        lengths: number of patches of each document.
        element: bytes per weight in the matrix products; master weights, gradients and AdamW's moments are float32.
    """
    count = sum(weights(config).values())
    # Weights for both passes; the gradient written and read; the master weight and both moments read and written.
    return Work(2 * element * count + 8 * count + 24 * count, training_flops(config, lengths))


def scoring_work(config: BGPTConfig, lengths: Sequence[int], element: int) -> Work:
    """One forward pass over documents."""
    return Work(element * sum(weights(config).values()), sum(forward_flops(config, lengths).values()))


def prefill_work(config: BGPTConfig, files: int, context: int, element: int) -> Work:
    """Reading prompts of `context` patches, and writing the first patch of each file; arguments as `decoding_work`."""
    patch, byte = forward_flops(config, [context] * files, 0), _byte_flops(config, files)
    return Work(element * _weights_read(config), patch["patch linears"] + patch["patch attention"] + byte)


def decoding_work(config: BGPTConfig, files: int, context: int, element: int) -> Work:
    """Decoding one more patch of each file, with keys and values cached in float32.

    The patch decoder's weights are read once, and the byte decoder's once for each of the S bytes, since each depends
    on the previous one; the patch decoder's cache is read once.

    Args:
        config: the model.
        files: B.
        context: L, the number of patches before the new one.
        element: bytes per weight.
    """
    patch = forward_flops(config, [1] * files, 0)
    attention = 4 * config.hidden_size * context * files * config.patch_num_layers
    cache = 2 * config.hidden_size * context * files * config.patch_num_layers
    return Work(
        element * _weights_read(config) + 4 * cache, patch["patch linears"] + attention + _byte_flops(config, files)
    )


def _weights_read(config: BGPTConfig) -> int:
    parts = weights(config)
    return parts["patch decoder"] + config.patch_size * (parts["byte decoder"] + parts["byte tables"])


def _byte_flops(config: BGPTConfig, files: int) -> int:
    """The byte decoder's FLOPs for one patch of each file."""
    parts = forward_flops(config, [2] * files, files)
    return parts["byte linears"] + parts["byte attention"] + parts["head"]
