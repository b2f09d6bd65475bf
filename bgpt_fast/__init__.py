"""bgpt_fast: the fast engine for bGPT byte models (arXiv 2402.19155)."""

from bgpt_fast.classifier import BGPTForClassification
from bgpt_fast.config import BGPTConfig
from bgpt_fast.generation import Generation, Generator, Prompt
from bgpt_fast.model import BGPT
from bgpt_fast.patches import PackedPatches
from bgpt_fast.reference import ReferenceBGPT
from bgpt_fast.version import __version__

__all__ = [
    "BGPT",
    "BGPTConfig",
    "BGPTForClassification",
    "Generation",
    "Generator",
    "PackedPatches",
    "Prompt",
    "ReferenceBGPT",
    "__version__",
]
