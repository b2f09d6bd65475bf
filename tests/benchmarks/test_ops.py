"""The cases of the benchmarks of ops: right, equal to their baselines, and with the work that torch counts."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.op_cases import CASES, SMALL, Maker, Sizes, Work, case_of
from benchmarks.op_measure import WrongResultError, check, figures, run
from benchmarks.timing import Timing, measure, sample, summarise

CPU = torch.device("cpu")
NAMES = [case.name for case in CASES]


@pytest.mark.parametrize("name", NAMES)
def test_a_case_is_right_and_its_baselines_compute_the_same(name: str) -> None:
    case = case_of(name)
    for dtype in case.dtypes:
        check(case, SMALL, dtype, CPU)
    arguments = case.inputs(Maker(SMALL, torch.float32, CPU, seed=3))
    expected = run(case.reference, arguments)
    for baseline in case.baselines.values():
        for result, reference in zip(run(baseline, arguments), expected, strict=True):
            torch.testing.assert_close(result, reference, rtol=1e-4, atol=1e-4)
    forward, backward = case.work(SMALL, 2)
    assert forward.bytes > 0
    assert (backward.bytes > 0) == case.differentiable


@pytest.mark.parametrize(
    "spoil",
    [
        lambda y: y * (1 + 1e-3),
        lambda y: torch.cat([y[:-1], y[-1:] + 1e-2]),
        lambda y: torch.where(torch.arange(y.shape[1]) == 5, torch.nan, y),
        lambda y: y + 1e-6 * random.random(),
    ],
    ids=["all wrong", "one row wrong", "a NaN", "never the same"],
)
def test_a_wrong_op_is_not_timed(spoil: Any) -> None:
    good = case_of("bias_gelu")

    def wrong(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return spoil(good.op(x, bias))

    bad = type("Bad", (type(good),), {"op": staticmethod(wrong)})()
    with pytest.raises(WrongResultError):
        check(bad, SMALL, torch.float32, CPU)


def test_wrong_values_are_described() -> None:
    good = case_of("bias_gelu")

    def wrong(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        y = good.op(x, bias)
        return y + torch.zeros_like(y).index_put_((torch.tensor([20, 20]), torch.tensor([70, 3])), torch.tensor(2.0))

    bad = type("Bad", (type(good),), {"op": staticmethod(wrong)})()
    with pytest.raises(WrongResultError, match=r"output 0; first: expected .* at row 20, column 3") as caught:
        check(bad, SMALL, torch.float32, CPU)
    (output,) = caught.value.mismatches  # no gradient is wrong
    assert (output["result"], output["shape"], output["count"]) == ("output 0", [112, 256], 2)
    assert output["arguments"] == ["float32[112, 256] strides [256, 1] cpu", "float32[256] strides [1] cpu"]
    second = output["first"][1]
    assert second["row_and_column_modulo"] == {"16": [4, 6], "64": [20, 6], "128": [20, 70]}
    assert float(second["actual"]) == pytest.approx(float(second["expected"]) + 2)


def test_the_forward_pass_is_checked_alone() -> None:
    good = case_of("bias_gelu")

    class NoGradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
            return good.op(x, bias)

        @staticmethod
        def backward(ctx: Any, dy: torch.Tensor) -> Any:
            raise NotImplementedError

    bad = type("Bad", (type(good),), {"op": staticmethod(NoGradient.apply)})()
    assert check(bad, SMALL, torch.float32, CPU, gradients=False)["error"] < 1e-6
    with pytest.raises(NotImplementedError):
        check(bad, SMALL, torch.float32, CPU)


def test_timing() -> None:
    assert summarise([3.0, 1.0, 2.0, 5.0, 4.0]) == Timing(2.0, 3.0, 5.0, 5)
    calls: list[int] = []
    times = sample(lambda: calls.append(1), CPU, seconds=0.001)
    assert 4 <= len(times) < len(calls)
    assert 0 < min(times) < 1e-3
    timing = measure(lambda: calls.append(1), CPU, seconds=0.001)
    assert timing.p20 <= timing.median <= timing.p80
    values = figures(Timing(1.0, 2.0, 3.0, 4), Work(4_000_000_000, 0), {"copy_bytes_per_s": 4e9, "matmul_flops": 1.0})
    assert (values["gb_per_s"], values["bound"], values["of_peak"]) == (2.0, "copy", 0.5)


@pytest.mark.parametrize("name", NAMES)
def test_flops_of_an_op_are_as_torch_counts(name: str) -> None:
    case = case_of(name)
    sizes = Sizes(T=3, P=18, L=6, S=16, D=64, H=4)
    counter = FlopCounterMode(display=False)
    arguments = case.inputs(Maker(sizes, torch.float32, CPU, seed=0))
    baseline = next(iter(case.baselines.values()))  # the reference may do more than it must, such as one-hot products
    # torch counts nothing in its fused attention on a CPU; the plain one computes full squares.
    with counter, sdpa_kernel(SDPBackend.MATH):
        baseline(*arguments)
    attention = {"byte_attention": (sizes.N, sizes.S), "patch_attention": (sizes.P, sizes.L)}
    rows, length = attention.get(case.folder, (0, 0))
    square, causal = 4 * rows * length * sizes.D, 4 * rows * (length + 1) // 2 * sizes.D
    assert case.work(sizes, 4)[0].flops == counter.get_total_flops() - square + causal


def test_a_gpu_is_timed_by_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[float, str]] = []

    def do_bench(call: Any, *, rep: float, return_mode: str) -> list[float]:
        calls.append((rep, return_mode))
        return [2.0, 1.0]

    monkeypatch.setattr("triton.testing.do_bench", do_bench)
    assert sample(lambda: None, torch.device("cuda"), seconds=0.25) == [2e-3, 1e-3]
    assert calls == [(250.0, "all")]
