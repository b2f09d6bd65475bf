"""Converts files and bytes to and from PackedPatches: concatenated int16 patches (arXiv 2402.19155, section 3.1).

`bgpt_fast.documents` defines the layout of a document. Shape letters: B documents, P patches, S bytes per patch,
T target patches.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bgpt_fast import _C
from bgpt_fast.checks import check_int
from bgpt_fast.config import EOP, BGPTConfig
from bgpt_fast.deprecation import renamed_arguments
from bgpt_fast.documents import (
    Part,
    PatchError,
    PathLike,
    TruncationMode,
    check_patch_count,
    check_truncation,
    document_layout,
    read_part,
)


@dataclass(frozen=True, eq=False, repr=False)
class PackedPatches:
    """A batch of documents as concatenated patches, without padding between documents.

    Args:
        patches: int16 [P, S], tokens 0…255 for bytes and 256 (`EOP`) as padding within a patch.
        cu_seqlens: int32 [B + 1], same device as `patches`; document b is `patches[cu_seqlens[b] : cu_seqlens[b + 1]]`.
        max_seqlen: at least the number of patches of the longest document; None computes it.
        targets: bool [P], on the device of `patches`: the patches that count in the loss, never a document's first
            one. None means all but each document's first (extension) patch.
        truncated: number of documents that were cut to fit the context.
        truncated_bytes: number of content bytes that were cut off.

    Attributes:
        host_offsets: on a batch that was moved from the CPU to a GPU, `cu_seqlens` on the CPU; else None. By it the
            host knows the documents' lengths without waiting for the GPU.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: wrong rank, size or device, a token outside 0…256, or offsets that do not increase from 0 to P with
            at least one patch per document. Reads the values, so it synchronises with a GPU.
    """

    patches: Tensor
    cu_seqlens: Tensor
    max_seqlen: int = None  # type: ignore[assignment]  # an int after __post_init__
    targets: Tensor | None = None
    truncated: int = 0
    truncated_bytes: int = 0
    host_offsets: Tensor | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        patches, cu_seqlens, targets = self.patches, self.cu_seqlens, self.targets
        _check_tensor("patches", patches, torch.int16, 2)
        _check_tensor("cu_seqlens", cu_seqlens, torch.int32, 1, patches.device)
        if patches.shape[1] < 1:
            raise ValueError(f"PackedPatches: patches: expected [P, S] with S ≥ 1, got {list(patches.shape)}")
        if patches.numel() and not 0 <= int(patches.min()) <= int(patches.max()) <= EOP:
            raise ValueError(
                f"PackedPatches: patches: expected tokens 0…{EOP}, got {int(patches.min())}…{int(patches.max())}"
            )
        longest = _longest(cu_seqlens, len(patches))
        max_seqlen = longest if self.max_seqlen is None else self.max_seqlen
        check_int("PackedPatches: max_seqlen", max_seqlen, longest)
        if targets is not None:
            _check_tensor("targets", targets, torch.bool, 1, patches.device)
            if len(targets) != len(patches):
                raise ValueError(
                    f"PackedPatches: targets: expected [{len(patches)}], one a patch, got [{len(targets)}]"
                )
            if bool(targets[cu_seqlens[:-1].long()].any()):
                raise ValueError("PackedPatches: targets: expected False at each document's first patch, got True")
        check_int("PackedPatches: truncated", self.truncated, 0)
        check_int("PackedPatches: truncated_bytes", self.truncated_bytes, 0)
        self.__dict__.update(patches=patches.contiguous(), cu_seqlens=cu_seqlens.contiguous(), max_seqlen=max_seqlen)

    def _with(self, **fields: Any) -> PackedPatches:
        """A copy with some fields replaced, without checks: valid by construction; avoids GPU synchronisation."""
        packed = PackedPatches.__new__(PackedPatches)
        packed.__dict__.update({**self.__dict__, **fields})
        return packed

    @classmethod
    def unchecked(
        cls,
        patches: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        targets: Tensor | None = None,
        truncated: int = 0,
        truncated_bytes: int = 0,
    ) -> PackedPatches:
        """A batch of tensors known to be valid, such as a CUDA graph's; allows empty documents. Reads no values."""
        packed = cls.__new__(cls)
        packed.__dict__.update(
            patches=patches,
            cu_seqlens=cu_seqlens,
            max_seqlen=max_seqlen,
            targets=targets,
            truncated=truncated,
            truncated_bytes=truncated_bytes,
            host_offsets=None,
        )
        return packed

    @classmethod
    def from_parts(
        cls, documents: Sequence[Sequence[Part]], patch_size: int, first_target: int | Tensor = 1
    ) -> PackedPatches:
        """Packs files that are in memory with one call of the C++ packer, on `torch.get_num_threads()` threads.

        Args:
            documents: the files of each document, the same number for each.
            patch_size: S.
            first_target: as in `document_layout`.

        Returns:
            PackedPatches on the CPU; empty if there are no documents.

        Raises:
            ValueError: documents of different numbers of files, or more than 2³¹ − 1 patches.
        """
        parts = list(itertools.chain.from_iterable(documents))
        ends = [part.has_end for part in parts]
        shape = (len(documents), len(documents[0]) if documents else 1)
        sizes = torch.tensor([len(part.content) for part in parts], dtype=torch.int64, device="cpu")
        layout = document_layout(
            sizes.view(shape),
            patch_size,
            end_of_file=torch.tensor(ends, dtype=torch.bool, device="cpu").view(shape),
            first_target=first_target,
        )
        P = layout.num_patches
        patches = torch.empty(P, patch_size, dtype=torch.int16, device="cpu")
        part_offsets = torch.empty(len(parts) + 1, dtype=torch.int32, device="cpu")  # filled by the packer
        _C.pack_patches(
            [part.extension for part in parts],
            [part.content for part in parts],
            ends,
            patch_size,
            patches.data_ptr(),
            P,
            part_offsets.data_ptr(),
            torch.get_num_threads(),
        )
        truncated = sum(part.is_cut for part in parts)
        return cls.unchecked(patches, *layout, truncated, sum(part.cut_bytes for part in parts))

    @classmethod
    @renamed_arguments(overlong="truncation")
    def from_bytes(
        cls,
        documents: Sequence[tuple[str, bytes | bytearray | memoryview]],
        config: BGPTConfig,
        *,
        truncation: TruncationMode = "head",
        seed: int = 0,
        end_of_file: bool = True,
    ) -> PackedPatches:
        """Packs documents with `torch.get_num_threads()` C++ threads.

        Args:
            documents: pairs (extension without its dot, content). The extension is stored in UTF-8, undecodable bytes
                of file names (surrogate escapes) unchanged, and cut after `config.patch_size` bytes, as in the
                released code, even within a character. The content is any bytes.
            config: determines the patch size and the context length, `config.patch_length` patches.
            truncation: how a document longer than the context is cut. "head" keeps its first patches; "window" (for
                training) keeps the extension patch and, with probability 1/3 each, the head, the tail or a section
                in between, drawn from (seed, position in `documents`); "error" raises. `truncated` and
                `truncated_bytes` count what was cut.
            seed: seed of the windows.
            end_of_file: whether documents end with the end-of-file patch. A document whose end was cut never does.

        Returns:
            PackedPatches on the CPU; empty if there are no documents.

        Raises:
            TypeError, ValueError: an invalid argument, or more than 2³¹ − 1 patches.
            PatchError: an over-long document with `truncation="error"`.
        """
        rule = check_truncation("from_bytes: documents", documents, config, truncation, seed, end_of_file)
        files = []
        for index, document in enumerate(documents):
            name = f"from_bytes: documents[{index}]"
            if not isinstance(document, tuple | list) or len(document) != 2:
                raise TypeError(f"{name}: expected a pair (extension, bytes), got {document!r:.80}")
            files.append((rule.part(name, *document, index),))
        return cls.from_parts(files, config.patch_size)

    @classmethod
    @renamed_arguments(overlong="truncation")
    def from_files(
        cls,
        paths: Sequence[PathLike],
        config: BGPTConfig,
        *,
        truncation: TruncationMode = "head",
        seed: int = 0,
        end_of_file: bool = True,
    ) -> PackedPatches:
        """Reads and packs files; of a file longer than the context, only the bytes that truncation keeps are read.

        A file that grows meanwhile is read up to its size when it was opened. Arguments not listed here are as in
        `from_bytes`.

        Args:
            paths: regular files or links to them. The extension is `extension_of(path)`.

        Raises:
            OSError: a file is missing or cannot be read; the error names the path.
            PatchError: a path is a folder, FIFO, socket or device (these are not opened), a file shrank while it was
                read, or one is over-long with `truncation="error"`.
            TypeError, ValueError: an invalid argument, or more than 2³¹ − 1 patches.
        """
        rule = check_truncation("from_files: paths", paths, config, truncation, seed, end_of_file)
        files = []
        for index, path in enumerate(paths):
            try:
                files.append((read_part(path, rule, index),))
            except OSError as error:
                advice = "give paths of files that exist and that this user may read"
                raise OSError(error.errno, f"{error.strerror}; {advice}", os.fsdecode(path)) from error
        return cls.from_parts(files, config.patch_size)

    @staticmethod
    def concatenate(batches: Sequence[PackedPatches]) -> PackedPatches:
        """One batch with all documents of `batches`, in order; the `truncated` counts are summed.

        Raises:
            ValueError: no batches, different patch sizes or devices, or more than 2³¹ − 1 patches.
        """
        if not batches:
            raise ValueError("concatenate: expected at least one PackedPatches, got none")
        first = batches[0]
        for batch in batches:
            if not isinstance(batch, PackedPatches):
                raise TypeError(f"concatenate: expected PackedPatches, got {type(batch).__name__}")
            if batch.patches.shape[1] != first.patches.shape[1] or batch.patches.device != first.patches.device:
                raise ValueError(
                    f"concatenate: expected patches of {first.patches.shape[1]} bytes on {first.patches.device} like "
                    f"the first batch, got {batch.patches.shape[1]} bytes on {batch.patches.device}"
                )
        check_patch_count(sum(batch.num_patches for batch in batches))
        offsets = [first.cu_seqlens[:1]]
        before = 0
        for batch in batches:
            offsets.append(batch.cu_seqlens[1:] + before)
            before += batch.num_patches
        masks = None
        if any(batch.targets is not None for batch in batches):
            masks = torch.cat([batch._target_mask() for batch in batches])
        return first._with(
            patches=torch.cat([batch.patches for batch in batches]),
            cu_seqlens=torch.cat(offsets),
            max_seqlen=max(batch.max_seqlen for batch in batches),
            targets=masks,
            truncated=sum(batch.truncated for batch in batches),
            truncated_bytes=sum(batch.truncated_bytes for batch in batches),
            host_offsets=None,
        )

    @property
    def num_documents(self) -> int:
        """B."""
        return self.cu_seqlens.shape[0] - 1

    @property
    def num_patches(self) -> int:
        """P."""
        return self.patches.shape[0]

    @property
    def padding_share(self) -> float:
        """Share of `<eop>` among the tokens of the data patches: 0 when every file is a multiple of S bytes long."""
        data = torch.ones(self.num_patches, dtype=torch.bool, device=self.patches.device)
        data[self.cu_seqlens[:-1].long()] = False
        is_eop = self.patches == EOP
        tokens = is_eop[data & ~is_eop.all(dim=1)]
        return int(tokens.sum()) / max(tokens.numel(), 1)

    def target_indices(self) -> Tensor:
        """Indices into `patches` of the patches that count in the loss: int64 [T], ascending, on the same device."""
        if self.targets is not None:
            return self.targets.nonzero().flatten()
        return self.all_target_indices()

    def all_target_indices(self) -> Tensor:
        """As `target_indices`, of all patches but each document's first, whatever `targets` is."""
        # Target t of the batch, in document b, has index t + b + 1. Nothing here synchronises with a GPU, and no size
        # is B, which torch.compile would make another graph for where it is 1.
        offsets, T = self.cu_seqlens, self.num_patches - self.num_documents
        targets_before = offsets - torch.arange(offsets.shape[0], dtype=offsets.dtype, device=offsets.device)
        targets = torch.arange(T, dtype=offsets.dtype, device=offsets.device)
        return targets + torch.searchsorted(targets_before, targets, right=True)

    def _target_mask(self) -> Tensor:
        if self.targets is not None:
            return self.targets
        mask = torch.ones(self.num_patches, dtype=torch.bool, device=self.patches.device)
        mask[self.cu_seqlens[:-1].long()] = False
        return mask

    def to(self, device: torch.device | str | int, *, non_blocking: bool = False) -> PackedPatches:
        """The same batch on `device`; with `non_blocking`, pinned tensors are copied asynchronously."""
        targets = None if self.targets is None else self.targets.to(device, non_blocking=non_blocking)
        cu_seqlens = self.cu_seqlens.to(device, non_blocking=non_blocking)
        host_offsets = self.cu_seqlens if self.cu_seqlens.device.type == "cpu" else self.host_offsets
        return self._with(
            patches=self.patches.to(device, non_blocking=non_blocking),
            cu_seqlens=cu_seqlens,
            targets=targets,
            host_offsets=None if cu_seqlens.device.type == "cpu" else host_offsets,
        )

    def pin_memory(self) -> PackedPatches:
        """The same batch in page-locked memory, from which copies to a GPU can be asynchronous (needs CUDA); a batch on
        a GPU is returned as it is."""
        if self.patches.device.type != "cpu":
            return self
        targets = None if self.targets is None else self.targets.pin_memory()
        return self._with(patches=self.patches.pin_memory(), cu_seqlens=self.cu_seqlens.pin_memory(), targets=targets)

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """As `Tensor.record_stream`: keeps a GPU's memory of the batch until that stream's work so far is done."""
        for tensor in (self.patches, self.cu_seqlens, self.targets):
            if tensor is not None:
                tensor.record_stream(stream)

    def to_bytes(self) -> list[tuple[str, bytes]]:
        """Pairs (extension, content) of all documents, exactly as packed; for a cut document, the part that was kept.

        Extensions are cut to S bytes; their bytes that are not valid UTF-8 are returned as surrogate escapes.

        Raises:
            PatchError: a byte follows an `<eop>`, so a document is not a single file (a conversion pair is two).
        """
        patches = self.patches.cpu().numpy()
        offsets = self.cu_seqlens.tolist()
        return [_restore(b, patches[offsets[b] : offsets[b + 1]]) for b in range(self.num_documents)]

    def __repr__(self) -> str:
        cut = f", {self.truncated} cut by {self.truncated_bytes} bytes in all" if self.truncated else ""
        return (
            f"PackedPatches({self.num_documents} documents, {self.num_patches} patches of {self.patches.shape[1]} bytes"
            f", max_seqlen {self.max_seqlen}, {self.patches.device}{cut})"
        )


