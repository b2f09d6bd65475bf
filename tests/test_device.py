"""Copies of several tensors in one buffer, here from the CPU to the CPU; tests/null_gpu counts those to a GPU."""

from __future__ import annotations

import torch

from bgpt_fast.device import HostCopies, to_device_together

CPU = torch.device("cpu")


def some_tensors() -> list[torch.Tensor]:
    """Of several dtypes, among them empty ones and one that is not contiguous."""
    return [
        torch.arange(15, dtype=torch.int16).view(5, 3),
        torch.tensor([2**64 - 1, 0, 7], dtype=torch.uint64),
        torch.empty(0, 16, dtype=torch.int16),
        torch.arange(12, dtype=torch.int64).view(3, 4).t(),
        torch.tensor([True]),
        torch.tensor(0.5),
    ]


def test_tensors_copied_together_keep_their_values() -> None:
    for copies in (to_device_together(some_tensors(), CPU), HostCopies(some_tensors()).wait()):
        for copy, one in zip(copies, some_tensors(), strict=True):
            assert (copy.dtype, copy.shape) == (one.dtype, one.shape)
            assert torch.equal(copy, one)
            assert copy.data_ptr() % copy.element_size() == 0
        # One buffer.
        assert len({copy.untyped_storage().data_ptr() for copy in copies}) == 1


def test_copies_are_of_the_moment() -> None:
    values = some_tensors()
    there, copies = to_device_together(values, CPU), HostCopies(values)
    for one in values:
        one.zero_()
    for back in (there, copies.wait()):
        assert all(torch.equal(copy, one) for copy, one in zip(back, some_tensors(), strict=True))
