"""Training batches of CPU states, and a model in the machine's place: free running and teacher-forced."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bgpt_fast.tasks.cpu_states as cpu
from bgpt_fast import BGPT, BGPTConfig, Generation, Generator, PackedPatches, Prompt
from bgpt_fast.tasks.cpu_states.training import teacher_forced_evaluation

CONFIG = BGPTConfig(patch_size=8, patch_length=32, hidden_size=32, patch_num_layers=1, byte_num_layers=1, num_heads=4)
SMALL: dict[str, Any] = {"num_registers": 2, "memory_size": 64, "min_program": 1, "max_program": 15}
# (patch size, registers, memory): a state a patch; two patches a state; two states a patch; nothing aligned.
LAYOUTS = [(8, 2, 64), (4, 2, 64), (16, 2, 64), (5, 3, 33), (16, 10, 64), (1, 1, 16)]


def config_of(S: int) -> BGPTConfig:
    return dataclasses.replace(CONFIG, patch_size=S, patch_length=400)


def traces_of(count: int, R: int, M: int, seed: int = 0) -> cpu.Traces:
    return cpu.generate(count, seed=seed, num_registers=R, memory_size=M, max_program=M // 4)


@pytest.mark.parametrize(("S", "R", "M"), LAYOUTS)
def test_traces_are_packed_as_their_files_are(S: int, R: int, M: int) -> None:
    traces = traces_of(9, R, M)
    config = config_of(S)
    for part in (traces, traces[3:4], traces[2:7], traces[:0]):
        packed = cpu.pack_traces(part, config, states_only=False, threads=2)
        extension = "bin"[:S]
        expected = PackedPatches.from_bytes([(extension, trace.to_bytes()) for trace in part], config)
        assert packed.targets is None
        assert torch.equal(packed.patches, expected.patches)
        assert torch.equal(packed.cu_seqlens, expected.cu_seqlens)
        assert packed.max_seqlen == expected.max_seqlen


@pytest.mark.parametrize(("S", "R", "M"), LAYOUTS)
def test_targets_are_the_patches_with_predictable_bytes(S: int, R: int, M: int) -> None:
    traces = traces_of(5, R, M)
    packed = cpu.pack_traces(traces, config_of(S))
    assert packed.targets is not None
    expected = []
    for trace in traces:
        size = len(trace.to_bytes())
        data = [(i + 1) * S > M + 6 + R for i in range(-(-size // S))]
        expected += [False, *data, True]
    assert packed.targets.tolist() == expected


def test_a_trace_over_the_context_is_refused() -> None:
    traces = cpu.generate(20, seed=1, **SMALL)
    longest = max(len(trace.states) for trace in traces) + 8 + 2
    exact = dataclasses.replace(CONFIG, patch_length=longest)
    assert cpu.pack_traces(traces, exact).max_seqlen == longest
    short = dataclasses.replace(CONFIG, patch_length=longest - 1)
    for call in (
        lambda: cpu.pack_traces(traces, short),
        lambda: cpu.CPUStateSource(short, **{**SMALL, "max_program": 16}),
        lambda: cpu.simulate(SimpleNamespace(model=SimpleNamespace(config=short)), traces),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError, match=rf"and the context is {longest - 1}; use shorter programs"):
            call()


@pytest.mark.parametrize("long_share", [0.0, 0.5, 1.0])
def test_the_source_resumes_at_its_position(long_share: float) -> None:
    def source(**changes: Any) -> cpu.CPUStateSource:
        arguments = {**SMALL, "seed": 3, "documents_per_batch": 5, "long_share": long_share, **changes}
        return cpu.CPUStateSource(CONFIG, **arguments)

    first = source()
    batches = [first.next_batch() for _ in range(3)]
    state = json.loads(json.dumps(first.state_dict()))
    then = first.next_batch()
    second = source()
    assert torch.equal(second.next_batch().patches, batches[0].patches)
    second.load_state_dict(state)
    again = second.next_batch()
    assert torch.equal(again.patches, then.patches)
    assert torch.equal(again.cu_seqlens, then.cu_seqlens)
    assert second.state_dict() == first.state_dict()
    assert not torch.equal(source(seed=4).next_batch().patches[:40], batches[0].patches[:40])
    assert all(batch.num_documents == 5 for batch in batches)
    json.dumps(first.describe(), allow_nan=False)
    for changes in ({"seed": 4}, {"split": "eval"}, {"max_program": 14}, {"documents_per_batch": 6}):
        with pytest.raises(ValueError, match="expected a position of"):
            source(**changes).load_state_dict(state)
    held_out = source(split="eval")
    held_out.load_state_dict({**held_out.state_dict(), "split": "test"})  # the name in older checkpoints
    with pytest.warns(DeprecationWarning, match="split: the value 'test' is now called 'eval'"):
        assert source(split="test").split == "eval"
    with pytest.raises(TypeError, match="any_start"):
        second.load_state_dict({**state, "any_start": None})


@pytest.mark.parametrize("long_share", [0.0, 0.5, 1.0])
def test_ranks_share_what_one_process_sees(long_share: float) -> None:
    def source(**changes: Any) -> cpu.CPUStateSource:
        return cpu.CPUStateSource(CONFIG, **{**SMALL, "seed": 3, "long_share": long_share, **changes})

    def programs(sources: list[cpu.CPUStateSource]) -> list[bytes]:
        return sorted(content for part in sources for _, content in part.next_batch().to_bytes())

    whole = source(documents_per_batch=12)
    ranks = [source(documents_per_batch=4, rank=rank, world_size=3) for rank in range(3)]
    for _ in range(3):
        assert programs(ranks) == programs([whole])
    # Another number of ranks goes on from any rank's position; the same number with other batches does not.
    two = [source(documents_per_batch=6, rank=rank, world_size=2) for rank in range(2)]
    alone = source(documents_per_batch=12)
    for other in (*two, alone):
        other.load_state_dict(json.loads(json.dumps(ranks[0].state_dict())))
    assert programs(two) == programs([alone]) == programs([whole])
    with pytest.raises(ValueError, match="documents_per_batch"):
        source(documents_per_batch=5, rank=0, world_size=3).load_state_dict(ranks[0].state_dict())
    with pytest.raises(ValueError, match="seed"):
        source(documents_per_batch=12, seed=4).load_state_dict(ranks[0].state_dict())
    with pytest.raises(ValueError, match="rank"):
        source(rank=3, world_size=3)


def test_the_source_has_programs_of_its_split_alone() -> None:
    source = cpu.CPUStateSource(CONFIG, **SMALL, documents_per_batch=200, long_share=0.25)
    files = [content for _, content in source.next_batch().to_bytes()]
    traces = [cpu.Trace.from_bytes(content, 2, 64) for content in files]
    assert {cpu.split_of(trace.program_bytes, num_registers=2) for trace in traces} == {"train"}
    assert [len(trace.program) for trace in traces[:50]] == [15] * 50
    assert len({len(trace.program) for trace in traces[50:]}) == 15
    # The long programs are no longer versions of the others.
    assert not {trace.program_bytes[:16] for trace in traces[:50]} & {trace.program_bytes[:16] for trace in traces[50:]}
    unmasked = cpu.CPUStateSource(CONFIG, **SMALL, documents_per_batch=3, split="eval", states_only=False)
    batch = unmasked.next_batch()
    assert batch.targets is None
    for _, content in batch.to_bytes():
        assert cpu.split_of(cpu.Trace.from_bytes(content, 2, 64).program_bytes, num_registers=2) == "eval"


class Machine:
    """A Generator's stand-in that knows the machine, and spoils what `spoil` says."""

    def __init__(self, config: BGPTConfig, spoil: dict[int, bytes] | None = None) -> None:
        self.model = SimpleNamespace(config=config)
        self.spoil = spoil or {}
        self.max_new_bytes: int | None = None

    def generate_iter(
        self, prompts: list[Prompt], *, max_new_bytes: int, drafter: object = None, progress: object = None
    ) -> Iterator[tuple[int, Generation]]:
        self.max_new_bytes = max_new_bytes
        for index, prompt in enumerate(prompts):
            assert prompt.extension == "bin"
            memory, state = prompt.data[:64], prompt.data[64:]
            truth = cpu.run(memory, state[1], list(state[6:]), 2, 64).to_bytes()
            yield index, Generation(self.spoil.get(index, truth), index not in self.spoil, len(prompt.data))


