"""Measures one op and its baselines: first a correctness check, then the timings, forward and backward."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch._functorch.config as functorch
from torch import Tensor

from benchmarks.op_cases import Function, Maker, OpCase, Sizes, Work
from benchmarks.timing import Timing


class WrongResultError(AssertionError):
    """An op's result differs from its reference's; the op is not timed.

    Args:
        message: names the op and its first wrong result.
        mismatches: a description of each wrong result, JSON-ready: see `mismatch`.
    """

    def __init__(self, message: str, mismatches: Sequence[dict[str, Any]] = ()) -> None:
        super().__init__(message)
        self.mismatches = list(mismatches)


def leaves_of(arguments: Sequence[object]) -> list[Tensor]:
    """The arguments that require a gradient."""
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
    """Outputs of a function, then the gradients of those of its arguments that require one.

    Args:
        function: what to run.
        arguments: its arguments.
        gradients: of the outputs; None means random ones.
    """
    outputs = outputs_of(function(*arguments))
    leaves = leaves_of(arguments)
    if not leaves:
        return outputs
    if gradients is None:
        gradients = gradients_for(outputs)
    return *(y.detach() for y in outputs), *torch.autograd.grad(outputs, leaves, gradients)


def num_repeatable(case: OpCase, arguments: Sequence[object], results: Sequence[Tensor]) -> int:
    """How many of the leading results have the same bits at every call."""
    return len(results) if case.own_kernel else len(results) - len(leaves_of(arguments))


def _poison(tensors: Sequence[Tensor]) -> None:
    """Leaves NaN in memory that the next outputs of these shapes probably reuse, to reveal unwritten elements."""
    poisoned = [torch.full_like(tensor, torch.nan) for tensor in tensors if tensor.is_floating_point()]
    del poisoned


def mismatch(name: str, actual: Tensor, expected: Tensor, allowed: float) -> dict[str, Any] | None:
    """What is needed to find the cause of wrong values without the device; None if no error is above `allowed`.

    JSON has no NaN, so values are texts.

    Returns:
        `result`: `name`; `shape`; `allowed`; `error`: the largest; `count` of wrong values; `first`: of the first ten,
        index, expected and actual value, and row and column modulo the usual sizes of a tile (a row is all dimensions
        but the last).
    """
    errors = (actual.double() - expected.double()).abs()
    wrong = ~(errors <= allowed)  # NaN is not less than anything
    count = int(wrong.sum())
    if not count:
        return None
    columns = expected.shape[-1] if expected.dim() else 1
    first = []
    for flat in wrong.flatten().nonzero()[:10, 0].tolist():
        row, column = divmod(flat, columns)
        values = {"expected": repr(float(expected.flatten()[flat])), "actual": repr(float(actual.flatten()[flat]))}
        tiles = {str(size): [row % size, column % size] for size in (16, 64, 128)}
        first.append({"row": row, "column": column, **values, "row_and_column_modulo": tiles})
    figures = {"allowed": f"{allowed:.3e}", "error": f"{float(errors.max()):.3e}", "count": count}
    return {"result": name, "shape": list(expected.shape), **figures, "first": first}


def wrong_result(what: str, wrong: Sequence[dict[str, Any]], arguments: Sequence[object] = ()) -> WrongResultError:
    """The error for wrong results, of which there is at least one."""
    names = ", ".join(str(item["result"]) for item in wrong)
    first = wrong[0]["first"][0]
    text = f"{what}: wrong: {names}; first: expected {first['expected']}, got {first['actual']}"
    text += f" at row {first['row']}, column {first['column']}, allowed {wrong[0]['allowed']}"
    described = {"arguments": [described_argument(argument) for argument in arguments]} if arguments else {}
    return WrongResultError(text, [{**item, **described} for item in wrong])


def described_argument(value: object) -> str:
    """A short text for an argument: a tensor's dtype, shape and strides, or the value."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype)[6:]}{list(value.shape)} strides {list(value.stride())} {value.device.type}"
    return repr(value)[:80]