def _restore(index: int, document: np.ndarray) -> tuple[str, bytes]:
    is_eop = document == EOP
    S = document.shape[1]
    data_patches = len(document) - 1
    if data_patches and is_eop[-1].all():
        data_patches -= 1
    extension_size = S - int(is_eop[0].sum())
    padding = int(is_eop[data_patches][::-1].argmin()) if data_patches else 0
    content_size = data_patches * S - padding
    if is_eop[0, :extension_size].any() or is_eop[1:].reshape(-1)[:content_size].any():
        raise PatchError(
            f"to_bytes: document {index}: expected bytes, then <eop> as padding of the extension patch and of the last "
            "data patch alone; got an <eop> before a byte"
        )
    content = document.astype("u1").tobytes()
    return content[:extension_size].decode("utf-8", "surrogateescape"), content[S : S + content_size]


def _check_tensor(name: str, value: object, dtype: torch.dtype, rank: int, device: torch.device | None = None) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"PackedPatches: {name}: expected a torch.Tensor, got {type(value).__name__}")
    if value.dtype != dtype:
        raise TypeError(f"PackedPatches: {name}: expected dtype {dtype}, got {value.dtype}")
    if value.dim() != rank:
        raise ValueError(f"PackedPatches: {name}: expected {rank} dimensions, got shape {list(value.shape)}")
    if device is not None and value.device != device:
        raise ValueError(f"PackedPatches: {name}: expected device {device} like patches, got {value.device}")


def _longest(cu_seqlens: Tensor, P: int) -> int:
    offsets = cu_seqlens.tolist()
    if not offsets or offsets[0] != 0 or offsets[-1] != P:
        ends = f"{offsets[0]} … {offsets[-1]}" if offsets else "an empty tensor"
        raise ValueError(f"PackedPatches: cu_seqlens: expected offsets from 0 to P = {P}, got {ends}")
    longest = 0
    for b, (start, stop) in enumerate(itertools.pairwise(offsets)):
        if stop <= start:
            raise ValueError(
                f"PackedPatches: cu_seqlens: expected a patch or more a document, got {start} → {stop} of document {b}"
            )
        longest = max(longest, stop - start)
    return longest
