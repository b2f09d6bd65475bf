"""Freed memory is used again without page faults."""

from __future__ import annotations

import platform
import resource

import pytest
import torch

from bgpt_fast.training.allocator import keep_freed_memory

_FLOATS = 12 << 20
_PAGE_FLOATS = 1024


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the setting")
def test_memory_of_a_freed_tensor_is_used_again() -> None:
    assert keep_freed_memory()
    # The heap first grows, until a freed block has room for a tensor and its alignment.
    for _ in range(20):
        torch.ones(_FLOATS)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        torch.ones(_FLOATS)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    assert faults < _FLOATS / _PAGE_FLOATS / 4
