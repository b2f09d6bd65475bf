"""What the bench_<op>.py files share: one op beside its reference and its peers, in both directions."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import optional_peers
import pytest
import torch
from op_cases import Function, OpCase, Sizes, case_of
from op_measure import backward_calls, check, forward_calls, implementations, input_sets, keeping_buffers
from suite import Bench

_OP = "op"
_COMPILED = "torch.compile"


def parameters(names: Sequence[str], device: torch.device, dtypes: Mapping[str, torch.dtype]) -> list[Any]:
    """The rows (name, implementation, direction, dtype) of cases by name; missing peers are rows that are skipped."""
    rows = []
    for case, (written, dtype) in itertools.product(map(case_of, names), dtypes.items()):
        if dtype not in case.dtypes:
            continue
        directions = ("forward", "backward") if case.differentiable else ("forward",)
        found: dict[str, str | None] = dict.fromkeys(implementations(case, compiled=device.type == "cuda"))
        found |= {peer: optional_peers.missing(peer, device) for peer in optional_peers.OF_OPS.get(case.name, ())}
        for (implementation, reason), direction in itertools.product(found.items(), directions):
            marks = [] if reason is None else [pytest.mark.skip(reason=f"{implementation}: {reason}")]
            identity = f"{case.name}-{direction}-{written}-{implementation}".replace(" ", "_")
            rows.append(pytest.param(case.name, implementation, direction, dtype, id=identity, marks=marks))
    return rows


@functools.cache
def _checked(name: str, sizes: Sizes, dtype: torch.dtype, device: torch.device) -> None:
    """Refuses to time an op that is wrong."""
    check(case_of(name), sizes, dtype, device)


def _function(case: OpCase, implementation: str) -> Function:
    if implementation in optional_peers.OF_OPS.get(case.name, ()):
        return optional_peers.function_of(implementation)
    return implementations(case, compiled=implementation == _COMPILED)[implementation]


def bench_op(bench: Bench, name: str, implementation: str, direction: str, dtype: torch.dtype) -> None:
    """Times one implementation of one op in one direction."""
    case, sizes = case_of(name), bench.scale.ops
    _checked(name, sizes, dtype, bench.device)
    sets = input_sets(case, sizes, dtype, bench.device)
    with keeping_buffers():
        calls = (forward_calls if direction == "forward" else backward_calls)(_function(case, implementation), sets)
        work = case.work(sizes, torch.empty((), dtype=dtype).element_size())[direction == "backward"]
        bench(
            calls,
            f"{name} {direction}",
            implementation=optional_peers.OURS if implementation == _OP else implementation,
            dtype=dtype,
            work=work,
            kind="op",
        )
