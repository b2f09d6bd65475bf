"""Generation: continues files byte by byte; a file's bytes do not depend on its batch."""

from bgpt_fast.generation.drafting import Drafter, KnownDrafter, LookupDrafter, RepeatDrafter
from bgpt_fast.generation.generator import Generator
from bgpt_fast.generation.prompt import Generation, Prompt

__all__ = ["Drafter", "Generation", "Generator", "KnownDrafter", "LookupDrafter", "Prompt", "RepeatDrafter"]
