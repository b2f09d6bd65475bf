"""The CPU-states task: a toy machine, its random programs, and how well a model simulates it (arXiv 2402.19155)."""

from bgpt_fast.tasks.cpu_states.evaluation import (
    CPUStateReport,
    InstructionScore,
    RegisterScore,
    StateCounts,
    evaluate,
    evaluate_bytes,
)
from bgpt_fast.tasks.cpu_states.export import (
    read_folder,
    read_folder_chunks,
    read_parquet,
    read_parquet_chunks,
    write_folder,
    write_parquet,
)
from bgpt_fast.tasks.cpu_states.formatting import format_difference, format_trace
from bgpt_fast.tasks.cpu_states.gpu import generate_on_gpu
from bgpt_fast.tasks.cpu_states.gpu_source import GPUStateSource
from bgpt_fast.tasks.cpu_states.machine import ProgramError, assemble, disassemble
from bgpt_fast.tasks.cpu_states.options import SMALL_MACHINE, StreamOptions
from bgpt_fast.tasks.cpu_states.packing import pack_traces
from bgpt_fast.tasks.cpu_states.simulation import simulate, teacher_forced
from bgpt_fast.tasks.cpu_states.source import CPUStateSource
from bgpt_fast.tasks.cpu_states.streams import ReleasedStream, generate, generate_released_split
from bgpt_fast.tasks.cpu_states.trace import PredictedTrace, Trace, TraceError, column_names, run
from bgpt_fast.tasks.cpu_states.traces import Traces, split_of

__all__ = [
    "SMALL_MACHINE",
    "CPUStateReport",
    "CPUStateSource",
    "GPUStateSource",
    "InstructionScore",
    "PredictedTrace",
    "ProgramError",
    "RegisterScore",
    "ReleasedStream",
    "StateCounts",
    "StreamOptions",
    "Trace",
    "TraceError",
    "Traces",
    "assemble",
    "column_names",
    "disassemble",
    "evaluate",
    "evaluate_bytes",
    "format_difference",
    "format_trace",
    "generate",
    "generate_on_gpu",
    "generate_released_split",
    "pack_traces",
    "read_folder",
    "read_folder_chunks",
    "read_parquet",
    "read_parquet_chunks",
    "run",
    "simulate",
    "split_of",
    "teacher_forced",
    "write_folder",
    "write_parquet",
]
