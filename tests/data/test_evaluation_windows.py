"""The windows that an evaluation during training scores: all of the files, or the same amount of each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bgpt_fast import BGPTConfig, PackedPatches
from bgpt_fast.data import FileSource, LabelledSource, PairSource
from bgpt_fast.data.evaluation_windows import LEAST_PATCHES, evaluation_windows
from bgpt_fast.documents import count_patches

CONFIG = BGPTConfig(patch_size=4, patch_length=16, hidden_size=16, patch_num_layers=1, byte_num_layers=1)


def scored_patches(sizes: list[int], max_patches: int, seed: int = 0) -> list[list[int]]:
    """The indices of the patches after the extension patch that are scored of each file."""
    scored: list[list[int]] = [[] for _ in sizes]
    for index, window in evaluation_windows(sizes, CONFIG, max_patches, seed):
        assert 2 <= window.patches <= CONFIG.patch_length
        last = count_patches(sizes[index], 4) - 1
        scored[index] += [patch for patch in range(window.first, window.first + window.patches - 1) if patch < last]
    return scored


def test_files_that_fit_are_scored_whole_and_once() -> None:
    sizes = [1, 59, 60, 61, 1000, 4000]
    assert scored_patches(sizes, 100_000) == [list(range(count_patches(size, 4) - 1)) for size in sizes]


@pytest.mark.parametrize("max_patches", [100, 333, 1000, 1500])
def test_a_limit_gives_every_file_the_same_amount(max_patches: int) -> None:
    sizes = [30, *[2000] * 7, 50]
    scored = scored_patches(sizes, max_patches)
    assert all(scored), "every file is scored, not only the first"
    assert all(len(set(patches)) == len(patches) for patches in scored), "windows do not overlap"
    assert len({len(patches) for patches in scored[1:8]}) == 1
    total = sum(window.patches for _, window in evaluation_windows(sizes, CONFIG, max_patches, 0))
    assert 0.75 * max_patches <= total <= max_patches
    assert any(patches[0] > 0 for patches in scored[1:8]), "not heads only"
    assert scored == scored_patches(sizes, max_patches), "the same windows in each evaluation"
    assert scored != scored_patches(sizes, max_patches, seed=1)


def test_too_many_files_are_sampled() -> None:
    scored = scored_patches([400] * 500, 200)
    assert sum(map(bool, scored)) == 200 // LEAST_PATCHES
    assert scored_patches([400], 1) != [[]], "at least one patch"


def test_the_source_reads_the_windows(tmp_path: Path) -> None:
    contents = {}
    for index in range(6):
        content = np.random.default_rng(index).bytes(100 + 60 * index)
        (tmp_path / f"{index}.bin").write_bytes(content)
        contents[content] = index
    source = FileSource(tmp_path, CONFIG, 32, split="eval", eval_share=1.0)
    position = source.state_dict()
    batches = list(source.evaluation_batches(100_000))
    assert max(batch.num_patches for batch in batches) <= 32
    assert source.state_dict() == position
    again = list(source.evaluation_batches(100_000))  # a second evaluation begins anew (facebookresearch/blt#74)
    assert [batch.to_bytes() for batch in again] == [batch.to_bytes() for batch in batches]
    text = b"".join(content for batch in batches for _, content in batch.to_bytes())
    assert text == b"".join(contents), "each byte once"
    ends = sum(int((batch.patches == 256).all(1).sum()) for batch in batches)
    assert ends == 6, "and each end of a file once"
    heads = PackedPatches.concatenate(list(source.one_pass()))
    assert heads.num_patches < sum(batch.num_patches for batch in batches)


def test_pairs_and_labelled_files_are_sampled_whole(tmp_path: Path) -> None:
    for index in range(30):
        (tmp_path / f"one_{index}.abc").write_bytes(b"a" * 20)
        (tmp_path / f"one_{index}.mid").write_bytes(b"b" * 20)
    pairs = PairSource(tmp_path, "abc->mid", CONFIG, 32, split="eval", eval_share=1.0)
    whole = PackedPatches.concatenate(list(pairs.evaluation_batches(100_000)))
    assert whole.num_documents == 30
    some = PackedPatches.concatenate(list(pairs.evaluation_batches(100)))
    assert some.num_documents == 100 // 13
    assert some.num_patches == 13 * some.num_documents
    labelled = LabelledSource(tmp_path, CONFIG, 32, split="eval", eval_share=1.0)
    labels = [label for batch in labelled.evaluation_batches(70) for label in batch.labels.tolist()]
    assert len(labels) == 10
    assert set(labels) == {0, 1}, "not the first files only"
