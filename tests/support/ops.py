"""Tests that every op passes, on its own samples: on the CPU, in Triton's interpreter and on a GPU.

A test file derives a class from `OpTests` for each public function. It defines the samples (shapes, dtypes, layouts)
once for all tests: values, gradients, `opcheck`, `gradcheck`, strides and repeated runs.
"""

from __future__ import annotations

import contextlib
import importlib
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bgpt_fast.kernels.common.launch import CompileCase
from bgpt_fast.kernels.common.register import Op, Triton
from support.interpreter import DEVICE

F32, BF16, F16, F64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
HALVES = (BF16, F16)
BACKENDS = ("cpu", "cuda" if DEVICE == "cuda" else "interpreter")
REPORTED_BY_NUMPY = "ignore:.*encountered:RuntimeWarning"  # the interpreter computes NaN and infinity with numpy


def needs_gpu(test: Callable[..., None]) -> Callable[..., None]:
    """Marks a test that only a GPU can run."""
    skip = pytest.mark.skipif(DEVICE != "cuda", reason="needs an NVIDIA GPU")
    return pytest.mark.gpu(skip(test))


@dataclass(frozen=True)
class Backend:
    """Which implementation of an op a test runs: "cpu", "cuda", or "interpreter" (the Triton kernels on the CPU)."""

    name: str

    @property
    def device(self) -> str:
        return "cuda" if self.name == "cuda" else "cpu"

    @property
    def is_interpreter(self) -> bool:
        return self.name == "interpreter"


@contextlib.contextmanager
def activate(backend: Backend, ops: Sequence[Op]) -> Iterator[None]:
    """Runs the ops on a backend, with uninitialised memory filled with NaN.

    In the interpreter each op's Triton implementation replaces its CPU implementation: dispatch, autograd and the
    choice between kernel and reference are those of a GPU.
    """
    library = torch.library.Library("bgpt_fast", "IMPL")
    if backend.is_interpreter:
        for op in ops:
            if isinstance(op.cuda, Triton):
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "Warning only once for all operators")
                    library.impl(op.name, op.cuda, "CPU", allow_override=True)
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills what torch.empty returns with NaN
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        library._destroy()


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Sets torch's number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def seeded(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Normal random tensors in float32 on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


class Results(NamedTuple):
    """A function's outputs and the gradients of its float inputs."""

    outputs: list[Tensor]
    gradients: list[Tensor]

    @property
    def all(self) -> list[Tensor]:
        return [*self.outputs, *self.gradients]


def results(function: Callable[..., Any], inputs: Sequence[Any], dys: Sequence[Tensor] | None = None) -> Results:
    """Runs a function forward and backward.

    Args:
        function: returns a tensor or several.
        inputs: its arguments.
        dys: gradients of the outputs, which are converted to their dtypes; random ones where None.
    """
    leaves = as_leaves(inputs)
    outputs = as_list(function(*leaves))
    dys = random_gradients(outputs) if dys is None else dys
    dys = [dy.to(y.dtype) for dy, y in zip(dys, outputs, strict=True)]
    gradients = torch.autograd.grad(outputs, [leaf for leaf in leaves if is_float(leaf)], dys)
    return Results([y.detach() for y in outputs], list(gradients))


def is_float(argument: object) -> bool:
    return isinstance(argument, Tensor) and argument.is_floating_point()


def mapped(function: Callable[[Tensor], Tensor], inputs: Sequence[Any]) -> list[Any]:
    """The inputs, with the function applied to the tensors among them."""
    return [function(t) if isinstance(t, Tensor) else t for t in inputs]


def as_leaves(inputs: Sequence[Any]) -> list[Any]:
    """The inputs with each tensor detached into a leaf; floating-point ones require gradients."""
    return mapped(lambda t: t.detach().requires_grad_(t.is_floating_point()), inputs)


