"""Tests that run on the null GPU, by `make test-cuda-host`: real dispatch, launches and graphs, but no values."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import pytest
import torch

from bgpt_fast.generation.decoders.cuda import CudaDecoder
from bgpt_fast.generation.decoders.request import DecodeRequest, DecodeResult, PendingResult
from tools.null_gpu.log import Log, refusals
from tools.null_gpu.step import finite_figures

ON_NULL_GPU = hasattr(ctypes.CDLL(None), "null_gpu_count")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not ON_NULL_GPU:
        for item in items:
            if "tests/null_gpu/" in item.path.as_posix():
                item.add_marker(pytest.mark.skip(reason="needs the null GPU: make test-cuda-host"))


@pytest.fixture(autouse=True)
def no_cudnn() -> Iterator[None]:
    """cuDNN asks the driver for what the null GPU has not; attention then takes torch's other implementations."""
    was = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    yield
    torch.backends.cuda.enable_cudnn_sdp(was)


@pytest.fixture(autouse=True)
def figures_are_finite() -> Iterator[None]:
    with finite_figures():
        yield


@pytest.fixture
def whole_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every patch is decoded as a whole, with bytes 0: how many bytes a kernel has chosen is not known here."""
    begin = CudaDecoder.begin

    def begin_whole(self: CudaDecoder, request: DecodeRequest) -> PendingResult:
        tokens, wait = begin(self, request)
        rows, size = tokens.shape

        def wait_whole() -> DecodeResult:
            wait()
            return DecodeResult(torch.zeros(rows, size, dtype=torch.int16), torch.full((rows,), size))

        return PendingResult(tokens, wait_whole)

    monkeypatch.setattr(CudaDecoder, "begin", begin_whole)


@pytest.fixture
def log() -> Iterator[Log]:
    """The log; the test fails if CUDA would have refused a call."""
    log = Log()
    first = len(log)
    yield log
    assert not refusals(log.events(first))
