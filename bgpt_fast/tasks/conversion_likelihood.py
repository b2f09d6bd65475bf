"""How likely a model takes the true conversions to be: bits per byte of the target part of pairs.

Shape letter: S bytes a patch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from bgpt_fast.config import BGPTConfig
from bgpt_fast.documents import PathLike, extension_of
from bgpt_fast.model import BGPT, evaluation_mode
from bgpt_fast.patches import PackedPatches


@dataclass(frozen=True)
class TargetLikelihood:
    """The bits that a model needs for the target files of pairs, having read their sources.

    Args:
        pairs: pairs scored.
        overlong: pairs over the context, which are left out.
        num_bytes: bytes of the target files.
        positions: byte positions that were scored: those of the targets' data and end-of-file patches, padding
            included.
        nats: minus the log-likelihood of all positions.
    """

    pairs: int
    overlong: int
    num_bytes: int
    positions: int
    nats: float

    @property
    def bits_per_byte(self) -> float | None:
        """All bits, padding's and the end of file's too, over the real bytes; None without any."""
        return self.nats / math.log(2) / self.num_bytes if self.num_bytes else None

    @property
    def bits_per_position(self) -> float | None:
        """All bits over all positions, as the released loss counts, which is what published figures seem to be."""
        return self.nats / math.log(2) / self.positions if self.positions else None

    def to_dict(self) -> dict[str, Any]:
        """All figures, JSON-ready."""
        return {**asdict(self), "bits_per_byte": self.bits_per_byte, "bits_per_position": self.bits_per_position}


def target_likelihood(
    model: BGPT, pairs: Iterable[tuple[PathLike, PathLike]], *, patches_per_batch: int = 2048
) -> TargetLikelihood:
    """Scores the target part of pairs, each byte given the source and the true bytes before it.

    Args:
        model: on any device; it runs as in evaluation.
        pairs: paths of (source, target), such as `PairSource(...).paths`.
        patches_per_batch: most patches of a batch; a pair that has more is a batch of its own.

    Raises:
        OSError: a file cannot be read.
        ValueError: fewer patches a batch than 1.
    """
    if patches_per_batch < 1:
        raise ValueError(f"target_likelihood: patches_per_batch: expected at least 1, got {patches_per_batch}")
    device = next(model.parameters()).device
    documents: list[PackedPatches] = []
    scored = overlong = num_bytes = positions = 0
    nats = 0.0

    def score() -> None:
        nonlocal nats, positions
        with torch.no_grad(), evaluation_mode(model):
            found = model(PackedPatches.concatenate(documents).to(device)).nats
        nats += float(found.double().sum())
        positions += found.numel()
        documents.clear()

    for source, target in pairs:
        content = _read(target)
        document = _pair(_read(source), content, model.config)
        if document is None:
            overlong += 1
            continue
        if documents and sum(one.num_patches for one in documents) + document.num_patches > patches_per_batch:
            score()
        documents.append(document)
        scored += 1
        num_bytes += len(content[1])
    if documents:
        score()
    return TargetLikelihood(scored, overlong, num_bytes, positions, nats)


def _pair(source: tuple[str, bytes], target: tuple[str, bytes], config: BGPTConfig) -> PackedPatches | None:
    """The pair as it is trained on, to be scored behind the target's extension; None if it is too long."""
    S = config.patch_size
    if 3 - -len(source[1]) // S - -len(target[1]) // S > config.patch_length:
        return None
    first = PackedPatches.from_bytes([source], config, overlong="error", end_of_file=False)
    second = PackedPatches.from_bytes([target], config, overlong="error")
    patches = torch.cat([first.patches, second.patches])
    scored = torch.arange(len(patches)) > first.num_patches
    return PackedPatches(patches, torch.tensor([0, len(patches)], dtype=torch.int32), targets=scored)


def _read(path: PathLike) -> tuple[str, bytes]:
    with open(path, "rb") as file:
        return extension_of(path), file.read()