def as_list(outputs: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def random_gradients(outputs: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of these outputs, from a fixed seed, in their dtypes."""
    return [dy.to(y) for dy, y in zip(seeded(1, *(tuple(y.shape) for y in outputs)), outputs, strict=True)]


def equal(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    """Whether all tensors have equal bits."""
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def assert_accurate(
    ours: Sequence[Tensor],
    plain: Sequence[Tensor],
    exact: Sequence[Tensor],
    *,
    ulps: float = 4,
    largest: float = 0.0,
    floors: Sequence[float] | None = None,
) -> None:
    """Checks that errors against `exact` (float64) are at most twice those of the plain version plus a floor.

    Args:
        ours, plain, exact: results in the same order.
        ulps: the floor, in ulps of the largest exact value or of `largest`, whichever is larger.
        largest: the largest of the numbers that are summed.
        floors: absolute floors, one for each result, instead of `ulps`.
    """
    for i, (got, same, want) in enumerate(zip(ours, plain, exact, strict=True)):
        assert (got.shape, got.dtype) == (want.shape, same.dtype)
        assert got.isfinite().all()
        if got.numel():
            floor = floors[i] if floors else ulps * torch.finfo(got.dtype).eps * max(largest, float(want.abs().max()))
            error, allowed = (got - want).abs().max(), 2 * (same - want).abs().max() + floor
            assert error <= allowed, f"result {i} of shape {list(got.shape)}: error {error} > {allowed}"


STRIDES: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda t: t.repeat_interleave(2, -1)[..., ::2],
    lambda t: torch.cat([t, t], -1)[..., : t.shape[-1]],
    lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
)
"""The same values at other strides: every second element, parts of longer rows, columns."""


def check_cases(cases: Sequence[CompileCase], least: int = 1) -> None:
    """Checks that compilation cases have different names and a type or value for every argument of their kernels."""
    assert len({case.name for case in cases}) == len(cases) >= least
    for case in cases:
        assert set(case.kernel.arg_names) == case.types.keys() | case.constexprs.keys(), case.name
        assert case.unaligned <= case.types.keys(), case.name


def check_errors(function: Callable[..., object], arguments: dict[str, tuple[Any, ...]], prefix: str = "") -> None:
    """Checks that wrong arguments raise errors with these messages."""
    for message, wrong in arguments.items():
        with pytest.raises((TypeError, ValueError), match=prefix + message):
            function(*wrong)


def kernels_launched(function: Callable[[], object]) -> set[str]:
    """The names of the GPU kernels that a call launches."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        function()
        torch.cuda.synchronize()
    return {event.key for event in profile.key_averages()}


class DrawnTests:
    """Accuracy on random shapes and equal bits over runs, for ops that `OpTests` does not fit: with a cache, without a
    gradient, or for the CPU alone. `tests/kernels/test_op_folders.py` demands one of both classes for every op.
    """

    NAME: str
    """Name of the registered op."""
    DRAWS, RUNS = 200, 100
    function: Callable[..., Any]
    plain: Callable[..., Any]
    """The same function in plain torch, for every dtype."""
    wrong_version: Callable[..., Any]
    """A slightly wrong version, which the comparison must detect."""

    def draw(self, stream: random.Random) -> list[Any]:
        """Arguments of a random shape."""
        raise NotImplementedError

    def results(self, function: Callable[..., Any], arguments: Sequence[Any]) -> list[Tensor]:
        """The function's outputs on these arguments, and its gradients where it has some."""
        with torch.no_grad():
            return as_list(function(*arguments))

    def check(self, arguments: Sequence[Any], function: Callable[..., Any] | None = None) -> None:
        """Compares results with those in float64."""
        ours = self.results(function or self.function, arguments)
        wide = [t.double() if is_float(t) else t for t in arguments]
        assert_accurate(ours, self.results(self.plain, arguments), self.results(self.plain, wide), ulps=8)

    @pytest.mark.slow
    def test_random_shapes(self) -> None:
        stream = random.Random(self.NAME)
        for _ in range(self.DRAWS):
            self.check(self.draw(stream))

    def test_a_random_shape_and_the_tolerance_catches_a_wrong_version(self) -> None:
        arguments = self.draw(random.Random(1))
        self.check(arguments)
        with pytest.raises(AssertionError):
            self.check(arguments, self.wrong_version)

    def test_repeated_runs_are_bit_equal(self) -> None:
        arguments, others = (self.draw(random.Random(seed)) for seed in (2, 3))
        first = self.results(self.function, arguments)
        for _ in range(self.RUNS):
            assert equal(self.results(self.function, arguments), first)
        different = self.results(self.function, others)
        assert any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(different, first, strict=True))


class OpTests:
    """The properties of an op that a test class defines, and the tests.

    Tests with an argument `dtypes` or `layout` run for each of DTYPES or each name in `layouts()`.
    """

    NAME: str
    """Name of the op and, unless FOLDER is given, of its folder."""
    FOLDER: str = ""
    DTYPES: Sequence[Any]
    SHAPES: Sequence[tuple[int, ...]]
    LARGE_SHAPES: Sequence[tuple[int, ...]]
    """Shapes that are too slow for the interpreter."""
    STRIDED_SHAPE: tuple[int, ...]
    """A typical shape, for interpreter tests that use a single shape."""
    GPU_SHAPE: tuple[int, ...]
    """A large shape, for tests on a GPU or with several threads."""
    KERNELS: Sequence[str]
    """GPU kernels that values and gradients must launch."""
    LEAST_CASES = 1
    HAS_GRADIENT = True
    """Whether the registered op, not only the function, has a gradient."""
    TWICE_DIFFERENTIABLE: Sequence[int] = ()
    """Indices of arguments whose gradients torch computes and can therefore differentiate again."""
    function: Callable[..., Any]
    plain: Callable[..., Any]
    """The same function in plain torch, differentiable, for every dtype."""
    wrong_version: Callable[..., Any]
    """A slightly wrong version, which the tolerance must detect."""

    def sample(self, shape: tuple[int, ...], dtypes: Any, seed: int = 0) -> list[Any]:
        """The function's arguments on the CPU."""
        raise NotImplementedError

    def draw_shape(self, stream: random.Random) -> tuple[int, ...]:
        """A random shape."""
        raise NotImplementedError

    def layouts(self) -> dict[str, list[Any]]:
        """Small float64 arguments: empty, of size 1, and of every kind of strides."""
        raise NotImplementedError

    def arguments(self, inputs: Sequence[Any]) -> tuple[Any, ...]:
        """Converts the function's arguments to those of the registered op."""
        return tuple(inputs)

    def wrong_arguments(self) -> dict[str, tuple[Any, ...]]:
        """Error messages and the arguments that cause them."""
        raise NotImplementedError

    def tolerance(self, backend: Backend, inputs: Sequence[Any], exact: Sequence[Tensor]) -> dict[str, Any]:
        """The floor, as arguments of `assert_accurate`."""
        return {}

    def strides_tolerance(self, backend: Backend, dtype: torch.dtype) -> dict[str, float]:
        """The tolerance between results at different strides: bit-equal unless an op overrides it."""
        return {"rtol": 0.0, "atol": 0.0}

    def inputs(self, backend: Backend, shape: tuple[int, ...], dtypes: Any = None, seed: int = 0) -> list[Any]:
        """A sample on the backend's device; the dtypes default to the first of DTYPES."""
        sample = self.sample(shape, self.DTYPES[0] if dtypes is None else dtypes, seed)
        return mapped(lambda t: t.to(backend.device), sample)

    def check(self, backend: Backend, inputs: Sequence[Any], function: Callable[..., Any] | None = None) -> None:
        """Compares values and gradients with those in float64."""
        ours = results(function or self.function, inputs)
        assert all(t.is_contiguous() for t in ours.outputs)
        wide = [t.double() if is_float(t) else t for t in inputs]
        dys = random_gradients(ours.outputs)
        plain, exact = results(self.plain, inputs, dys).all, results(self.plain, wide, dys).all
        assert_accurate(ours.all, plain, exact, **self.tolerance(backend, inputs, exact))

    def test_values_and_gradients(self, backend: Backend, dtypes: Any) -> None:
        for shape in (*self.SHAPES, *(() if backend.is_interpreter else self.LARGE_SHAPES)):
            self.check(backend, self.inputs(backend, shape, dtypes))

    @pytest.mark.slow
    def test_random_shapes(self, backend: Backend, dtypes: Any) -> None:
        stream = random.Random(str(dtypes))
        for seed in range(5 if backend.is_interpreter else 200):
            self.check(backend, self.inputs(backend, self.draw_shape(stream), dtypes, seed))

    def test_the_tolerance_catches_a_wrong_version(self, backend: Backend) -> None:
        inputs = self.inputs(backend, self.STRIDED_SHAPE)
        self.check(backend, inputs)
        with pytest.raises(AssertionError, match="error"):
            self.check(backend, inputs, self.wrong_version)

    def test_strides_are_followed(self, backend: Backend) -> None:
        for dtypes in self.DTYPES[-1:] if backend.is_interpreter else self.DTYPES:
            self.check_strides(backend, self.inputs(backend, self.STRIDED_SHAPE, dtypes))

    def check_strides(self, backend: Backend, inputs: Sequence[Any]) -> None:
        """Compares the results of equal values at other strides, and of expanded rows and gradients."""
        dense = results(self.function, inputs)
        pairs = [(results(self.function, mapped(view, inputs)), dense) for view in STRIDES]
        rows = mapped(lambda t: t[:1].expand(t.shape), inputs)
        pairs.append((results(self.function, rows), results(self.function, mapped(Tensor.contiguous, rows))))
        ones = [torch.ones(1, dtype=y.dtype, device=y.device).expand(y.shape) for y in dense.outputs]
        expected = results(self.function, inputs, mapped(Tensor.contiguous, ones))
        pairs.append((results(self.function, inputs, ones), expected))
        for ours, expected in pairs:
            for got, want in zip(ours.all, expected.all, strict=True):
                torch.testing.assert_close(got, want, **self.strides_tolerance(backend, want.dtype))

    def test_repeated_runs_are_bit_equal(self, backend: Backend) -> None:
        shape = {"cpu": self.LARGE_SHAPES[0], "interpreter": self.STRIDED_SHAPE, "cuda": self.GPU_SHAPE}[backend.name]
        inputs, others = (self.inputs(backend, shape, self.DTYPES[1], seed) for seed in (0, 1))
        first = results(self.function, inputs).all
        for _ in range(2 if backend.is_interpreter else 100):
            assert equal(results(self.function, inputs).all, first)
        assert not equal(results(self.function, others).all, first)

    def test_threads_change_nothing(self) -> None:
        inputs = self.sample(self.GPU_SHAPE, self.DTYPES[0])
        with threads(1):
            first = results(self.function, inputs).all
        for count in (2, 3):
            with threads(count):
                assert equal(results(self.function, inputs).all, first)

    def test_each_gradient_alone(self, backend: Backend) -> None:
        inputs = self.inputs(backend, self.STRIDED_SHAPE)
        outputs, gradients = results(self.function, inputs)
        for i, expected in zip((i for i, t in enumerate(inputs) if is_float(t)), gradients, strict=True):
            leaves = mapped(Tensor.detach, inputs)
            leaves[i].requires_grad_()
            y = as_list(self.function(*leaves))
            (gradient,) = torch.autograd.grad(y, leaves[i], random_gradients(outputs))
            assert torch.equal(gradient, expected)
        with torch.no_grad():
            assert not any(y.requires_grad for y in as_list(self.function(*as_leaves(inputs))))

    def test_gradcheck(self, layout: str) -> None:
        inputs = mapped(lambda t: t.to(DEVICE), self.layouts()[layout])

        # gradcheck changes one number at a time, so an expanded tensor is made from one without overlap.
        def without_overlap(t: Tensor) -> Tensor:
            part = t[tuple(slice(0, None if stride else 1) for stride in t.stride())]
            return part.clone() if 0 in t.stride() else part

        def expanded(*parts: Any) -> Any:
            pairs = zip(parts, inputs, strict=True)
            return self.function(*(t.expand_as(like) if isinstance(t, Tensor) else t for t, like in pairs))

        leaves = as_leaves(mapped(without_overlap, inputs))
        assert torch.autograd.gradcheck(expanded, leaves, fast_mode=True)
        for got, want in zip(results(self.function, inputs).all, results(self.plain, inputs).all, strict=True):
            torch.testing.assert_close(got, want)

    def test_registration(self, layout: str) -> None:
        self.check_registration(self.layouts()[layout])

    def test_registration_by_dtype(self, dtypes: Any) -> None:
        self.check_registration(self.sample(self.STRIDED_SHAPE, dtypes))

    def check_registration(self, inputs: Sequence[Any]) -> None:
        """`opcheck` of the op, and of the backward ops with the arguments that its gradient passes to them."""
        inputs = mapped(lambda t: t.to(DEVICE), inputs)
        op = getattr(torch.ops.bgpt_fast, self.NAME).default
        torch.library.opcheck(op, self.arguments(as_leaves(inputs) if self.HAS_GRADIENT else inputs))
        with _BackwardCalls() as calls:
            results(self.function, inputs)
        assert calls.recorded
        for op, arguments in calls.recorded:
            torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))

    def test_second_derivatives_are_refused(self) -> None:
        leaves = as_leaves(self.sample(self.STRIDED_SHAPE, self.DTYPES[0]))
        total = torch.stack([y.square().sum() for y in as_list(self.function(*leaves))]).sum()
        refused = 0
        for i, leaf in enumerate(leaves):
            if is_float(leaf) and i not in self.TWICE_DIFFERENTIABLE:
                (gradient,) = torch.autograd.grad(total, leaf, create_graph=True)
                if gradient.requires_grad:
                    with pytest.raises(RuntimeError, match="_backward cannot be differentiated"):
                        gradient.sum().backward(retain_graph=True)
                    refused += 1
        assert refused

    def test_wrong_arguments_are_named(self) -> None:
        check_errors(self.function, self.wrong_arguments())
        outputs = as_list(self.function(*self.sample(self.STRIDED_SHAPE, self.DTYPES[0])))
        assert all(t.isfinite().all() for t in outputs)

    def test_compile_cases(self) -> None:
        module = importlib.import_module(f"bgpt_fast.kernels.{self.FOLDER or self.NAME}.triton_kernels")
        check_cases(module.compile_cases(), self.LEAST_CASES)

    @needs_gpu
    def test_the_gpu_runs_its_own_kernels(self, dtypes: Any) -> None:
        inputs = self.inputs(Backend("cuda"), self.GPU_SHAPE, dtypes)
        self.check(Backend("cuda"), inputs)
        assert set(self.KERNELS) <= kernels_launched(lambda: results(self.function, inputs))


class _BackwardCalls(TorchDispatchMode):
    """Records the calls of backward ops."""

    def __init__(self) -> None:
        super().__init__()
        self.recorded: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func.namespace == "bgpt_fast" and "_backward" in func.__name__:
            self.recorded.append((func, args))
        return func(*args, **(kwargs or {}))