def test_the_model_of_simulate_sees_memory_and_first_state_alone() -> None:
    traces = cpu.generate(12, seed=5, **SMALL)
    machine = Machine(CONFIG)
    predicted = cpu.simulate(machine, traces)  # type: ignore[arg-type]
    assert [one.to_bytes() for one in predicted] == [trace.to_bytes() for trace in traces]
    assert all(one.finished for one in predicted)
    assert all(np.array_equal(one.states, trace.states) for one, trace in zip(predicted, traces, strict=True))
    assert cpu.evaluate(predicted, traces).exact_programs == 1.0
    longest = max(len(trace.program) for trace in traces)
    assert machine.max_new_bytes == 8 * longest + 8, "room for a state too many"
    cpu.simulate(machine, list(traces)[:2], max_new_bytes=3)  # type: ignore[arg-type]
    assert machine.max_new_bytes == 3
    assert cpu.simulate(machine, []) == []  # type: ignore[arg-type]


def test_simulate_accepts_any_bytes_of_the_model() -> None:
    traces = cpu.generate(4, seed=5, **SMALL)
    prompts = [trace.to_bytes()[:72] for trace in traces]
    spoil = {0: prompts[0], 1: prompts[1] + b"\xff", 2: prompts[2] + bytes(130), 3: traces[3].to_bytes() + bytes(8)}
    predicted = cpu.simulate(Machine(CONFIG, spoil), traces)  # type: ignore[arg-type]
    own = len(traces[2].states)
    assert [len(one.states) for one in predicted[:3]] == [1, 1, own + 1], "cut one state behind its own end"
    report = cpu.evaluate(predicted, traces)
    assert report.programs_right == 0
    assert report.surplus_bytes >= 8
    for one, trace in zip(predicted, traces, strict=True):
        assert "predicted bytes are wrong" in cpu.format_difference(one, trace)


