"""Finds out what each launch reads, writes and computes: from the arguments of torch's ops and of Triton's kernels."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tools.null_gpu.log import Event, Kind, Log


@dataclass(frozen=True)
class Work:
    """What a launch does, or several together.

    Args:
        name: of the op or kernel.
        bytes: read from and written to memory.
        flops: in matrix products.
        l2_bytes: read again from the L2 cache, besides `bytes`.
    """

    name: str
    bytes: float
    flops: float = 0.0
    l2_bytes: float = 0.0


@dataclass
class Recording:
    """Which entries of the log belong to which work; inner spans come before the spans that contain them.

    Attributes:
        spans: number of the first entry, number after the last, and their work.
        phases: number of the entry at which a phase begins, and its name; "" is outside all phases.
    """

    spans: list[tuple[int, int, Work]] = field(default_factory=list)
    phases: list[tuple[int, str]] = field(default_factory=list)

    def work_of(self, first: int, events: Sequence[Event]) -> list[Work | None]:
        """The work of each of `events`, which the log has from the number `first` on; an op's is divided among its
        kernels.

        An op of this project contains kernels with spans of their own; what else it launches is small, gets nothing.
        """
        work: list[Work | None] = [None] * len(events)
        for begin, end, whole in self.spans:
            inside = range(max(begin, first), min(end, first + len(events)))
            mine = [i for i in inside if work[i - first] is None]
            kernels = sum(events[i - first].kind is Kind.KERNEL for i in mine)
            for i in mine:
                is_kernel = events[i - first].kind is Kind.KERNEL
                share = 1 / kernels if is_kernel and len(mine) == len(inside) else 0.0
                work[i - first] = Work(whole.name, share * whole.bytes, share * whole.flops, share * whole.l2_bytes)
        return work

    def phase_of(self, first: int, count: int) -> list[str]:
        """The phase of each of `count` entries from the number `first` on."""
        names, current, place = [], "", 0
        for number in range(first, first + count):
            while place < len(self.phases) and self.phases[place][0] <= number:
                current = self.phases[place][1]
                place += 1
            names.append(current)
        return names


@contextlib.contextmanager
def recording_phases(log: Log) -> Iterator[Recording]:
    """Records the phases alone, which costs next to nothing: those of `bgpt_fast.training.profiling.phase`."""
    recording = Recording()
    stack: list[str] = []

    def push(name: str) -> None:
        stack.append(name)
        recording.phases.append((len(log), name))

    def pop() -> None:
        stack.pop()
        recording.phases.append((len(log), stack[-1] if stack else ""))

    with mock.patch("torch.cuda.nvtx.range_push", push), mock.patch("torch.cuda.nvtx.range_pop", pop):
        yield recording


@contextlib.contextmanager
def recording(log: Log) -> Iterator[Recording]:
    """Records phases, ops of torch and Triton's kernels of this thread's work; it becomes several times slower."""
    import triton

    run = triton.JITFunction.run
    with recording_phases(log) as result, _Ops(log, result):

        def recorded(function: Any, *arguments: Any, grid: Any, warmup: bool, **named: Any) -> Any:
            begin = len(log)
            kernel = run(function, *arguments, grid=grid, warmup=warmup, **named)
            values = dict(zip(function.arg_names, arguments, strict=False)) | named
            result.spans.append((begin, len(log), _triton_work(function.fn.__name__, values, grid)))
            return kernel

        with mock.patch.object(triton.JITFunction, "run", recorded):
            yield result


class _Ops(TorchDispatchMode):
    def __init__(self, log: Log, result: Recording) -> None:
        super().__init__()
        self._log, self._result = log, result

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        begin = len(self._log)
        output = func(*args, **kwargs)
        end = len(self._log)
        if end > begin:
            self._result.spans.append((begin, end, _op_work(func, args, kwargs, output)))
        return output


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, Mapping):
        yield from _tensors(list(values.values()))
    elif isinstance(values, Iterable) and not isinstance(values, str):
        for value in values:
            yield from _tensors(value)


def _size(tensors: Iterable[Tensor]) -> int:
    """Bytes of the elements that exist: an expanded dimension counts once."""
    total = 0
    for tensor in tensors:
        real = [size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride or size == 0]
        elements = 1
        for size in real:
            elements *= size
        total += elements * tensor.element_size()
    return total


_OVERWRITING = {
    getattr(torch.ops.aten, name) for name in ("copy_", "_foreach_copy_", "fill_", "zero_", "_foreach_zero_")
}
"""Ops that do not read what they change."""


def _op_work(func: Any, args: Any, kwargs: Any, output: Any) -> Work:
    name = str(func)
    schema = zip(func._schema.arguments, args, strict=False)
    changed = [value for argument, value in schema if argument.alias_info is not None and argument.alias_info.is_write]
    if func is torch.ops.aten._fused_adamw_.default and kwargs.get("grad_scale") is None:
        changed = [value for value in changed if value is not args[1]]  # gradients are written only if scaled
    read = [value for value in args if not (func.overloadpacket in _OVERWRITING and any(value is v for v in changed))]
    bytes_ = _size(_tensors([read, kwargs])) + _size(_tensors(changed or output))
    flops = 0.0
    if "flash_documents_attention" in name:
        flops = _attention_flops(args, "backward" in name)
    return Work(name, bytes_, flops)


def _attention_flops(args: Any, backward: bool) -> float:
    """Of causal attention over packed documents, all as long as the longest, which is an upper bound."""
    q = next(value for value in _tensors(args) if value.dim() == 3)
    lengths = [value for value in args if isinstance(value, int) and not isinstance(value, bool)]
    P, H, d = q.shape
    forward = 2.0 * P * lengths[0] * H * d
    return 2.5 * forward if backward else forward


def _triton_work(kernel: str, values: Mapping[str, Any], grid: Any) -> Work:
    bytes_ = _size({(t.data_ptr(), t.numel()): t for t in _tensors(list(values.values()))}.values())
    flops, l2 = _PRODUCTS.get(kernel, lambda values, programs: (0.0, 0.0))(values, grid[0])
    return Work(kernel, bytes_, flops, l2)


def _cross_entropy(products: int) -> Callable[[Mapping[str, Any], int], tuple[float, float]]:
    def work(values: Mapping[str, Any], programs: int) -> tuple[float, float]:
        N, D, V = values["N"], values["D"], values["V"]
        size = values["x"].element_size()
        # Each program reads the whole weight, once for each product.
        return 2.0 * products * N * D * V, programs * V * D * size * products

    return work


def _cross_entropy_dweight(values: Mapping[str, Any], programs: int) -> tuple[float, float]:
    N, D, V = values["N"], values["D"], values["V"]
    # Each tile of columns reads all dlogits.
    return 2.0 * N * D * V, N * V * values["x"].element_size() * D / values["BD"]


def _one_hot(values: Mapping[str, Any], programs: int) -> tuple[float, float]:
    labels = -(-values["LABELS"] // values["BLOCK_V"])
    dy = values["dy"]
    return 2.0 * dy.numel() * labels * values["BLOCK_V"], dy.numel() * dy.element_size() * labels


_PRODUCTS: dict[str, Callable[[Mapping[str, Any], int], tuple[float, float]]] = {
    "_linear_cross_entropy_fwd_kernel": _cross_entropy(1),
    "_linear_cross_entropy_bwd_kernel": _cross_entropy(2),
    "_linear_cross_entropy_bwd_dweight_kernel": _cross_entropy_dweight,
    "_one_hot_sums_kernel": _one_hot,
}
"""FLOPs and bytes from L2 of the Triton kernels with matrix products, from their arguments and number of programs."""
