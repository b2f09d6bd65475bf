"""Evaluation on conversion pairs: bits per byte and accuracy of the target files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Unpack

from bgpt_fast.config import BGPTConfig
from bgpt_fast.data import PairSource
from bgpt_fast.data.file_index import Paths, SkipReport, as_roots
from bgpt_fast.data.pairs import parse_conversion
from bgpt_fast.data.source import DataError
from bgpt_fast.documents import PatchError, Truncation, count_patches, extension_of, read_part
from bgpt_fast.model import BGPT
from bgpt_fast.patches import PackedPatches
from bgpt_fast.tasks.evaluation import Document, EvaluationOptions, FileReport, check_arguments, evaluate_documents


def evaluate_pairs(
    model: BGPT, paths: Paths, conversion: str, **options: Unpack[EvaluationOptions]
) -> dict[str, FileReport]:
    """Scores the target files of pairs, teacher-forced after their source files.

    The figures are those of `evaluate_files`, for the target files only: the bits of sources and of the targets'
    extensions do not count. A pair longer than the context is skipped, counted and reported.

    Args:
        model: on any device, trained on such pairs.
        paths: files and folders, as `PairSource`; all pairs in them are scored.
        conversion: "abc->mid", or "abc&mid" for both directions.
        options: see `EvaluationOptions`; the batch size includes sources, and progress restarts for each direction.

    Returns:
        The report of each direction by its name, such as "abc->mid"; its files are the targets.

    Raises:
        DataError: no such path, or no pair that can be scored.
        TypeError, ValueError: a wrong argument.
    """
    check_arguments("evaluate_pairs", model, options)
    config = model.config
    directions = parse_conversion(conversion)
    try:
        # An evaluation split may be smaller than a batch.
        source = PairSource(paths, conversion, config, config.patch_length, split="eval", eval_share=1.0)
    except DataError as error:
        raise DataError(
            f"{as_roots(paths)}: expected pairs of {' and '.join(directions[0])} files within the context of "
            f"{config.patch_length} patches: {error}"
        ) from error
    reports = {}
    for direction in directions:
        skips = SkipReport()
        for name, reason in source.skipped.items():
            skips.add(name, reason)
        pairs = [pair for pair in source.paths if extension_of(pair[0]) == direction[0]]
        report = evaluate_documents(model, _documents(pairs, config, skips), len(pairs), skips, **options)
        if report is None:
            raise DataError(
                f"evaluate_pairs: expected at least one pair that can be read, got none; skipped: {skips.by_reason}"
            )
        reports["->".join(direction)] = report
    return reports


def _documents(pairs: list[tuple[str, str]], config: BGPTConfig, skips: SkipReport) -> Iterator[Document | None]:
    """Packs pairs as in training; the patches after the target's extension are scored."""
    for source, target in pairs:
        try:
            parts = (
                read_part(source, Truncation(config, "error", end_of_file=False)),
                read_part(target, Truncation(config, "error")),
            )
        except (OSError, PatchError):
            skips.add(f"{source}, {target}", "unreadable, or changed since it was listed")
            yield None
            continue
        source_patches = count_patches(len(parts[0].content), config.patch_size, False)
        packed = PackedPatches.from_parts([parts], config.patch_size, first_target=source_patches + 1)
        yield Document(target, packed, source_patches)
