"""Pairs of files for conversion: two documents, source and target, as one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch

from bgpt_fast.config import BGPTConfig
from bgpt_fast.data.epochs import EpochSource
from bgpt_fast.data.file_index import FileEntry, Paths, Split, belongs, read_file
from bgpt_fast.data.source import DataError
from bgpt_fast.deprecation import renamed_arguments
from bgpt_fast.documents import extension_of
from bgpt_fast.patches import PackedPatches


class _Pair(NamedTuple):
    source: FileEntry
    target: FileEntry


class PairSource(EpochSource[PackedPatches]):
    """Files that differ in nothing but their extension, packed as conversion pairs.

    A pair is one document: `[source ext][source data][target ext][target data][end of file]`. The target's extension
    patch separates the two; like all but the first patch it is in the loss. A pair over the context is never cut: it is
    skipped, counted and named in `describe()`, or an error. A file without a partner is counted. Both directions of a
    pair are on the same side of the split, which goes by a hash of the pair's relative path.

    Args:
        paths: files and folders; folders are walked, links to folders inside them are not followed. Partners have the
            same path below the folder that was given, but for the extension.
        conversion: "abc->mid" for one direction; "abc&mid" for both, as two documents of each epoch.
        config: patch size and context.
        patches_per_batch: most patches of a batch; at least the context.
        seed: of the order.
        split: "train", "eval", or "all" for both together.
        eval_share: share of the pairs that is held out.
        truncation: whether a pair over the context is left out ("skip") or raises ("error").
        rank, world_size: which of how many processes this is; see `PackedSource`.
        look_ahead: documents among which the best fit for a batch's last room is looked for.

    Raises:
        DataError: no such path, no pair in the split, an over-long pair with truncation="error", or (but for "eval")
            fewer patches than one batch.
        TypeError, ValueError: a wrong argument.

    Source: arXiv 2402.19155, section 3.2, and the released code, whose "a&b" gives (a, b) twice and never (b, a).
    """

    kind = "pairs"

    @renamed_arguments(overlong="truncation")
    def __init__(
        self,
        paths: Paths,
        conversion: str,
        config: BGPTConfig,
        patches_per_batch: int,
        *,
        seed: int = 0,
        split: Split = "train",
        eval_share: float = 0.02,
        truncation: Literal["skip", "error"] = "skip",
        rank: int = 0,
        world_size: int = 1,
        look_ahead: int = 64,
    ) -> None:
        if truncation not in ("skip", "error"):
            raise ValueError(f'{type(self).__name__}: truncation: expected "skip" or "error", got {truncation!r}')
        self.directions = parse_conversion(conversion)
        self.conversion = conversion
        self._truncation = truncation
        super().__init__(
            paths,
            config,
            patches_per_batch,
            seed=seed,
            split=split,
            eval_share=eval_share,
            rank=rank,
            world_size=world_size,
            look_ahead=look_ahead,
        )

    @property
    def paths(self) -> list[tuple[str, str]]:
        """(source, target) of the split's documents, sorted by relative path."""
        return [(pair.source.path, pair.target.path) for pair in self._pairs]

    @property
    def skipped(self) -> dict[str, str]:
        """What was left out so far: the reason of each file or pair."""
        return self._skips.noted

    def _choose(self, found: list[FileEntry]) -> list[int]:
        extensions = self.directions[0]
        # By their whole path: folders given side by side may hold the same names.
        partners: dict[str, dict[str, FileEntry]] = {}
        for file in found:
            if (extension := extension_of(file.path)) in extensions:
                partners.setdefault(os.path.splitext(file.path)[0], {})[extension] = file
            else:
                self._skips.note(file.path, "extension of no pair")
        self._pairs: list[_Pair] = []
        for files in partners.values():
            one = next(iter(files.values()))
            if len(files) == 1:
                self._skips.note(one.path, "no partner")
            elif belongs(os.path.splitext(one.relative)[0], self.split, self.eval_share):
                pairs = [_Pair(files[source], files[target]) for source, target in self.directions]
                if self._fits(pairs[0]):
                    self._pairs += pairs
        return [self._length(pair) for pair in self._pairs]

    def _fits(self, pair: _Pair) -> bool:
        length = self._length(pair)
        if length <= self.config.patch_length:
            return True
        if self._truncation == "error":
            raise DataError(
                f"{pair.source.path!r} and {pair.target.path!r}: expected a pair of at most "
                f"{self.config.patch_length} patches, got {length}; use a longer context, take the pair away, or "
                'give truncation="skip"'
            )
        self._skips.note(f"{pair.source.path}, {pair.target.path}", "pair over the context")
        return False

    def _length(self, pair: _Pair) -> int:
        S = self.config.patch_size
        return 1 - -pair.source.size // S + 2 - -pair.target.size // S

    def _used(self) -> list[FileEntry]:
        # Where both directions are learned, each file of a pair is the source of one.
        return [file for pair in self._pairs for file in (pair if len(self.directions) == 1 else pair[:1])]

    def _fingerprint(self) -> str:
        # The files of one direction are those of both.
        return self._digest if len(self.directions) == 1 else f"{self._digest} both ways"

    def _read(self, epoch: int, item: int, truncation: Literal["head", "window"]) -> PackedPatches | None:
        pair = self._pairs[item]
        source = read_file(pair.source, self.config, self._skips, truncation="error", end_of_file=False)
        target = read_file(pair.target, self.config, self._skips, truncation="error")
        if source is None or target is None:
            return None
        patches = torch.cat([source.patches, target.patches])
        return PackedPatches(patches, torch.tensor([0, len(patches)], dtype=torch.int32))

    def _assemble(self, documents: Sequence[tuple[int, PackedPatches]]) -> PackedPatches:
        return PackedPatches.concatenate([document for _, document in documents])


def parse_conversion(conversion: str) -> list[tuple[str, str]]:
    """Directions of a conversion: "abc->mid" is [("abc", "mid")], "abc&mid" is that and ("mid", "abc").

    Raises:
        TypeError, ValueError: it is not of one of these two forms, with two different extensions.
    """
    if not isinstance(conversion, str):
        raise TypeError(f"conversion: expected a str, got {type(conversion).__name__}")
    arrow = "->" if "->" in conversion else "&"
    extensions = [extension.strip().removeprefix(".") for extension in conversion.split(arrow)]
    if len(extensions) != 2 or not all(extensions) or extensions[0] == extensions[1]:
        raise ValueError(
            f'conversion: expected two different extensions, as "abc->mid" or "abc&mid", got {conversion!r}'
        )
    there, back = (extensions[0], extensions[1]), (extensions[1], extensions[0])
    return [there] if arrow == "->" else [there, back]