def check(
    case: OpCase, sizes: Sizes, dtype: torch.dtype, device: torch.device, *, gradients: bool = True
) -> dict[str, float]:
    """Compares outputs and gradients with the reference in float64, and the bits of a second call with the first's.

    Each error may be twice that of the reference in the op's own precision plus two units in the last place of the
    largest value; a gradient that is summed over N rows may have √N float32 units more, since rounding errors grow
    with N in any order of summation. Memory is poisoned with NaN before the second call. Without `gradients`, only the
    forward pass runs.

    Returns:
        The largest error of the op and of the reference in this dtype, relative to the largest value, over all results.

    Raises:
        WrongResultError: names the wrong results.
    """
    arguments = case.inputs(Maker(sizes, dtype, device, seed=7))
    if not gradients:
        arguments = tuple(a.detach() if isinstance(a, Tensor) else a for a in arguments)
    doubles = [
        a.detach().double().requires_grad_(a.requires_grad) if isinstance(a, Tensor) and a.is_floating_point() else a
        for a in arguments
    ]
    exact, plain, first = run(case.reference, doubles), run(case.reference, arguments), run(case.op, arguments)
    _poison(first)
    second = run(case.op, arguments)
    outputs = len(exact) - len(leaves_of(arguments))
    worst, wrong = {"error": 0.0, "plain_error": 0.0}, []
    for index, (expected, same_precision, *ours) in enumerate(zip(exact, plain, first, second, strict=True)):
        name = f"output {index}" if index < outputs else f"gradient {index - outputs}"
        if index < num_repeatable(case, arguments, first) and not torch.equal(*ours):
            text = f"{name}: two calls differ, or an element was not written"
            wrong.append(mismatch(text, ours[1], ours[0], 0.0))
        largest = float(expected.abs().max())
        errors = [float((result.double() - expected).abs().max()) for result in ours]
        plain_error = float((same_precision.double() - expected).abs().max())
        units = 2 * torch.finfo(dtype).eps
        if len(expected) != len(exact[0]):
            units += torch.finfo(torch.float32).eps * len(exact[0]) ** 0.5
        allowed = 2 * plain_error + units * largest
        wrong.append(mismatch(name, ours[0], expected, allowed) or mismatch(name, ours[1], expected, allowed))
        scale = largest or 1.0
        worst["error"] = max(worst["error"], *(error / scale for error in errors))
        worst["plain_error"] = max(worst["plain_error"], plain_error / scale)
    if bad := [item for item in wrong if item is not None]:
        raise wrong_result(case.name, bad, arguments)
    return worst


def implementations(case: OpCase, *, compiled: bool) -> dict[str, Function]:
    """The timed functions by name: "op", "reference", "torch.compile" of the reference if `compiled`, the baselines."""
    functions = {"op": case.op, "reference": case.reference}
    if compiled:
        functions["torch.compile"] = torch.compile(case.reference, dynamic=False)
    return {**functions, **case.baselines}


def call_of(function: Function, arguments: Sequence[object], *, backward: bool) -> Callable[[], object]:
    """One direction of a function as a call without arguments.

    The forward pass saves what the backward pass needs, as in training; the backward call runs only the backward
    pass. Call it within `reusable_buffers`.
    """
    if not backward:
        return functools.partial(function, *arguments)
    outputs, leaves = outputs_of(function(*arguments)), leaves_of(arguments)
    return functools.partial(torch.autograd.grad, outputs, leaves, gradients_for(outputs), retain_graph=True)


def reusable_buffers() -> contextlib.AbstractContextManager[Any]:
    """Lets a compiled function's backward pass run more than once: it must not overwrite its inputs."""
    return functorch.patch(donated_buffer=False)


def figures(timing: Timing, work: Work, peak: dict[str, float]) -> dict[str, Any]:
    """A timing in the format of results, with rates and the share reached of the peak rate that bounds it.

    Args:
        timing: timing of one direction.
        work: its minimum work.
        peak: measured "copy_bytes_per_s" and "matmul_flops"; without them there is no share.
    """
    values: dict[str, Any] = {**timing._asdict(), "gb_per_s": work.bytes / timing.median / 1e9}
    if work.flops:
        values["tflop_per_s"] = work.flops / timing.median / 1e12
    if peak:
        least = {"copy": work.bytes / peak["copy_bytes_per_s"], "matmul": work.flops / peak["matmul_flops"]}
        bound = max(least, key=lambda name: least[name])
        values |= {"bound": bound, "least_seconds": least[bound], "of_peak": least[bound] / timing.median}
    return values
