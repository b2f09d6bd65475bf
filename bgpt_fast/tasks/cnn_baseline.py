"""A small convolutional network as a baseline for classification, on pixels or on bytes.

Shape letters: B documents of a batch, C channels, H × W pixels, L bytes of the longest document, n classes.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from bgpt_fast.tasks.baselines import class_numbers
from bgpt_fast.tasks.classification import ClassificationReport, score
from bgpt_fast.tasks.media.errors import optional

_PADDING = 256
_MOST_BYTES = 8192
_BATCH = 32


@dataclass(frozen=True, eq=False)
class _Documents:
    """Documents as arrays: images, uint8 [N, 3, H, W], or rows of bytes, truncated."""

    images: NDArray[np.uint8] | None
    rows: list[NDArray[np.uint8]]

    def batch(self, chosen: NDArray[np.int64]) -> Tensor:
        """Returns float [B, 3, H, W] from −1 to 1, or int64 [B, L], padded with 256."""
        if self.images is not None:
            return torch.from_numpy(self.images[chosen]).float() / 127.5 - 1
        rows = [self.rows[index] for index in chosen.tolist()]
        padded = np.full((len(rows), max(1, *map(len, rows))), _PADDING, np.int64)
        for place, row in enumerate(rows):
            padded[place, : len(row)] = row
        return torch.from_numpy(padded)


class _Pixels(nn.Module):
    """Three 3×3 convolutions and a linear layer on their means over each quarter of the image."""

    def __init__(self, n: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inner, outer, stride in ((3, 32, 1), (32, 64, 2), (64, 64, 2)):
            layers += [nn.Conv2d(inner, outer, 3, stride, padding=1), nn.BatchNorm2d(outer), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.2))
        self.head = nn.Linear(4 * 64, n)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images))


class _Bytes(nn.Module):
    """Four convolutions of width 7 and stride 2, and a linear layer on their means and maxima over the document.

    The input is each byte's embedding (which suits text) and its value (which suits audio samples).
    """

    def __init__(self, n: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(_PADDING + 1, 16, padding_idx=_PADDING)
        widths = (17, 32, 48, 64, 64)
        self.layers = nn.ModuleList(
            nn.Conv1d(inner, outer, 7, 2, padding=3) for inner, outer in itertools.pairwise(widths)
        )
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(2 * widths[-1], n))

    def forward(self, rows: Tensor) -> Tensor:
        real = (rows != _PADDING)[:, None]
        value = (rows[:, None].float() / 127.5 - 1) * real
        x = torch.cat([self.embedding(rows).transpose(1, 2), value], 1)
        for layer in self.layers:
            # Padding is zeroed, so that a document's output does not depend on its batch.
            real = real[:, :, ::2]
            x = F.gelu(layer(x)) * real
        mean = x.sum(2) / real.sum(2).clamp(min=1)
        highest = x.masked_fill(~real, -torch.inf).amax(2) * real.any(2)
        return self.head(torch.cat([mean, highest.nan_to_num(0.0)], 1))


def classify_by_cnn(
    training: Sequence[tuple[str, bytes]],
    test: Sequence[tuple[str, bytes]],
    *,
    steps: int = 400,
    learning_rate: float = 2e-3,
    seed: int = 0,
) -> ClassificationReport:
    """Scores a small convolutional network that is trained from scratch on the CPU.

    If all documents are BMP images of one size, the network has 58,000 weights and reads pixels; otherwise 70,000,
    and it reads the first 8,192 bytes of each.

    Args:
        training: (class, content) of the training files.
        test: (class, content) of the files to score, all of classes of `training`.
        steps: AdamW steps, of 32 documents each; the learning rate decays to 0 on a cosine.
        learning_rate: peak rate.
        seed: seed of weights, order, dropout, and the report's bootstrap; torch's global generator does not change.

    Raises:
        ValueError: no files, a single class, a test file of another class, or no step.
        ImportError: BMP images without Pillow.
    """
    index = class_numbers("classify_by_cnn", training, test)
    if steps < 1:
        raise ValueError(f"classify_by_cnn: steps: expected at least 1, got {steps}")
    training_truth, test_truth = ([index[label] for label, _ in files] for files in (training, test))
    documents = _load_documents([content for _, content in [*training, *test]])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = (_Pixels if documents.images is not None else _Bytes)(len(index))
        _train(
            network,
            documents,
            torch.tensor(training_truth, device="cpu"),
            steps,
            learning_rate,
            np.random.default_rng(seed),
        )
    network.eval()
    predicted: list[int] = []
    with torch.no_grad():
        for first in range(len(training), len(training) + len(test), _BATCH):
            chosen = np.arange(first, min(first + _BATCH, len(training) + len(test)))
            predicted += network(documents.batch(chosen)).argmax(1).tolist()
    return score(index, test_truth, predicted, seed=seed)


def _train(
    network: nn.Module,
    documents: _Documents,
    training_truth: Tensor,
    steps: int,
    learning_rate: float,
    stream: np.random.Generator,
) -> None:
    optimizer = torch.optim.AdamW(network.parameters(), learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    order = np.array([], np.int64)
    for _ in range(steps):
        if len(order) < min(_BATCH, len(training_truth)):
            order = stream.permutation(len(training_truth))
        chosen, order = order[:_BATCH], order[_BATCH:]
        loss = F.cross_entropy(network(documents.batch(chosen)), training_truth[torch.from_numpy(chosen)])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()


def _load_documents(contents: Sequence[bytes]) -> _Documents:
    if all(content[:2] == b"BM" for content in contents):
        pictures = [_picture(content) for content in contents]
        if len({picture.shape for picture in pictures}) == 1 and pictures[0].ndim == 3:
            return _Documents(np.stack(pictures), [])
    return _Documents(None, [np.frombuffer(content[:_MOST_BYTES], np.uint8) for content in contents])


def _picture(content: bytes) -> NDArray[np.uint8]:
    """Returns uint8 [3, H, W]; uint8 [0] if the bytes are not an image."""
    image: Any = optional("PIL.Image", "image", "a CNN on pixels")
    try:
        with image.open(io.BytesIO(content)) as opened:
            return np.asarray(opened.convert("RGB")).transpose(2, 0, 1)
    except (OSError, ValueError, SyntaxError):
        return np.zeros(0, np.uint8)
