"""LabelledSource: classes by file name, one label map, and files that have none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bgpt_fast.config import BGPTConfig
from bgpt_fast.data import DataError, LabelledSource, label_of

CONFIG = BGPTConfig(patch_size=4, patch_length=16, hidden_size=8, patch_num_layers=1, byte_num_layers=1)
LABELS = {"cat.bmp": 0, "cat.wav": 1, "dog.bmp": 2}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """20 files of each of three classes; the content begins with the class."""
    for label in LABELS:
        for index in range(20):
            name, extension = label.split(".")
            path = tmp_path / "data" / str(index % 2) / f"{name}_some_{index}.{extension}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(f"{label} {index}".encode() + b"." * index)
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("a_b/cat_1_2.bmp", "cat.bmp"),
        ("cat_.bmp", "cat.bmp"),
        ("cat_1", "cat."),
        ("cat.bmp", None),
        ("_1.bmp", None),
        ("a_b/cat.bmp", None),
    ],
)
def test_labels_of_names(path: str, label: str | None) -> None:
    assert label_of(path) == label


def test_labels_belong_to_their_documents(folder: Path) -> None:
    source = LabelledSource(folder, CONFIG, 40, split="all")
    assert source.labels == LABELS
    documents = []
    while len(documents) < 60:
        batch = source.next_batch().to("cpu")
        assert batch.labels.dtype == torch.int64
        assert len(batch.labels) == batch.batch.num_documents
        contents = [content.split()[0].decode() for _, content in batch.batch.to_bytes()]
        assert [LABELS[label] for label in contents] == batch.labels.tolist()
        documents += batch.batch.to_bytes()
    assert len(set(documents[:60])) == 60
    assert sum(len(batch.labels) for batch in source.one_pass()) == 60
    assert source.describe()["documents_by_class"] == dict.fromkeys(LABELS, 20)


def test_one_label_map_serves_both_splits_and_may_be_an_argument(folder: Path) -> None:
    (folder / "ant_1.bmp").write_bytes(b"one of its kind, on one side of the split alone")
    train, held_out = (
        LabelledSource(folder, CONFIG, 40, split=split, eval_share=0.3, split_by="content")
        for split in ("train", "eval")
    )
    assert train.labels == held_out.labels == {"ant.bmp": 0, "cat.bmp": 1, "cat.wav": 2, "dog.bmp": 3}
    assert not set(train.paths) & set(held_out.paths)
    assert len(train) + len(held_out) == 61
    labels = {"dog.bmp": 0, "cat.bmp": 1, "cow.bmp": 2, "cat.wav": 3}
    source = LabelledSource(folder, CONFIG, 40, split="all", labels=labels)
    assert source.labels == labels
    batch = source.next_batch()
    contents = [content.split()[0].decode() for _, content in batch.batch.to_bytes()]
    assert [labels[label] for label in contents] == batch.labels.tolist()
    assert source.describe()["skipped"] == {"unknown label": 1}
    assert source.describe()["documents_by_class"]["cow.bmp"] == 0


def test_files_without_a_known_label_are_counted_or_an_error(folder: Path) -> None:
    (folder / "plain.bmp").write_bytes(b"x")
    assert LabelledSource(folder, CONFIG, 40, split="all").describe()["skipped"] == {"no label": 1}
    with pytest.raises(DataError, match=r"plain.bmp.*got no label"):
        LabelledSource(folder, CONFIG, 40, unknown="error")
    (folder / "plain.bmp").rename(folder / "cow_1.bmp")
    with pytest.raises(DataError, match=r"cow_1.bmp.*got 'cow.bmp'"):
        LabelledSource(folder, CONFIG, 40, labels=LABELS, unknown="error")
    with pytest.raises(DataError, match="unknown label"):
        LabelledSource(folder, CONFIG, 40, labels={"sheep.bmp": 0})


@pytest.mark.parametrize("labels", [{}, {"a.b": 1}, {"a.b": 0, "c.d": 0}, {"a.b": 0, "c.d": 2}])
def test_wrong_maps_are_named(folder: Path, labels: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="labels"):
        LabelledSource(folder, CONFIG, 40, labels=labels)
