"""Compresses a file with a byte model and an arithmetic coder, and restores it losslessly, on any processor.

    python examples/compression/compress.py compress trace.bin trace.bgpt --checkpoint examples/cpu_states/checkpoint
    python examples/compression/compress.py restore trace.bgpt again.bin --checkpoint examples/cpu_states/checkpoint

The file is split into blocks that fit the model's context, each coded independently. Compressing scores all bytes of a
block at once (`score`); restoring decodes byte by byte, for all blocks in parallel (`ByteStreams`). Both have the same
logits, bit for bit and on every processor, from the CPU engine in float32; fixed_point.py makes the same integers of
them. A CRC of each restored block turns damage into an error instead of wrong bytes.
"""

from __future__ import annotations

import argparse
import gzip
import lzma
import sys
from pathlib import Path

import numpy as np
import torch
from arithmetic_coder import Decoder, Encoder
from container import Chunk, CompressedError, Header, model_digest, pack, unpack
from fixed_point import TOTAL, cumulative_frequencies

from bgpt_fast import BGPT
from bgpt_fast.documents import extension_of
from bgpt_fast.files import atomic_write
from bgpt_fast.generation.scoring import ByteStreams, context_bytes, score

_PRECISION = "float32"  # the CPU engine's other precisions flush small numbers to zero on some processors


def compress(
    model: BGPT, extension: str, content: bytes, *, block_bytes: int | None = None, max_batch: int = 16
) -> bytes:
    """Compresses a file.

    Args:
        model: gives the probabilities of the code; on the CPU.
        extension: extension of the file.
        content: any bytes.
        block_bytes: bytes per block, at most as many as fit the context (None).
        max_batch: blocks scored in parallel; does not change the result.

    Raises:
        ValueError: block_bytes does not fit the context, or the model is on another device.
        FloatingPointError: the process flushes subnormal numbers to zero, or the logits are NaN or infinite.
    """
    _check_arithmetic(model)
    capacity = context_bytes(model.config)
    size = capacity if block_bytes is None else block_bytes
    if not 1 <= size <= capacity:
        raise ValueError(f"block_bytes: expected 1…{capacity}, the bytes of the model's context, got {block_bytes}")
    blocks = [content[start : start + size] for start in range(0, len(content), size)]
    name = extension.encode("utf-8", "surrogateescape")[:255].decode("utf-8", "surrogateescape")
    codes = []
    documents = [(name, block) for block in blocks]
    for block, rows in zip(blocks, score(model, documents, max_batch=max_batch, precision=_PRECISION), strict=True):
        encoder = Encoder()
        bounds = cumulative_frequencies(rows[: len(block)].numpy())
        for byte, row in zip(block, bounds, strict=True):
            encoder.encode(int(row[byte]), int(row[byte + 1]), TOTAL)
        codes.append(encoder.finish())
    return pack(Header(model_digest(model), len(content), size, name), blocks, codes)


def restore(model: BGPT, data: bytes, *, max_batch: int = 64) -> bytes:
    """Restores the content of a compressed file.

    Args:
        model: the model that compressed it, on the CPU.
        data: a result of `compress`.
        max_batch: blocks restored in parallel; does not change the result.

    Raises:
        CompressedError: the data is damaged, of another version, or another model's.
        ValueError, FloatingPointError: as for `compress`.
    """
    _check_arithmetic(model)
    header, chunks = unpack(data)
    digest = model_digest(model)
    if header.digest != digest:
        raise CompressedError(
            f"expected the model with digest {header.digest.hex()}, which compressed the file, got one with "
            f"{digest.hex()}; use the same checkpoint"
        )
    if header.block_bytes > context_bytes(model.config):
        raise CompressedError(f"expected blocks that fit the model's context, got {header.block_bytes} bytes")
    blocks = []
    for start in range(0, len(chunks), max_batch):
        blocks += _restore_blocks(model, header.extension, chunks[start : start + max_batch])
    return b"".join(blocks)


def _restore_blocks(model: BGPT, extension: str, chunks: list[Chunk]) -> list[bytes]:
    decoders = [Decoder(chunk.code) for chunk in chunks]
    length = max(chunk.size for chunk in chunks)
    streams = ByteStreams(model, [extension] * len(chunks), length=length, precision=_PRECISION)
    for place in range(length):
        rows = [row for row, chunk in enumerate(chunks) if place < chunk.size]
        values = []
        for row, bounds in zip(rows, cumulative_frequencies(streams.logits(rows).numpy()), strict=True):
            byte = int(np.searchsorted(bounds, decoders[row].target(TOTAL), "right")) - 1
            decoders[row].decode(int(bounds[byte]), int(bounds[byte + 1]), TOTAL)
            values.append(byte)
        streams.append(rows, values)
    blocks = [streams.content(row) for row in range(len(chunks))]
    for chunk, block in zip(chunks, blocks, strict=True):
        chunk.check(block)
    return blocks


def _check_arithmetic(model: BGPT) -> None:
    """Raises an error where the logits' bits could be others than on another machine."""
    device = next(model.parameters()).device
    if device.type != "cpu":
        raise ValueError(f"model: expected one on the CPU, whose logits are the same everywhere, got one on {device}")
    if np.float32(2**-126) * np.float32(0.5) == 0:
        raise FloatingPointError(
            "expected IEEE 754 arithmetic, got subnormal numbers flushed to zero; call torch.set_flush_denormal(False) "
            "or do not load the library that set it"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["compress", "restore"])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path, help="the file to write; an existing one is replaced")
    parser.add_argument("--checkpoint", required=True, help="a folder of weights, a .safetensors or .pth file")
    parser.add_argument("--block-bytes", type=int, help="bytes coded together; the context's by default")
    options = parser.parse_args()
    model = BGPT.from_pretrained(options.checkpoint, dtype=torch.float32)
    source = options.source.read_bytes()
    try:
        if options.action == "restore":
            result = restore(model, source)
        else:
            result = compress(model, extension_of(options.source), source, block_bytes=options.block_bytes)
    except (ValueError, FloatingPointError) as error:
        print(f"{options.source}: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    with atomic_write(options.target) as file:
        file.write(result)
    print(f"{options.target}: {len(source)} bytes became {len(result)}")
    if options.action == "compress":
        print(f"beside it: gzip {len(gzip.compress(source, 9))}, xz {len(lzma.compress(source, preset=9))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
