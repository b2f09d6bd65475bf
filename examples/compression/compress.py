"""Compresses a file with a byte model and an arithmetic coder, and restores it losslessly.

    python examples/compression/compress.py compress trace.bin trace.bgpt --checkpoint examples/cpu_states/checkpoint
    python examples/compression/compress.py restore trace.bgpt again.bin --checkpoint examples/cpu_states/checkpoint

The file is split into blocks that fit the model's context, each coded independently. Compressing scores all bytes of a
block at once (`score`); restoring decodes byte by byte, for all blocks in parallel (`ByteStreams`). Their
logits are bit-identical, so both derive the same integer frequencies, if the kind of machine and the build of torch are
the same. A checksum of the restored bytes turns any mismatch into an error instead of wrong bytes.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import lzma
import struct
import sys
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from arithmetic_coder import Decoder, Encoder
from numpy.typing import NDArray

from bgpt_fast import BGPT
from bgpt_fast.documents import extension_of
from bgpt_fast.files import atomic_write
from bgpt_fast.generation.scoring import ByteStreams, context_bytes, score

MAGIC = b"bGPT-ac1"
TOTAL = 1 << 24
FLOOR = 1 / 64
"""Probability mass spread evenly over all bytes, so that no byte takes more than 14 bits."""
_HEADER = struct.Struct("<8s8sQIIB")


class CompressedError(ValueError):
    """Data that cannot be restored: damaged, in another format, or from another model or machine."""


class Header(NamedTuple):
    """The header of a compressed file: model, sizes, checksum and extension."""

    fingerprint: bytes
    size: int
    checksum: int
    block_bytes: int
    extension: str


def fingerprint(model: BGPT) -> bytes:
    """Returns eight bytes that identify a model's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.float().cpu().numpy().tobytes())
    return digest.digest()[:8]


def cumulative_frequencies(logits: NDArray[np.float32]) -> NDArray[np.int64]:
    """Returns int64 [257]: byte b has the interval [c[b], c[b + 1]) of TOTAL. Depends on this row only, bit for bit.

    Args:
        logits: float32 [257]; the end-of-file logit is ignored, since the size is known.
    """
    scores = logits[:256].astype(np.float64)
    weights = np.exp(scores - scores.max())
    shares = (1 - FLOOR) * weights / weights.sum() + FLOOR / 256
    frequencies = np.maximum(1, np.floor(shares * (TOTAL - 256)).astype(np.int64))
    frequencies[frequencies.argmax()] += TOTAL - frequencies.sum()
    return np.concatenate([np.zeros(1, np.int64), frequencies.cumsum()])


def compress(
    model: BGPT, extension: str, content: bytes, *, block_bytes: int | None = None, max_batch: int = 16
) -> bytes:
    """Compresses a file.

    Args:
        model: gives the probabilities of the code.
        extension: extension of the file.
        content: any bytes.
        block_bytes: bytes per block, at most as many as fit the context (None).
        max_batch: blocks scored in parallel; does not change the result.

    Raises:
        ValueError: block_bytes does not fit the context.
    """
    capacity = context_bytes(model.config)
    size = capacity if block_bytes is None else block_bytes
    if not 1 <= size <= capacity:
        raise ValueError(f"block_bytes: expected 1…{capacity}, the bytes of the model's context, got {block_bytes}")
    blocks = [content[start : start + size] for start in range(0, len(content), size)]
    name = extension.encode("utf-8", "surrogateescape")[:255]
    parts = [_HEADER.pack(MAGIC, fingerprint(model), len(content), zlib.crc32(content), size, len(name)), name]
    rows_of_blocks = score(model, [(extension, block) for block in blocks], max_batch=max_batch)
    for block, rows in zip(blocks, rows_of_blocks, strict=True):
        encoder = Encoder()
        for byte, row in zip(block, rows.cpu().numpy(), strict=False):
            shares = cumulative_frequencies(row)
            encoder.encode(int(shares[byte]), int(shares[byte + 1]), TOTAL)
        coded = encoder.finish()
        parts.append(struct.pack("<I", len(coded)) + coded)
    return b"".join(parts)


def read_header(data: bytes) -> tuple[Header, list[bytes]]:
    """Returns the header and the coded blocks; raises CompressedError if they are incomplete."""
    try:
        magic, model, size, checksum, block_bytes, length = _HEADER.unpack_from(data)
        if magic != MAGIC or block_bytes < 1:
            raise CompressedError(f"expected a file of compress.py, got one that begins with {data[:8]!r}")
        at = _HEADER.size + length
        extension = data[_HEADER.size : at].decode("utf-8", "surrogateescape")
        blocks = []
        for _ in range(-(-size // block_bytes)):
            (length,) = struct.unpack_from("<I", data, at)
            blocks.append(data[at + 4 : at + 4 + length])
            at += 4 + length
    except struct.error:
        raise CompressedError(f"expected a whole file of compress.py, got {len(data)} bytes") from None
    if at != len(data):
        raise CompressedError(f"expected {at} bytes, got {len(data)}; the file is damaged")
    return Header(model, size, checksum, block_bytes, extension), blocks


def restore(model: BGPT, data: bytes, *, max_batch: int = 64) -> bytes:
    """Restores the content of a compressed file.

    Args:
        model: the model that compressed it.
        data: a result of `compress`.
        max_batch: blocks restored in parallel; does not change the result.

    Raises:
        CompressedError: the data is damaged, or another model, machine or build wrote it.
    """
    header, blocks = read_header(data)
    if header.fingerprint != fingerprint(model):
        raise CompressedError("expected the model that compressed the file, got another one; give its checkpoint")
    if header.block_bytes > context_bytes(model.config):
        raise CompressedError(f"expected blocks that fit the model's context, got {header.block_bytes} bytes")
    sizes = [min(header.block_bytes, header.size - start) for start in range(0, header.size, header.block_bytes)]
    content = b""
    for start in range(0, len(blocks), max_batch):
        group = slice(start, start + max_batch)
        content += _restore_blocks(model, header.extension, blocks[group], sizes[group])
    if zlib.crc32(content) != header.checksum:
        raise CompressedError(
            "the restored bytes have another checksum: the file is damaged, or was written on another kind of machine"
        )
    return content


def _restore_blocks(model: BGPT, extension: str, blocks: list[bytes], sizes: list[int]) -> bytes:
    decoders = [Decoder(block) for block in blocks]
    streams = ByteStreams(model, [extension] * len(blocks), length=max(sizes))
    for place in range(max(sizes)):
        rows = [row for row, size in enumerate(sizes) if place < size]
        values = []
        for row, logits in zip(rows, streams.logits(rows).cpu().numpy(), strict=True):
            shares = cumulative_frequencies(logits)
            byte = int(np.searchsorted(shares, decoders[row].target(TOTAL), "right")) - 1
            decoders[row].decode(int(shares[byte]), int(shares[byte + 1]), TOTAL)
            values.append(byte)
        streams.append(rows, values)
    return b"".join(streams.content(row) for row in range(len(blocks)))


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
    except ValueError as error:
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
