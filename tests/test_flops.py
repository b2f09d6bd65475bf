"""FLOPs are what torch counts, and the peaks are those of the right GPU."""

from __future__ import annotations

import timeit

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bgpt_fast import BGPTConfig, PackedPatches, ReferenceBGPT
from bgpt_fast.flops import forward_flops, peak_flops, peak_flops_of, training_flops

CONFIG = BGPTConfig(patch_size=4, patch_length=9, hidden_size=32, patch_num_layers=2, byte_num_layers=3, num_heads=4)


@pytest.mark.parametrize("sample", [None, {1, 4, 8}], ids=["all targets", "three targets"])
def test_flops_are_what_torch_counts(sample: set[int] | None) -> None:
    batch = PackedPatches.from_bytes([("a", bytes(20)), ("b", bytes(5))], CONFIG)
    lengths = batch.cu_seqlens.diff()
    starts = batch.cu_seqlens.tolist()
    model = ReferenceBGPT(CONFIG)
    forward, backward = FlopCounterMode(display=False), FlopCounterMode(display=False)
    with forward:
        features = torch.cat([model.patch_level_decoder(patches) for patches in batch.patches.split(lengths.tolist())])
        chosen = sample or set(range(len(batch.patches))) - set(starts)
        logits = [model.byte_level_decoder(features[i - 1], batch.patches[i]) for i in sorted(chosen)]
    with backward:
        torch.stack(logits).logsumexp(-1).sum().backward()
    one_hot = 2 * starts[-1] * 4 * 257 * 32  # the reference multiplies by one-hot matrices, which need no gradient
    targets = None if sample is None else len(sample)
    counted = sum(forward_flops(CONFIG, lengths, targets, causal=False).values())
    assert counted + one_hot == forward.get_total_flops()
    assert 2 * counted + one_hot == backward.get_total_flops()
    assert counted != sum(forward_flops(CONFIG, lengths, 4, causal=False).values())
    assert training_flops(CONFIG, lengths, targets) == 3 * sum(forward_flops(CONFIG, lengths, targets).values())


def test_flops_of_the_papers_model() -> None:
    parts = forward_flops(BGPTConfig(), [512])
    a_patch = {name: flops / (511 if name.startswith(("byte", "head")) else 512) / 1e6 for name, flops in parts.items()}
    expected = {
        "patch linears": 169.9,
        "patch attention": 9.45,
        "byte linears": 679.5,
        "byte attention": 1.25,
        "head": 6.3,
    }
    assert a_patch == pytest.approx(expected, rel=0.01)
    assert training_flops(BGPTConfig(), [512] * 64) / (64 * 512) == pytest.approx(2.60e9, rel=0.005)


def test_a_classifier_has_no_byte_decoder() -> None:
    parts = forward_flops(CONFIG, [7, 3], 0)
    assert parts == parts | {"byte linears": 0, "byte attention": 0, "head": 0}
    assert parts["patch linears"] > 0


def test_sums_are_exact_and_quick() -> None:
    lengths = np.random.default_rng(0).integers(2, 1024, 4000).astype(np.int32)
    plain = sum(int(length) * (int(length) + 1) // 2 for length in lengths)
    counts = forward_flops(BGPTConfig(), lengths)
    assert counts["patch attention"] == 4 * 768 * plain * 12
    assert (
        counts == forward_flops(BGPTConfig(), torch.from_numpy(lengths)) == forward_flops(BGPTConfig(), list(lengths))
    )
    assert sum(forward_flops(BGPTConfig(), []).values()) == 0
    assert min(timeit.repeat(lambda: training_flops(BGPTConfig(), lengths), number=1, repeat=20)) < 1e-3


@pytest.mark.parametrize(
    ("name", "half"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756.5e12),
        ("NVIDIA H100 NVL", 835.5e12),
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA H200 NVL", 835.5e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA A100-PCIE-40GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA GB200", None),
        ("NVIDIA L40", None),
        ("", None),
    ],
)
def test_peaks_by_name(name: str, half: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert peak_flops_of(name, torch.bfloat16) == peak_flops_of(name, torch.float16) == half
    single = peak_flops_of(name, torch.float32)
    assert single is None if half is None else single < half
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda"), torch.bfloat16) == half
    assert peak_flops_of(name, torch.int8) is None


def test_a_cpu_has_no_peak() -> None:
    assert peak_flops(torch.device("cpu"), torch.float32) is None
