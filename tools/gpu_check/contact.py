"""The pieces that run first on a GPU: whether each kernel runs and is right at small sizes, then a few timings."""

from __future__ import annotations

import time
from typing import Any

import torch

from benchmarks.names import OURS
from benchmarks.op_cases import SMALL, Maker, Sizes, case_of
from benchmarks.op_measure import check
from benchmarks.timing import measure, summarise
from benchmarks.training import training_step
from bgpt_fast import BGPTConfig
from bgpt_fast.flops import peak_flops, training_flops
from bgpt_fast.training.profiling import StepProfiler
from tools.gpu_check.byte_decode import check_bytes
from tools.gpu_check.ops import check_graph
from tools.gpu_check.setting import TINY, Setting, unrecorded
from tools.gpu_check.states import check_states
from tools.gpu_check.training import check_step, full_documents

FEW = Sizes(T=7, P=18, L=6, S=16, D=768, H=12)
"""A few patches at the paper's width, so that the kernels are compiled as in training."""
TRACE = "gpu_trace.json.gz"
LINEAR = {"qkv": (1, 3), "proj": (1, 1), "fc": (1, 4), "fc_out": (4, 1)}
"""Widths of the input and output of a layer's linear layers, in multiples of D."""


def extension(item: str, setting: Setting) -> dict[str, Any]:
    """Whether the extension can be imported, has CUDA, and one of its kernels runs on this GPU."""
    from bgpt_fast import _C

    setting.require_gpu()
    if not _C.with_cuda:
        raise RuntimeError(f"{_C.__file__} was built without CUDA")
    case = case_of("patch_embed")
    with torch.no_grad():
        case.op(*case.inputs(Maker(SMALL, torch.float32, setting.device, seed=0)))
    torch.cuda.synchronize()
    return {"file": _C.__file__}


def values(item: str, setting: Setting) -> dict[str, Any]:
    """One op in one dtype, forward alone or with its gradients, against its reference in float64."""
    op, dtype, passes = item.split()
    sizes = SMALL if setting.quick else FEW
    return {**check(case_of(op), sizes, getattr(torch, dtype), setting.device, gradients=passes == "gradients")}


def first(item: str, setting: Setting) -> dict[str, Any]:
    """What is made of the ops, at small sizes: a training step, a graph, the byte decoder's bytes, CPU states."""
    kind, _, name = item.partition(" ")
    if kind == "step":
        return {**check_step(TINY if setting.quick else BGPTConfig(), getattr(torch, name), setting.device)}
    if kind == "bytes":
        if name == "persistent":
            setting.require_gpu()
        return check_bytes(setting.device, None if setting.on_gpu else unrecorded, (name,))
    setting.require_gpu()
    if kind == "graph":
        check_graph(case_of("add_layer_norm"), SMALL, torch.bfloat16, setting.device, replays=2)
    else:
        check_states(1000, setting.device)
    return {}


def products(item: str, setting: Setting) -> dict[str, Any]:
    """The rate of one of a training step's matrix products: that of the byte decoder at 8,192 patches."""
    direction, layer = item.split()
    N, D = (64, 32) if setting.quick else (16 * 8192, 768)
    k, n = (D * factor for factor in LINEAR[layer])
    dtype = torch.bfloat16 if setting.on_gpu else torch.float32
    x, weight, dy = (torch.randn(shape, device=setting.device).to(dtype) for shape in ((N, k), (n, k), (N, n)))
    call = {"forward": lambda: x @ weight.t(), "dx": lambda: dy @ weight, "dweight": lambda: dy.t() @ x}[direction]
    timing = measure(call, setting.device, seconds=0.01 if setting.quick else 0.2)
    return {**timing._asdict(), "rows": N, "inputs": k, "outputs": n, "rate": 2 * N * k * n / timing.median}


def steps(item: str, setting: Setting) -> dict[str, Any]:
    """Five training steps of 8,192 patches with the GPU's and the host's time, or a trace of two."""
    config, documents = (TINY, 2) if setting.quick else (BGPTConfig(), 16)
    batch = full_documents(documents, config, setting.device)
    _, step = training_step(OURS, batch, config, torch.bfloat16 if setting.on_gpu else torch.float32)
    for _ in range(3):
        step()
    if item == "trace":
        path = setting.output / TRACE
        with StepProfiler(path, first=2, steps=2) as profiler:
            for _ in range(3):
                step()
                profiler.step()
        return {"file": path.name, "bytes": path.stat().st_size, "gpu_idle_share": profiler.gpu_idle_share}
    gpu, host = [], []
    for _ in range(5):
        began, cpu_began = _mark(setting), time.process_time()
        step()
        host.append(time.process_time() - cpu_began)
        gpu.append((began, _mark(setting)))
    if setting.on_gpu:
        torch.cuda.synchronize()
    seconds = [
        began.elapsed_time(ended) / 1e3 if isinstance(began, torch.cuda.Event) else ended - began
        for began, ended in gpu
    ]
    median = summarise(seconds).median
    values = {"step_s": seconds, "host_cpu_s": host, "patches": batch.num_patches}
    peak = peak_flops(setting.device, torch.bfloat16) if setting.on_gpu else None
    flops = training_flops(config, [config.patch_length] * documents)
    return {**values, "patches_per_s": batch.num_patches / median, **({"mfu": flops / median / peak} if peak else {})}


def _mark(setting: Setting) -> Any:
    """The time at this point of the device's work: an event on a GPU, otherwise seconds."""
    if not setting.on_gpu:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
