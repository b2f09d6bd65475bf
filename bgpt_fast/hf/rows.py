"""Rows of tokens, as transformers passes them, as documents of bytes.

Shape letters: B rows, L columns, P patches, S bytes per patch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bgpt_fast.config import EOP, BGPTConfig
from bgpt_fast.documents import document_layout, encode_extension
from bgpt_fast.patches import PackedPatches


class Rows(NamedTuple):
    """Bytes of a batch of rows.

    Args:
        tokens: int64 [B, L], 0…256.
        is_byte: bool [B, L]: the columns that are bytes of the row's document, without a gap in each row.
        starts: int64 [B], the column of each row's first byte.
        sizes: int64 [B], number of bytes of each row.
    """

    tokens: Tensor
    is_byte: Tensor
    starts: Tensor
    sizes: Tensor

    def documents(self) -> list[bytes]:
        """Each row's bytes; synchronises with a GPU."""
        rows = zip(self.tokens.tolist(), self.starts.tolist(), self.sizes.tolist(), strict=True)
        return [bytes(row[start : start + size]) for row, start, size in rows]


def read_rows(function: str, input_ids: object, attention_mask: Tensor | None) -> Rows:
    """The bytes of rows of tokens; padding and end tokens (256) may stand before and after them.

    Args:
        function: prefix of error messages.
        input_ids: int [B, L], tokens 0…256.
        attention_mask: [B, L], 0 for padding; None means that all bytes count.

    Raises:
        TypeError, ValueError: another dtype, rank or shape, tokens outside 0…256, or bytes with a gap between them.
    """
    if not isinstance(input_ids, Tensor) or input_ids.dtype not in (torch.int64, torch.int32) or input_ids.dim() != 2:
        got = (
            f"{input_ids.dtype} {list(input_ids.shape)}" if isinstance(input_ids, Tensor) else type(input_ids).__name__
        )
        raise TypeError(f"{function}: input_ids: expected an int64 tensor [B, L] of bytes and {EOP}, got {got}")
    tokens = input_ids.long()
    if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) <= EOP:
        raise ValueError(
            f"{function}: input_ids: expected tokens 0…{EOP}, got {int(tokens.min())}…{int(tokens.max())}; use the "
            "model's own tokenizer"
        )
    is_byte = tokens != EOP
    if attention_mask is not None:
        if attention_mask.shape != tokens.shape:
            raise ValueError(
                f"{function}: attention_mask: expected {list(tokens.shape)} as input_ids, got "
                f"{list(attention_mask.shape)}"
            )
        is_byte &= attention_mask.to(tokens.device).bool()
    sizes = is_byte.sum(1)
    columns = torch.arange(tokens.shape[1], device=tokens.device)
    starts = torch.where(is_byte, columns, tokens.shape[1]).amin(1) if tokens.shape[1] else sizes
    starts = torch.where(sizes > 0, starts, 0)
    if bool((is_byte & (columns >= (starts + sizes)[:, None])).any()):
        raise ValueError(
            f"{function}: input_ids: expected each row's bytes side by side, got padding or {EOP} between them; pad on "
            "one side, or pass one document a row"
        )
    return Rows(tokens, is_byte, starts, sizes)


def pack_rows(function: str, rows: Rows, extension: str, config: BGPTConfig) -> PackedPatches:
    """The rows' documents, each with its extension and end-of-file patch, on the rows' device.

    Raises:
        TypeError, ValueError: the extension is no text, or a document with its end-of-file patch is longer than the
            context.
    """
    S, device = config.patch_size, rows.tokens.device
    encoded = encode_extension(function, extension, config)
    layout = document_layout(rows.sizes, S)
    if layout.max_seqlen > config.patch_length:
        raise ValueError(
            f"{function}: input_ids: expected at most {(config.patch_length - 2) * S} bytes a row, got "
            f"{int(rows.sizes.max())}; cut longer ones (the tokenizer's truncation=True), or use a longer context"
        )
    patches = torch.full((layout.num_patches, S), EOP, dtype=torch.int16, device=device)
    firsts = layout.cu_seqlens[:-1].long()
    patches[firsts, : len(encoded)] = torch.tensor(list(encoded), dtype=torch.int16, device=device)
    row, column = rows.is_byte.nonzero(as_tuple=True)
    patches.view(-1)[(firsts[row] + 1) * S + column - rows.starts[row]] = rows.tokens[row, column].short()
    return PackedPatches(patches, layout.cu_seqlens, layout.max_seqlen)


def next_token_logits(rows: Rows, batch: PackedPatches, logits: Tensor) -> Tensor:
    """Logits of the token after each column, float [B, L, V], from those of all positions of the documents.

    A column after a row's bytes has the logits of the next position in its last patches, one before them those of the
    row's second byte; loss functions ignore both.

    Args:
        rows, batch: of `pack_rows`.
        logits: [T, S, V] of all patches but the extension patches.
    """
    S = logits.shape[1]
    counts = (batch.cu_seqlens.diff().long() - 1) * S
    firsts = counts.cumsum(0) - counts
    columns = torch.arange(rows.tokens.shape[1], device=logits.device)
    positions = (columns - rows.starts[:, None] + 1).clamp(min=1)
    return logits.flatten(0, 1)[firsts[:, None] + torch.minimum(positions, counts[:, None] - 1)]
