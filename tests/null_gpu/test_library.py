"""The null GPU itself: what it logs, what it refuses as CUDA would, and which values it keeps."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from tools.null_gpu.log import Kind, Log, counts, launches, refusals, waits
from tools.null_gpu.recorder import recording

MEGABYTE = 1 << 20


def test_it_is_an_h200() -> None:
    assert torch.cuda.get_device_name() == "NVIDIA H200"
    assert torch.cuda.get_device_capability() == (9, 0)
    assert torch.cuda.get_device_properties(0).multi_processor_count == 132


def test_copies_keep_their_values() -> None:
    assert torch.arange(1000).cuda().cpu().tolist() == list(range(1000))


def test_a_product_is_logged_with_its_sizes(log: Log) -> None:
    a, b = (torch.empty(shape, device="cuda", dtype=torch.bfloat16) for shape in ((48, 80), (80, 16)))
    first = len(log)
    a @ b
    (event,) = (event for event in log.events(first) if event.kind is Kind.PRODUCT)
    assert event.product == (16, 48, 80, 1)  # cuBLAS stores columns one after the other
    assert event.item_size == 2


def test_launches_and_waits_are_counted(log: Log) -> None:
    x = torch.zeros(1000, device="cuda")
    first = len(log)
    y = (x + 1) * 2
    assert launches(log.events(first)) == 2
    assert not waits(log.events(first))
    y.sum().item()
    assert waits(log.events(first)) == {"cudaStreamSynchronize": 1}


def test_copies_from_pinned_memory_do_not_wait(log: Log) -> None:
    host = torch.zeros(MEGABYTE, dtype=torch.uint8)
    pinned = host.pin_memory()
    first = len(log)
    pinned.to("cuda", non_blocking=True)
    assert counts(log.events(first))["copy_to_device"] == 1
    assert not waits(log.events(first))
    host.to("cuda")
    assert counts(log.events(first))["copy_pageable"] == 1
    assert sum(waits(log.events(first)).values()) == 1


def test_a_graph_is_one_launch_with_its_kernels_inside(log: Log) -> None:
    x = torch.zeros(1000, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = (x + 1) * 2
    first = len(log)
    graph.replay()
    (event,) = log.events(first)
    assert event.kind is Kind.GRAPH
    assert launches(log.graph(event.graph)) == 2
    del y


def test_a_wait_during_capture_fails_as_in_cuda() -> None:
    log = Log()
    first, x = len(log), torch.zeros(8, device="cuda")
    pinned = torch.empty(8).pin_memory()
    with pytest.raises(RuntimeError, match="stream is capturing"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        pinned.copy_(x)
    assert refusals(log.events(first)) == {"cudaStreamSynchronize": 1}


@pytest.mark.parametrize(("mode", "is_refused"), [("thread_local", False), ("global", True)])
def test_other_threads_launch_during_a_capture_unless_it_is_global(mode: str, is_refused: bool) -> None:
    x = torch.ones(4, device="cuda")
    with ThreadPoolExecutor(1) as pool, torch.cuda.graph(torch.cuda.CUDAGraph(), capture_error_mode=mode):
        y = x * 2  # or the graph would be empty
        error = pool.submit(lambda: x + 1).exception()
    assert isinstance(error, RuntimeError) == is_refused
    del y


def test_too_large_launches_fail() -> None:
    import triton
    import triton.language as tl

    @triton.jit
    def nothing(x, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
        tl.store(x + tl.arange(0, BLOCK), 0.0)

    x, log = torch.zeros(64, device="cuda"), Log()
    nothing[(1,)](x, BLOCK=64)
    first = len(log)
    with pytest.raises(RuntimeError, match="invalid configuration"):
        nothing[(1, 70000)](x, BLOCK=64)
    assert refusals(log.events(first)) == {"a grid that is empty or too large": 1}


@pytest.mark.parametrize("static", [True, False], ids=["torch", "triton"])
def test_what_torch_compiles_is_launched(
    static: bool, log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By torch's launcher, which loads a kernel from its file, and by Triton's, which loads it from memory."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    x = torch.zeros(1000, 100, device="cuda")
    torch._dynamo.reset()
    options = {"use_static_cuda_launcher": static, "strict_static_cuda_launcher": static, "compile_threads": 1}
    with torch._inductor.config.patch(options):
        function = torch.compile(lambda x: (x.sin() + 1).sum(1))
        function(x)
        first = len(log)
        function(x)
    (event,) = (event for event in log.events(first) if event.kind is Kind.KERNEL)
    assert event.name.startswith("triton_")


def test_memory_runs_out() -> None:
    torch.cuda.empty_cache()
    before = Log().memory()
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(150_000 * MEGABYTE, dtype=torch.uint8, device="cuda")
    large = torch.empty(100_000 * MEGABYTE, dtype=torch.uint8, device="cuda")
    assert Log().memory() - before >= 100_000 * MEGABYTE
    del large
    torch.cuda.empty_cache()
    assert Log().memory() <= before


def test_the_work_of_an_op_is_what_it_reads_and_writes(log: Log) -> None:
    x, y = (torch.zeros(1000, 100, device="cuda") for _ in range(2))
    first = len(log)
    with recording(log) as recorded:
        x + y
        x.add_(y)
        x.t().sum(0)
    added, in_place, *rest = recorded.work_of(first, log.events(first))
    assert added is not None
    assert in_place is not None
    assert added.bytes == in_place.bytes == 3 * 4e5
    assert sum(work.bytes for work in rest if work) == 4e5 + 4e3


def test_a_fill_beside_a_kernel_takes_none_of_its_work(log: Log) -> None:
    """A sum over many rows sets counters to zero first."""
    x = torch.zeros(100_000, 768, device="cuda", dtype=torch.bfloat16)
    x.sum(0)
    first = len(log)
    with recording(log) as recorded:
        x.sum(0)
    work = recorded.work_of(first, log.events(first))
    pairs = [pair for pair in zip(log.events(first), work, strict=True) if pair[1] is not None]
    assert {event.kind for event, _ in pairs} == {Kind.FILL, Kind.KERNEL}
    assert {event.kind: each.bytes for event, each in pairs if each}[Kind.KERNEL] == (100_000 + 1) * 768 * 2


def test_what_is_overwritten_is_not_read(log: Log) -> None:
    x, half = torch.zeros(1000, 100, device="cuda"), torch.zeros(1000, 100, device="cuda", dtype=torch.bfloat16)
    weight = torch.nn.Parameter(x.clone())
    weight.grad = x.clone()
    optimizer = torch.optim.AdamW([weight], fused=True)
    optimizer.step()
    first = len(log)
    with recording(log) as recorded:
        half.copy_(x)
        torch._foreach_copy_([half], [x])
        optimizer.step()
    work = [each for each in recorded.work_of(first, log.events(first)) if each is not None]
    assert [each.bytes for each in work if "copy_" in each.name] == [6e5, 6e5]
    adamw = sum(each.bytes for each in work if "adamw" in each.name)
    assert adamw == pytest.approx(28e5, rel=1e-4)  # weight and two moments read and written, the gradient read


def test_a_triton_kernels_work_is_that_of_its_arguments(log: Log) -> None:
    from bgpt_fast.kernels.linear_cross_entropy.op import linear_cross_entropy

    x = torch.zeros(640, 64, device="cuda", dtype=torch.bfloat16)
    weight, targets = torch.zeros(257, 64, device="cuda", dtype=torch.bfloat16), torch.zeros(640, device="cuda").long()
    first = len(log)
    with recording(log) as recorded:
        linear_cross_entropy(x, weight, targets)
    (work,) = recorded.work_of(first, log.events(first))
    assert work is not None
    assert work.name == "_linear_cross_entropy_fwd_kernel"
    assert work.flops == 2 * 640 * 64 * 257
    assert work.bytes == 640 * 64 * 2 + 257 * 64 * 2 + 640 * 8 + 2 * 640 * 4
