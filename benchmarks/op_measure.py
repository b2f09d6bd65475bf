"""One op beside its peers: first whether it is right, then how long each takes, forward and backward."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch._functorch.config as functorch
from op_cases import Function, Maker, OpCase, Sizes, Work
from timing import L2_BYTES, Timing, measure, poison
from torch import Tensor


class WrongResultError(AssertionError):
    """An op that does not compute what its reference computes; it is not timed."""


def leaves_of(arguments: Sequence[object]) -> list[Tensor]:
    """The arguments that want a gradient."""
    return [a for a in arguments if isinstance(a, Tensor) and a.requires_grad]


def outputs_of(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def gradients_for(outputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Random gradients of the outputs, the same at every call."""
    generator = torch.Generator(outputs[0].device).manual_seed(1)
    return tuple(
        torch.randn(y.shape, generator=generator, device=y.device, dtype=torch.float32).to(y.dtype) for y in outputs
    )


def run(
    function: Function, arguments: Sequence[object], gradients: Sequence[Tensor] | None = None
) -> tuple[Tensor, ...]:
    """Outputs of a function, then the gradients of those of its arguments that want one.

    Args:
        function: what to run.
        arguments: its arguments.
        gradients: of the outputs; None draws them.
    """
    outputs = outputs_of(function(*arguments))
    leaves = leaves_of(arguments)
    if not leaves:
        return outputs
    if gradients is None:
        gradients = gradients_for(outputs)
    return *(y.detach() for y in outputs), *torch.autograd.grad(outputs, leaves, gradients)


def repeatable(case: OpCase, arguments: Sequence[object], results: Sequence[Tensor]) -> int:
    """How many of the results, from the first on, are the same bits at every call."""
    return len(results) if case.own_kernel else len(results) - len(leaves_of(arguments))


def _in_float64(arguments: Sequence[object]) -> list[object]:
    return [
        a.detach().double().requires_grad_(a.requires_grad) if isinstance(a, Tensor) and a.is_floating_point() else a
        for a in arguments
    ]


def check(case: OpCase, sizes: Sizes, dtype: torch.dtype, device: torch.device) -> dict[str, float]:
    """Holds outputs and gradients against the reference in float64, and a second call against the first, to the bit.

    Each error may be twice that of the reference in the op's own precision, and two units in the last place of the
    largest value; a gradient that is summed over N rows may have √N float32 units more, as the rounding of a sum grows
    whatever its order. Memory is poisoned with NaN before the second call.

    Returns:
        The largest error of ours and of the plain version, relative to the largest value, over all results.

    Raises:
        WrongResultError: says which result is wrong, and by how much.
    """
    arguments = case.inputs(Maker(sizes, dtype, device, seed=7))
    exact = run(case.reference, _in_float64(arguments))
    plain = run(case.reference, arguments)
    first = run(case.op, arguments)
    poison(first)
    second = run(case.op, arguments)
    repeats = repeatable(case, arguments, first)
    worst = {"error": 0.0, "plain_error": 0.0}
    for place, (want, same, ours, again) in enumerate(zip(exact, plain, first, second, strict=True)):
        if place < repeats and not torch.equal(ours, again):
            raise WrongResultError(f"{case.name}: result {place}: two calls differ, or an element was not written")
        largest = float(want.abs().max())
        errors = [float((result.double() - want).abs().max()) for result in (ours, again)]
        plain_error = float((same.double() - want).abs().max())
        units = 2 * torch.finfo(dtype).eps
        if len(want) != len(exact[0]):
            units += torch.finfo(torch.float32).eps * len(exact[0]) ** 0.5
        allowed = 2 * plain_error + units * largest
        if not all(error <= allowed for error in errors):  # NaN is not less than anything
            raise WrongResultError(
                f"{case.name}: result {place} {list(want.shape)}: errors {errors}, allowed {allowed:.3e}"
            )
        scale = largest or 1.0
        worst["error"] = max(worst["error"], *(error / scale for error in errors))
        worst["plain_error"] = max(worst["plain_error"], plain_error / scale)
    return worst


def implementations(case: OpCase, *, compiled: bool) -> dict[str, Function]:
    """What is timed, by name: "op", "reference", "torch.compile" of the reference where asked, and the peers."""
    found = {"op": case.op, "reference": case.reference}
    if compiled:
        found["torch.compile"] = torch.compile(case.reference, dynamic=False)
    return {**found, **case.peers}