def test_a_simulation_is_independent_of_the_other_programs() -> None:
    torch.manual_seed(0)
    model = BGPT(CONFIG).eval()
    traces = cpu.generate(6, seed=3, **SMALL)
    together = cpu.simulate(Generator(model), traces)
    assert together == [cpu.simulate(Generator(model), [trace])[0] for trace in traces]
    assert {len(one.data) - len(trace.to_bytes()) for one, trace in zip(together, traces, strict=True)} == {8}
    assert not any(one.finished for one in together)
    assert cpu.simulate(Generator(model), traces, draft=True) == together


def test_simulate_with_a_real_model_that_knows_nothing() -> None:
    torch.manual_seed(0)
    model = BGPT(CONFIG).eval()
    traces = cpu.generate(3, seed=2, **SMALL)
    predicted = cpu.simulate(Generator(model), traces, max_new_bytes=20)
    for one, trace in zip(predicted, traces, strict=True):
        assert one.to_bytes()[:72] == trace.to_bytes()[:72]
        assert len(one.to_bytes()) <= 92
    assert cpu.evaluate(predicted, traces).programs_right == 0


class Seer(nn.Module):
    """A BGPT's stand-in whose likeliest token is the true one, but for the target patches' first byte if `blind`."""

    def __init__(self, config: BGPTConfig, blind: bool = False) -> None:
        super().__init__()
        self.config, self.blind = config, blind
        self.weight = nn.Parameter(torch.zeros(1))
        self.batches: list[int] = []

    def logits(self, batch: PackedPatches, targets: Tensor | None = None) -> Tensor:
        assert not self.training
        self.batches.append(batch.num_documents)
        tokens = batch.patches[batch.target_indices()].long()
        if self.blind:
            tokens[:, 0] = 256
        return nn.functional.one_hot(tokens, 257).float()


@pytest.mark.parametrize(("S", "R", "M"), LAYOUTS)
def test_teacher_forced_predicts_each_byte_at_its_position(S: int, R: int, M: int) -> None:
    traces = traces_of(7, R, M)
    seer = Seer(config_of(S)).train()
    predicted = cpu.teacher_forced(seer, traces, batch_size=3)  # type: ignore[arg-type]
    assert seer.training
    assert seer.batches == [3, 3, 1]
    for one, trace in zip(predicted, traces, strict=True):
        assert one.dtype == np.int16
        assert np.array_equal(one, trace.states[1:])
    blind = cpu.teacher_forced(Seer(config_of(S), blind=True), list(traces))  # type: ignore[arg-type]
    for one, trace in zip(blind, traces, strict=True):
        offsets = M + 6 + R + np.arange(one.size)
        expected = np.where(offsets % S == 0, 256, trace.states[1:].reshape(-1).astype(int))
        assert one.reshape(-1).tolist() == expected.tolist()
    truths = [trace.states for trace in traces]
    assert cpu.evaluate_bytes(predicted, truths).exact_programs == 1.0
    assert cpu.evaluate_bytes(blind, truths).accuracy < 1.0


def test_teacher_forced_with_a_real_model() -> None:
    torch.manual_seed(0)
    model = BGPT(CONFIG)
    traces = cpu.generate(5, seed=2, **SMALL)
    predicted = cpu.teacher_forced(model, traces, batch_size=2)
    assert model.training
    whole = cpu.teacher_forced(model, traces, batch_size=5)
    assert all(np.array_equal(a, b) for a, b in zip(predicted, whole, strict=True))
    figures = teacher_forced_evaluation(traces)(model)
    report = cpu.evaluate_bytes(whole, [trace.states for trace in traces])
    assert figures["state_byte_accuracy"] == report.accuracy
    assert cpu.teacher_forced(model, []) == []
    with pytest.raises(ValueError, match="batch_size: expected at least 1, got 0"):
        cpu.teacher_forced(model, traces, batch_size=0)
