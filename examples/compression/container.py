"""The format of a compressed file: a header and one chunk for each block of the content; all numbers little-endian.

Header: "bGPT-ac2"; the model's digest (8 bytes); size of the content (8); bytes a block (4); length of the extension
(1); the extension; CRC-32 of all that (4). Chunk: length of the code (4), CRC-32 of the block (4), the code. A block's
CRC goes on from the CRC before it, the header's or the last block's, so that chunks cannot change places unnoticed.

Version 2 promises that the logits are those of the CPU engine in float32, and the frequencies those of fixed_point.py.
A change of either that moves a bit needs another version.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from typing import NamedTuple

from bgpt_fast import BGPT

_NAME, _VERSION = b"bGPT-ac", b"2"
_HEADER = struct.Struct("<8s8sQIB")
_CRC = struct.Struct("<I")
_CHUNK = struct.Struct("<II")


class CompressedError(ValueError):
    """Data that cannot be restored: damaged, in another format, or from another model."""


class Header(NamedTuple):
    """What a compressed file says of its content.

    Args:
        digest: `model_digest` of the model that compressed it.
        size: bytes of the content.
        block_bytes: bytes of each block but the last, which may have fewer.
        extension: the file's extension.
    """

    digest: bytes
    size: int
    block_bytes: int
    extension: str

    def pack(self) -> bytes:
        """The header's bytes, with their CRC."""
        name = self.extension.encode("utf-8", "surrogateescape")
        packed = _HEADER.pack(_NAME + _VERSION, self.digest, self.size, self.block_bytes, len(name)) + name
        return packed + _CRC.pack(zlib.crc32(packed))


class Chunk(NamedTuple):
    """The code of one block.

    Args:
        number: of the block, from 0.
        offset: of the chunk in the compressed file, in bytes.
        size: bytes of the block.
        previous_crc: CRC from which the block's goes on.
        crc: CRC of the block.
        code: output of the arithmetic coder.
    """

    number: int
    offset: int
    size: int
    previous_crc: int
    crc: int
    code: bytes

    def check(self, block: bytes) -> None:
        """Raises CompressedError unless the restored block has this chunk's CRC."""
        crc = zlib.crc32(block, self.previous_crc)
        if crc != self.crc:
            raise CompressedError(
                f"chunk {self.number} at byte {self.offset} of the compressed file: expected {self.size} bytes of CRC "
                f"{self.crc:08x}, got {crc:08x}; the file is damaged there, so fetch it again"
            )


def pack(header: Header, blocks: list[bytes], codes: list[bytes]) -> bytes:
    """The compressed file of these blocks and their codes."""
    parts = [header.pack()]
    (crc,) = _CRC.unpack(parts[0][-_CRC.size :])
    for block, code in zip(blocks, codes, strict=True):
        crc = zlib.crc32(block, crc)
        parts.append(_CHUNK.pack(len(code), crc) + code)
    return b"".join(parts)


def unpack(data: bytes) -> tuple[Header, list[Chunk]]:
    """The header and chunks of a compressed file; raises CompressedError if it is damaged or of another version."""
    if data[: len(_NAME)] != _NAME:
        raise CompressedError(f"expected a file of compress.py, got one that begins with {data[:8]!r}")
    version = data[len(_NAME) : len(_NAME) + 1]
    if version != _VERSION:
        raise CompressedError(
            f"expected a file of version {_VERSION.decode()}, got version {version.decode('ascii', 'replace')!r}; "
            "restore it with the release of bgpt_fast that compressed it"
        )
    at = _HEADER.size
    try:
        _, digest, size, block_bytes, length = _HEADER.unpack_from(data)
        name = data[at : at + length]
        at += length
        (crc,) = _CRC.unpack_from(data, at)
        if zlib.crc32(data[:at]) != crc or block_bytes < 1:
            raise CompressedError(
                f"header: expected a CRC of {crc:08x}, got {zlib.crc32(data[:at]):08x}; the file is damaged in its "
                f"first {at + _CRC.size} bytes, so fetch it again"
            )
        at += _CRC.size
        chunks: list[Chunk] = []
        for start in range(0, size, block_bytes):
            length, block_crc = _CHUNK.unpack_from(data, at)
            code = data[at + _CHUNK.size : at + _CHUNK.size + length]
            chunks.append(Chunk(len(chunks), at, min(block_bytes, size - start), crc, block_crc, code))
            crc = block_crc
            if len(code) < length:
                raise CompressedError(
                    f"chunk {chunks[-1].number} at byte {at}: expected {length} bytes of code, got {len(code)}; "
                    "the file is cut short, or damaged there or before"
                )
            at += _CHUNK.size + length
    except struct.error:
        raise CompressedError(
            f"expected more than {len(data)} bytes from byte {at} on; the file is cut short"
        ) from None
    if at != len(data):
        raise CompressedError(f"expected {at} bytes, got {len(data)}; the file is damaged")
    return Header(digest, size, block_bytes, name.decode("utf-8", "surrogateescape")), chunks


def model_digest(model: BGPT) -> bytes:
    """Eight bytes that identify what a model computes: its weights, in float32, and numbers of heads."""
    digest = hashlib.sha256(f"{model.config.patch_heads} {model.config.byte_heads}".encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {list(tensor.shape)}".encode())
        digest.update(tensor.float().cpu().contiguous().numpy().astype("<f4", copy=False).tobytes())
    return digest.digest()[:8]
