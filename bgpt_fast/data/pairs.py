"""Pairs of files for conversion: source and target as one document."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal, NamedTuple, Unpack

from bgpt_fast.checkpoint.task import ModelTask
from bgpt_fast.config import BGPTConfig
from bgpt_fast.data.epochs import EpochSource
from bgpt_fast.data.file_index import FileEntry, Paths, is_in_split, read_entry
from bgpt_fast.data.packing import SourceOptions
from bgpt_fast.data.source import DataError
from bgpt_fast.deprecation import renamed_arguments
from bgpt_fast.documents import Part, Truncation, count_patches, extension_of
from bgpt_fast.patches import PackedPatches


class _Pair(NamedTuple):
    source: FileEntry
    target: FileEntry


class PairSource(EpochSource[PackedPatches]):
    """Pairs of files whose paths differ only in the extension, packed for conversion.

    A pair is one document: `[source ext][source data][target ext][target data][end of file]`. The target's extension
    patch separates the two; like all but the first patch it is in the loss. A pair over the context is never cut: it is
    skipped, counted and named in `describe()`, or an error. Files without a partner are counted. Both directions of a
    pair are in the same split, determined by a hash of the pair's relative path.

    Args:
        paths: as `PackedSource`. Partners have the same path except for the extension.
        conversion: "abc->mid" for one direction; "abc&mid" for both, as two documents of each epoch.
        config, patches_per_batch, options: as `PackedSource`.
        truncation: whether a pair over the context is left out ("skip") or raises ("error").

    Raises:
        DataError: a path does not exist, no pair in the split, or an over-long pair with truncation="error".
        TypeError, ValueError: an invalid argument.

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
        truncation: Literal["skip", "error"] = "skip",
        **options: Unpack[SourceOptions],
    ) -> None:
        if truncation not in ("skip", "error"):
            raise ValueError(f'{type(self).__name__}: truncation: expected "skip" or "error", got {truncation!r}')
        self.directions = parse_conversion(conversion)
        self.conversion = conversion
        self._truncation = truncation
        super().__init__(paths, config, patches_per_batch, **options)
        if len(self.directions) == 2:
            # The files are the same as for one direction, so the digest must tell the two apart.
            self._digest += " both ways"

    @property
    def paths(self) -> list[tuple[str, str]]:
        """(source, target) of the split's documents, sorted by relative path."""
        return [(pair.source.path, pair.target.path) for pair in self._pairs]

    @property
    def skipped(self) -> dict[str, str]:
        """The reason for each file or pair skipped so far."""
        return self._skipped.reasons

    @property
    def task(self) -> ModelTask:
        """What a model learns from the pairs, stored with its weights."""
        directions = ["->".join(direction) for direction in self.directions]
        return ModelTask.of("conversion", extensions=self.directions[0], conversions=directions)

    def _choose(self, entries: list[FileEntry]) -> list[int]:
        extensions = self.directions[0]
        # Keyed by the full path, as two roots may have files of the same name.
        partners: dict[str, dict[str, FileEntry]] = {}
        for entry in entries:
            if (extension := extension_of(entry.path)) in extensions:
                partners.setdefault(os.path.splitext(entry.path)[0], {})[extension] = entry
            else:
                self._skipped.add(entry.path, "extension of no pair")
        self._pairs: list[_Pair] = []
        self._over: list[int] = []
        self._has_pairs = False
        for files in partners.values():
            one = next(iter(files.values()))
            if len(files) == 1:
                self._skipped.add(one.path, "no partner")
                continue
            self._has_pairs = True
            if is_in_split(os.path.splitext(one.relative)[0], self.split, self.eval_share):
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
                f"{self.config.patch_length} patches, got {length}; use a longer context, remove the pair, or "
                'give truncation="skip"'
            )
        self._skipped.add(f"{pair.source.path}, {pair.target.path}", "pair over the context")
        self._over.append(length)
        return False

    def _length(self, pair: _Pair) -> int:
        S = self.config.patch_size
        return count_patches(pair.source.size, S, False) + count_patches(pair.target.size, S)

    def _nothing_chosen(self, files: int) -> DataError:
        source, target = self.directions[0]
        if not self._has_pairs:
            return DataError(
                f"{self.roots}: expected pairs of files NAME.{source} and NAME.{target} in one folder, got none among "
                f"{files} files (skipped: {self._skipped.by_reason}); --conversion names the two extensions"
            )
        if self._over and self.split != "eval":
            return DataError(
                f"{self.roots}: all {len(self._over)} pairs are over the context, {self.config.patch_length} patches: "
                f"the shortest has {min(self._over)}, the longest {max(self._over)}; use a longer context "
                "(--model.patch-length)"
            )
        return super()._nothing_chosen(files)

    def _longest(self) -> tuple[int, int]:
        return max([*self._over, *self._lengths.tolist()]), len(self._over)

    def _entries(self) -> list[FileEntry]:
        # With both directions, each file of a pair is the source of one direction.
        return [file for pair in self._pairs for file in (pair if len(self.directions) == 1 else pair[:1])]

    def _window_key(self, item: int) -> list[int]:
        return []  # no pair is over the context

    def _read(self, item: int, truncation: Truncation) -> Sequence[Part] | None:
        files = (
            read_entry(self._pairs[item].source, Truncation(self.config, "error", end_of_file=False), self._skipped),
            read_entry(self._pairs[item].target, Truncation(self.config, "error"), self._skipped),
        )
        return None if None in files else files  # type: ignore[return-value]


def parse_conversion(conversion: str) -> list[tuple[str, str]]:
    """Parses a conversion: "abc->mid" gives [("abc", "mid")]; "abc&mid" also gives ("mid", "abc").

    Raises:
        TypeError, ValueError: not of one of these two forms, or the two extensions are equal.
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
