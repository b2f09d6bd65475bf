"""A real processor through the same path as the toy one: programs of the MOS 6502, traced by py65 (extra `realcpu`)."""

from bgpt_fast.tasks.mos6502.evaluation import Mos6502Report, evaluate, score
from bgpt_fast.tasks.mos6502.source import Mos6502Source
from bgpt_fast.tasks.mos6502.tracing import COLUMNS, ProgramOptions, generate, trace

__all__ = ["COLUMNS", "Mos6502Report", "Mos6502Source", "ProgramOptions", "evaluate", "generate", "score", "trace"]
