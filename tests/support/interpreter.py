"""Triton's interpreter with fixes: without a GPU, kernels run in it on CPU tensors.

In Triton's own version 2.5 + 2.0 is −2.9e-39 in bfloat16, `tl.dot` multiplies the raw bits, and rounding to bfloat16
truncates. `tl.dot` is numpy's float32 product, in which a row's bits depend on its place on many processors; here it
is a float64 product, rounded. Importing this module fixes that; `test_interpreter.py` checks the fixes.
"""

from __future__ import annotations

import os

import numpy as np
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read by triton when it is imported

import triton.language as tl  # noqa: E402
import triton.runtime.interpreter as interpreter  # noqa: E402


def _convert(x, source, target, rounding):  # type: ignore[no-untyped-def]
    if source == tl.float32 and target == tl.bfloat16:
        bits = np.ascontiguousarray(x).view(np.uint32)
        rounded = ((bits + (0x7FFF + ((bits >> 16) & 1)).astype(np.uint32)) >> 16).astype(np.uint16)
        return np.where((bits & 0x7FFFFFFF) > 0x7F800000, np.uint16(0x7FC0), rounded)
    if source == tl.bfloat16 and target == tl.float32:
        return (np.ascontiguousarray(x).astype(np.uint32) << 16).view(np.float32)
    return _plain_convert(x, source, target, rounding)


def _is_bf16(handle) -> bool:  # type: ignore[no-untyped-def]
    return getattr(handle.dtype, "scalar", handle.dtype) == tl.bfloat16


def _up(handle):  # type: ignore[no-untyped-def]
    return _convert(handle.data, tl.bfloat16, tl.float32, None)


def _down(values):  # type: ignore[no-untyped-def]
    data = _convert(values.astype(np.float32), tl.float32, tl.bfloat16, None)
    return interpreter.TensorHandle(data, tl.bfloat16)


def _dot(self, a, b, d, *rest):  # type: ignore[no-untyped-def]
    if d.data.dtype != np.float32:
        return _plain_dot(self, a, b, d, *rest)
    left, right = ((_up(t) if _is_bf16(t) else t.data).astype(np.float64) for t in (a, b))
    return interpreter.TensorHandle(np.matmul(left, right).astype(np.float32) + d.data, d.dtype.scalar)


def _binary(self, left, right, operation):  # type: ignore[no-untyped-def]
    if not _is_bf16(left) or operation in (np.bitwise_and, np.bitwise_or, np.bitwise_xor):
        return _plain_binary(self, left, right, operation)
    values = operation(_up(left), _up(right))
    return interpreter.TensorHandle(values, tl.int1) if values.dtype == bool else _down(values)


def _unary(self, argument, operation):  # type: ignore[no-untyped-def]
    return _down(operation(_up(argument))) if _is_bf16(argument) else _plain_unary(self, argument, operation)


if DEVICE == "cpu":
    _builder = interpreter.InterpreterBuilder
    _plain_convert, interpreter._convert_float = interpreter._convert_float, _convert
    _plain_dot, _builder.create_dot = _builder.create_dot, _dot
    _plain_binary, _builder.binary_op = _builder.binary_op, _binary
    _plain_unary, _builder.unary_op = _builder.unary_op, _unary
