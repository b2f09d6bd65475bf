"""Predictions of traces by a model: free running, and teacher-forced.

Letters: N executed instructions, C bytes per state, S bytes per patch, T target patches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from bgpt_fast.checks import check_int
from bgpt_fast.documents import count_patches
from bgpt_fast.generation import Generator
from bgpt_fast.generation.drafting import KnownDrafter
from bgpt_fast.generation.packed_prompts import PackedPrompts
from bgpt_fast.model import BGPT, evaluation_mode
from bgpt_fast.tasks.cpu_states.machine import state_size
from bgpt_fast.tasks.cpu_states.packing import EXTENSION, check_context, first_target, pack_traces
from bgpt_fast.tasks.cpu_states.trace import PredictedTrace, Trace
from bgpt_fast.tasks.cpu_states.traces import Traces


def simulate(
    generator: Generator,
    traces: Traces | Sequence[Trace],
    *,
    max_new_bytes: int | None = None,
    draft: bool = False,
    progress: Callable[[int, int, int], None] | None = None,
) -> list[PredictedTrace]:
    """Simulates programs: from only memory and first state, the model generates all further bytes greedily.

    Args:
        generator: generator of a model that was trained on traces of the same machine.
        traces: the programs; the model gets only memory and first state of each.
        max_new_bytes: most bytes for each program; None means those of its true states and one patch or state
            more, to detect that the model does not end the file.
        draft: the true trace is the draft of speculative decoding, so that the model checks many bytes at once (on the
            CPU). It changes no byte; a rollout up to its first wrong byte takes little more than a teacher-forced pass.
        progress: called with (programs done, programs in all, new bytes so far), as `Generator.generate` does.

    Returns:
        A prediction for each program, valid or not; `evaluate` scores them.

    Raises:
        TypeError, ValueError: a wrong argument, or a trace that the context cannot hold.
    """
    programs = _as_traces(traces)
    predicted = dict(simulate_iter(generator, programs, max_new_bytes=max_new_bytes, draft=draft, progress=progress))
    return [predicted[index] for index in range(len(programs))]


def simulate_iter(
    generator: Generator,
    traces: Traces | Sequence[Trace],
    *,
    max_new_bytes: int | None = None,
    draft: bool = False,
    progress: Callable[[int, int, int], None] | None = None,
) -> Iterator[tuple[int, PredictedTrace]]:
    """As `simulate`, but yields each prediction as soon as it is complete, with its index among the traces."""
    programs = _as_traces(traces)
    if len(programs) == 0:
        return
    config = generator.model.config
    R, M = programs.num_registers, programs.memory_size
    prompt_bytes = M + state_size(R)
    sizes = np.diff(programs.offsets)
    check_context(count_patches(int(sizes.max()), config.patch_size), config)
    # The memory and the first state of each program, which are of the same size for all.
    rows = programs.data[programs.offsets[:-1, None] + np.arange(prompt_bytes)]
    # The limit depends on the program's own length, not on longer ones in the batch.
    limits = sizes - prompt_bytes + max(state_size(R), config.patch_size) if max_new_bytes is None else None
    prompts = PackedPrompts.from_rows(EXTENSION, rows, config, limits)
    most = max_new_bytes if limits is None else int(limits.max())
    drafter = KnownDrafter([trace.to_bytes() for trace in programs]) if draft else None
    for index, file in generator.generate_iter(prompts, max_new_bytes=most, drafter=drafter, progress=progress):
        own = len(file.data) + 1 if limits is None else prompt_bytes + int(limits[index])
        yield index, PredictedTrace(file.data[:own], file.finished and len(file.data) < own, R, M)


@torch.no_grad()
def teacher_forced(model: BGPT, traces: Traces | Sequence[Trace], *, batch_size: int = 16) -> list[NDArray[np.int16]]:
    """The model's likeliest token for every state byte, given all true bytes before it.

    Args:
        model: on any device; runs in evaluation mode.
        traces: the true traces.
        batch_size: traces per forward pass; 257 logits for each of their state bytes are in memory at once.

    Returns:
        int16 [N, C] for each trace, for `evaluate_bytes`: the predicted bytes from step 1 on; 256 is `<eop>`.

    Raises:
        TypeError, ValueError: a wrong argument, or a trace that the context cannot hold.
    """
    check_int("teacher_forced: batch_size", batch_size, 1)
    programs = _as_traces(traces)
    S, C = model.config.patch_size, state_size(programs.num_registers)
    first = first_target(model.config, programs.num_registers, programs.memory_size)
    device = next(model.parameters()).device
    predicted = []
    with evaluation_mode(model):
        for start in range(0, len(programs), batch_size):
            part = programs[start : start + batch_size]
            logits = model.logits(pack_traces(part, model.config).to(device))
            tokens = logits.argmax(-1).to(torch.int16).cpu().numpy().reshape(-1)
            # The targets are complete patches: from the one with the first byte to predict to the end-of-file patch.
            skipped = programs.memory_size + C - (first - 1) * S
            at = 0
            for size in np.diff(part.offsets).tolist():
                count = size - programs.memory_size - C
                predicted.append(tokens[at + skipped : at + skipped + count].reshape(-1, C))
                at += (count_patches(size, S) - first) * S
    return predicted


def _as_traces(traces: Traces | Sequence[Trace]) -> Traces:
    if isinstance(traces, Traces):
        return traces
    if not traces:
        return Traces(np.empty(0, np.uint8), np.zeros(1, np.int64), 1, 4)
    return Traces.from_list(traces)
