"""Names of the measured implementations in results and charts. Standard library only."""

from __future__ import annotations

OURS = "bgpt_fast"
RELEASED = "released method"
REFERENCE = "reference"
COMPILED = "reference, torch.compile"
PLAIN = "plain torch"
PLAIN_COMPILED = "plain torch, torch.compile"
CACHED = "KV-cached torch"
PLAIN_LOOP = "plain loop"
MEGABYTE = "MEGABYTE-pytorch"
FLEX = "FlexAttention"
FLASH = "flash-attn"
LIGER = "Liger-Kernel"
BASELINES = (RELEASED, REFERENCE, COMPILED, PLAIN, PLAIN_COMPILED, CACHED, MEGABYTE, FLEX, FLASH, LIGER)