def input_sets(case: OpCase, sizes: Sizes, dtype: torch.dtype, device: torch.device) -> list[tuple[object, ...]]:
    """Inputs to take in turn: on a GPU enough of them that none is in the cache when it comes up again."""
    first = case.inputs(Maker(sizes, dtype, device, seed=0))
    if device.type != "cuda":
        return [first]
    size = sum(a.numel() * a.element_size() for a in first if isinstance(a, Tensor))
    count = min(16, max(2, -(-4 * L2_BYTES // size)))
    return [first, *(case.inputs(Maker(sizes, dtype, device, seed)) for seed in range(1, count))]


def keeping_buffers() -> contextlib.AbstractContextManager[Any]:
    """Lets a compiled function's backward pass run more than once: what it read must not be written over."""
    return functorch.patch(donated_buffer=False)


def forward_calls(function: Function, sets: Sequence[Sequence[object]]) -> list[Callable[[], object]]:
    """The forward pass as in training: what the backward needs is kept."""
    return [functools.partial(function, *arguments) for arguments in sets]


def backward_calls(function: Function, sets: Sequence[Sequence[object]]) -> list[Callable[[], object]]:
    """The backward pass alone, of a forward pass that has been done."""
    calls: list[Callable[[], object]] = []
    for arguments in sets:
        outputs, leaves = outputs_of(function(*arguments)), leaves_of(arguments)
        gradients = gradients_for(outputs)
        calls.append(functools.partial(torch.autograd.grad, outputs, leaves, gradients, retain_graph=True))
    return calls


def figures(timing: Timing, work: Work, ceilings: dict[str, float]) -> dict[str, Any]:
    """A timing as the receipt has it, with rates, and the share of the measured ceiling that bounds it.

    Args:
        timing: of one direction.
        work: the least it must do.
        ceilings: measured "copy_bytes_per_s" and "matmul_flops"; without them there is no share.
    """
    found: dict[str, Any] = {**timing._asdict(), "gb_per_s": work.bytes / timing.median / 1e9}
    if work.flops:
        found["tflop_per_s"] = work.flops / timing.median / 1e12
    if ceilings:
        floors = {
            "copy": work.bytes / ceilings["copy_bytes_per_s"],
            "matmul": work.flops / ceilings["matmul_flops"],
        }
        bound = max(floors, key=lambda name: floors[name])
        found |= {"bound": bound, "floor": floors[bound], "of_ceiling": floors[bound] / timing.median}
    return found


def measure_case(
    case: OpCase,
    sizes: Sizes,
    dtype: torch.dtype,
    device: torch.device,
    *,
    ceilings: dict[str, float],
    compiled: bool,
    seconds: float,
) -> dict[str, Any]:
    """Checks an op, then times it and its peers.

    An implementation that fails is reported with its error, and the others are still timed; only the op must not fail.

    Raises:
        WrongResultError: the op is wrong; nothing is timed.
    """
    found: dict[str, Any] = {"dtype": str(dtype).removeprefix("torch."), "correct": check(case, sizes, dtype, device)}
    sets = input_sets(case, sizes, dtype, device)
    element = torch.empty((), dtype=dtype).element_size()
    forward_work, backward_work = case.work(sizes, element)
    timed: dict[str, Any] = {}
    for name, function in implementations(case, compiled=compiled).items():
        try:
            with keeping_buffers():
                timing = measure(forward_calls(function, sets), device, seconds=seconds)
                row = {"forward": figures(timing, forward_work, ceilings)}
                if case.differentiable:
                    timing = measure(backward_calls(function, sets), device, seconds=seconds)
                    row["backward"] = figures(timing, backward_work, ceilings)
            timed[name] = row
        except Exception as error:
            if name == "op" or "CUDA error" in str(error):
                raise
            timed[name] = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    return found | {"input_sets": len(sets), "timed": timed}


def speed_ups(timed: dict[str, Any]) -> dict[str, float]:
    """How many times faster the op is than each of the others, forward and backward together."""

    def total(row: dict[str, Any]) -> float:
        return sum(row[direction]["median"] for direction in ("forward", "backward") if direction in row)

    return {
        name: total(row) / total(timed["op"]) for name, row in timed.items() if name != "op" and "failed" not in row
    }


def small_runs(case: OpCase, sizes: Sizes, device: torch.device) -> int:
    """Runs the op in every dtype without timing it, for tools that watch its kernels; returns how many runs."""
    for dtype, seed in itertools.product(case.dtypes, range(2)):
        run(case.op, case.inputs(Maker(sizes, dtype, device, seed)))
    return 2 * len(case.dtypes)
