"""PackedPatches: bytes to patches and back, cutting, and refusal of what is no document."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bgpt_fast import BGPTConfig, PackedPatches
from bgpt_fast import documents as documents_module
from bgpt_fast.documents import Part, PatchError, document_layout

Documents = list[tuple[str, bytes]]


def config(patch_size: int = 4, patch_length: int = 8) -> BGPTConfig:
    return BGPTConfig(patch_size=patch_size, patch_length=patch_length, hidden_size=8, num_heads=1)


def oracle(documents: Documents, S: int, L: int, end_of_file: bool = True, padding: int = 256) -> list[list[list[int]]]:
    """Each document's patches by the words of the specification, cut to its first L."""
    result = []
    for extension, content in documents:
        name = list(os.fsencode(extension))[:S]
        rows = [name + [padding] * (S - len(name))]
        for start in range(0, len(content), S):
            data = list(content[start : start + S])
            rows.append(data + [padding] * (S - len(data)))
        if end_of_file:
            rows.append([padding] * S)
        result.append(rows[:L])
    return result


def unpacked(batch: PackedPatches) -> list[list[list[int]]]:
    return [document.tolist() for document in batch.patches.split(batch.cu_seqlens.diff().tolist())]


def is_file_name(text: str) -> bool:
    """False for lone surrogates that stand for no byte."""
    try:
        return os.fsdecode(os.fsencode(text)) == text
    except UnicodeEncodeError:
        return False


extensions = st.text(max_size=6).filter(is_file_name) | st.binary(max_size=6).map(os.fsdecode)
contents = st.binary(max_size=70)
corpora = st.lists(st.tuples(extensions, contents), max_size=6)


def test_layout_of_three_documents() -> None:
    batch = PackedPatches.from_bytes([("txt", b"hello"), ("", b""), ("jpeg", b"\x00\xff\x01\x02")], config())
    E = 256
    assert batch.patches.tolist() == [
        [116, 120, 116, E], [104, 101, 108, 108], [111, E, E, E], [E, E, E, E],
        [E, E, E, E], [E, E, E, E],
        [106, 112, 101, 103], [0, 255, 1, 2], [E, E, E, E],
    ]  # fmt: skip
    assert batch.patches.dtype == torch.int16
    assert batch.cu_seqlens.tolist() == [0, 4, 6, 9]
    assert batch.cu_seqlens.dtype == torch.int32
    assert (batch.max_seqlen, batch.num_documents, batch.num_patches) == (4, 3, 9)
    assert (batch.targets, batch.truncated, batch.truncated_bytes) == (None, 0, 0)
    assert batch.target_indices().tolist() == [1, 2, 3, 5, 7, 8]


def test_layout_of_documents_of_two_files() -> None:
    sizes = torch.tensor([[5, 0], [4, 9]])
    ends = torch.tensor([[False, True], [False, True]])
    layout = document_layout(sizes, 4, end_of_file=ends, first_target=torch.tensor([4, 3]))
    assert layout.cu_seqlens.tolist() == [0, 5, 12]
    assert (layout.max_seqlen, layout.num_patches) == (7, 12)
    assert layout.targets is not None
    assert layout.targets.tolist() == [False] * 4 + [True] + [False] * 3 + [True] * 4
    parts = [
        (Part(b"a", b"hello", False), Part(b"b", b"", True)),
        (Part(b"c", b"1234", False), Part(b"d", b"9" * 9, True)),
    ]
    batch = PackedPatches.from_parts(parts, 4, first_target=2)
    assert torch.equal(batch.cu_seqlens, layout.cu_seqlens)
    E = 256
    assert batch.patches[:5].tolist() == [[97, E, E, E], [*b"hell"], [*b"o", E, E, E], [98, E, E, E], [E] * 4]
    assert batch.target_indices().tolist() == [2, 3, 4, 7, 8, 9, 10, 11]
    PackedPatches(batch.patches, batch.cu_seqlens, batch.max_seqlen, batch.targets)


def test_no_documents_make_an_empty_batch() -> None:
    batch = PackedPatches.from_bytes([], config())
    assert list(batch.patches.shape) == [0, 4]
    assert batch.cu_seqlens.tolist() == [0]
    assert (batch.max_seqlen, batch.num_documents) == (0, 0)
    assert batch.target_indices().tolist() == []
    assert batch.to_bytes() == []
    assert batch.padding_share == 0.0


@settings(max_examples=150, deadline=None)
@given(corpora, st.sampled_from([1, 3, 4, 16]), st.integers(2, 12), st.booleans())
def test_equals_the_oracle(documents: Documents, S: int, L: int, end_of_file: bool) -> None:
    batch = PackedPatches.from_bytes(documents, config(S, L), end_of_file=end_of_file)
    assert unpacked(batch) == oracle(documents, S, L, end_of_file)
    assert batch.max_seqlen == max((len(rows) for rows in unpacked(batch)), default=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_million_random_documents_equal_the_oracle(seed: int) -> None:
    """RELIABILITY R12, a quarter a seed, of all sizes around whole patches and the context."""
    stream = random.Random(seed)
    for _ in range(2500):
        S, L = stream.choice([1, 2, 3, 4, 7, 16]), stream.randint(2, 6)
        documents = [
            (chr(97 + stream.randrange(26)) * stream.randint(0, 5), stream.randbytes(stream.randint(0, S * (L + 1))))
            for _ in range(100)
        ]
        end_of_file = stream.random() < 0.5
        batch = PackedPatches.from_bytes(documents, config(S, L), end_of_file=end_of_file)
        rows = oracle(documents, S, L, end_of_file)
        assert batch.patches.tolist() == [row for document in rows for row in document]
        assert batch.cu_seqlens.diff().tolist() == [len(document) for document in rows]


def test_the_oracle_catches_wrong_padding() -> None:
    documents = [("a", b"12345")]
    assert unpacked(PackedPatches.from_bytes(documents, config())) != oracle(documents, 4, 8, padding=0)


@settings(max_examples=150, deadline=None)
@given(corpora, st.sampled_from([1, 5, 16]), st.booleans())
def test_round_trip(documents: Documents, S: int, end_of_file: bool) -> None:
    batch = PackedPatches.from_bytes(documents, config(S, 100), end_of_file=end_of_file)
    assert batch.truncated == 0
    cut = [(os.fsdecode(os.fsencode(extension)[:S]), content) for extension, content in documents]
    assert batch.to_bytes() == cut


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_threads_share_large_and_many_documents(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    stream = random.Random(0)
    sizes = [1_500_001, 0, 7, 900_000] + [stream.randrange(60) for _ in range(3000)]
    documents = [("bin", stream.randbytes(size)) for size in sizes]
    batch = PackedPatches.from_bytes(documents, config(16, 200_000))
    assert batch.num_patches * 16 > 2 * 2**18 * 2, "the work is large enough to be shared"
    data = batch.patches.numpy()
    offsets = batch.cu_seqlens.tolist()
    for (_, content), start, stop in zip(documents, offsets[:-1], offsets[1:], strict=True):
        tokens = data[start + 1 : stop].reshape(-1)
        assert stop - start == 2 + -(-len(content) // 16)
        assert np.array_equal(tokens[: len(content)], np.frombuffer(content, dtype="u1"))
        assert (tokens[len(content) :] == 256).all()
    assert (data[offsets[:-1]] == np.array([98, 105, 110] + [256] * 13)).all()


def test_content_may_be_any_bytes_and_extensions_are_cut_inside_a_character() -> None:
    numbers = np.arange(4, dtype="<u2")
    documents = [
        ("a" * 20, bytearray(b"xyz")),
        ("éé€", memoryview(b"abcdefgh")[2:5]),
        ("x", memoryview(numbers)),
        ("x", memoryview(np.zeros((0, 3)))),
    ]
    restored = PackedPatches.from_bytes(documents, config(5, 20)).to_bytes()
    assert restored == [
        ("aaaaa", b"xyz"),
        ("éé" + os.fsdecode("€".encode()[:1]), b"cde"),
        ("x", numbers.tobytes()),
        ("x", b""),
    ]


def test_the_old_name_of_truncation_still_works(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(25))
    for pack, documents in ((PackedPatches.from_bytes, [("bin", bytes(25))]), (PackedPatches.from_files, [path])):
        with pytest.warns(DeprecationWarning, match="overlong is now called truncation"), pytest.raises(PatchError):
            pack(documents, config(), overlong="error")  # type: ignore[operator]


def test_head_keeps_the_first_patches_and_counts_the_rest() -> None:
    fits, one_over, longer = bytes(range(24)), bytes(range(25)), bytes(range(60))
    batch = PackedPatches.from_bytes([("a", fits), ("b", one_over), ("c", longer)], config())
    assert batch.cu_seqlens.tolist() == [0, 8, 16, 24]
    assert batch.truncated == 2
    assert batch.truncated_bytes == 60 - 28
    assert batch.to_bytes() == [("a", fits), ("b", one_over), ("c", longer[:28])]
    assert batch.patches[7].tolist() == [256] * 4
    assert batch.patches[15].tolist() == [24, 256, 256, 256], "only the end-of-file patch of b is cut off"
    assert "2 cut by 32 bytes" in repr(batch)
    assert PackedPatches.from_bytes([("b", one_over)], config(), end_of_file=False).truncated == 0


def test_windows_are_drawn_from_seed_and_position(tmp_path: Path) -> None:
    content = bytes(range(61))
    documents = [("bin", content), ("bin", b"short"), *[("bin", content)] * 40]
    batch = PackedPatches.from_bytes(documents, config(), truncation="window", seed=3)
    again = PackedPatches.from_bytes(documents, config(), truncation="window", seed=3)
    assert torch.equal(batch.patches, again.patches)
    other = PackedPatches.from_bytes(documents, config(), truncation="window", seed=4)
    assert batch.patches.shape != other.patches.shape or not torch.equal(batch.patches, other.patches)
    starts = []
    for number, (extension, window) in enumerate(batch.to_bytes()):
        rows = unpacked(batch)[number]
        assert extension == "bin", "a window keeps its extension patch"
        if number == 1:
            assert window == b"short"
            continue
        start = content.index(window)
        starts.append(start)
        assert start % 4 == 0
        assert len(rows) == 8, "a window fills the context"
        assert (rows[-1] == [256] * 4) == (start == 40), "the last window alone ends with the end-of-file patch"
        assert len(window) == {36: 25, 40: 21}.get(start, 28)
    assert starts.count(0) >= 5
    assert starts.count(40) >= 5, "tails are drawn"
    assert len(set(starts)) >= 5, "stretches in between are drawn"
    assert batch.truncated == 41
    assert batch.truncated_bytes == sum(61 - {36: 25, 40: 21}.get(start, 28) for start in starts)
    path = tmp_path / "a.bin"
    path.write_bytes(content)
    files = PackedPatches.from_files([path], config(), truncation="window", seed=3)
    assert files.to_bytes()[0] == batch.to_bytes()[0]


@settings(max_examples=100, deadline=None)
@given(st.binary(min_size=1, max_size=60), st.integers(0, 10**9), st.sampled_from([1, 3, 4]), st.integers(2, 9))
def test_every_window_is_a_stretch_of_the_document(content: bytes, seed: int, S: int, L: int) -> None:
    batch = PackedPatches.from_bytes([("x", content)], config(S, L), truncation="window", seed=seed)
    complete = oracle([("x", content)], S, 10**6)[0]
    rows = unpacked(batch)[0]
    assert len(rows) == min(L, len(complete))
    assert rows[0] == complete[0]
    assert any(complete[start : start + len(rows) - 1] == rows[1:] for start in range(1, len(complete)))
    assert batch.truncated == (len(complete) > L)


def test_error_names_the_document() -> None:
    with pytest.raises(PatchError, match=r"documents\[1\].*at most 8 patches of 4 bytes, got 9 \(25 bytes\)"):
        PackedPatches.from_bytes([("a", b""), ("b", bytes(25))], config(), truncation="error")
    assert PackedPatches.from_bytes([("b", bytes(24))], config(), truncation="error").max_seqlen == 8


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "message"),
    [
        (("text", config()), {}, TypeError, "documents: expected a sequence"),
        ((iter([]), config()), {}, TypeError, "documents: expected a sequence"),
        (([b"ab"], config()), {}, TypeError, r"documents\[0\]: expected a pair"),
        (([("a", b"", 1)], config()), {}, TypeError, r"documents\[0\]: expected a pair"),
        (([("a", "text")], config()), {}, TypeError, r"documents\[0\]: content: expected bytes.*got str"),
        (([(b"a", b"")], config()), {}, TypeError, r"documents\[0\]: extension: expected a str"),
        (([("\ud800", b"")], config()), {}, ValueError, r"documents\[0\]: extension: expected text"),
        (([("a", memoryview(b"abcd")[::2])], config()), {}, ValueError, "contiguous"),
        (([], {"patch_size": 4}), {}, TypeError, "config: expected a BGPTConfig"),
        (([], config()), {"truncation": "tail"}, ValueError, "truncation: expected"),
        (([], config()), {"seed": 1.5}, TypeError, "seed: expected an int"),
    ],
)
def test_wrong_arguments_are_named(arguments: tuple, keywords: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        PackedPatches.from_bytes(*arguments, **keywords)


def test_a_single_path_is_not_a_list_of_paths() -> None:
    with pytest.raises(TypeError, match="paths: expected a sequence"):
        PackedPatches.from_files("file.txt", config())


def test_more_patches_than_int32_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = PackedPatches.from_bytes([("a", bytes(8))], config())
    monkeypatch.setattr(documents_module, "MAX_PATCHES", 7)
    for pack in (
        lambda: PackedPatches.from_bytes([("a", bytes(8))] * 2, config()),
        lambda: PackedPatches.concatenate([batch, batch]),
    ):
        with pytest.raises(ValueError, match="at most 7 patches in one batch, got 8"):
            pack()


PATCHES = torch.tensor([[97, 256], [1, 2], [3, 256], [98, 256], [256, 256]], dtype=torch.int16)
OFFSETS = torch.tensor([0, 3, 5], dtype=torch.int32)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"patches": [[1]]}, TypeError, "patches: expected a torch.Tensor, got list"),
        ({"patches": PATCHES.int()}, TypeError, "patches: expected dtype torch.int16, got torch.int32"),
        ({"patches": PATCHES[0]}, ValueError, "patches: expected 2 dimensions"),
        ({"patches": PATCHES[:, :0]}, ValueError, "S ≥ 1"),
        ({"patches": PATCHES + 1}, ValueError, "patches: expected tokens 0…256, got 2…257"),
        ({"patches": PATCHES - 2}, ValueError, "patches: expected tokens 0…256, got -1…254"),
        ({"cu_seqlens": OFFSETS.long()}, TypeError, "cu_seqlens: expected dtype torch.int32"),
        ({"cu_seqlens": OFFSETS[None]}, ValueError, "cu_seqlens: expected 1 dimensions"),
        ({"cu_seqlens": OFFSETS[:0]}, ValueError, "got an empty tensor"),
        ({"cu_seqlens": OFFSETS[:2]}, ValueError, "from 0 to P = 5, got 0 … 3"),
        ({"cu_seqlens": OFFSETS[1:]}, ValueError, "from 0 to P = 5, got 3 … 5"),
        ({"cu_seqlens": OFFSETS[[0, 1, 1, 2]]}, ValueError, "got 3 → 3 of document 1"),
        ({"cu_seqlens": torch.tensor([0, 6, 5], dtype=torch.int32)}, ValueError, "got 6 → 5 of document 1"),
        ({"cu_seqlens": OFFSETS.to("meta")}, ValueError, "cu_seqlens: expected device cpu like patches, got meta"),
        ({"max_seqlen": 2}, ValueError, "max_seqlen: expected at least 3, got 2"),
        ({"max_seqlen": 3.0}, TypeError, "max_seqlen: expected an int"),
        ({"targets": torch.ones(5)}, TypeError, "targets: expected dtype torch.bool"),
        ({"targets": torch.zeros(4, dtype=torch.bool)}, ValueError, r"targets: expected \[5\].*got \[4\]"),
        ({"targets": torch.ones(5, dtype=torch.bool)}, ValueError, "targets: expected False at each document's first"),
        ({"truncated": -1}, ValueError, "truncated: expected at least 0"),
        ({"truncated_bytes": "1"}, TypeError, "truncated_bytes: expected an int"),
    ],
)
def test_wrong_tensors_are_named(changes: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        PackedPatches(**{"patches": PATCHES, "cu_seqlens": OFFSETS, **changes})


def test_manual_construction_and_chosen_targets() -> None:
    batch = PackedPatches(patches=PATCHES, cu_seqlens=OFFSETS)
    assert batch.max_seqlen == 3
    assert batch.to_bytes() == [("a", b"\x01\x02\x03"), ("b", b"")]
    assert batch.padding_share == 1 / 4
    targets = torch.tensor([False, False, True, False, True])
    chosen = PackedPatches(PATCHES.t().contiguous().t(), OFFSETS, max_seqlen=7, targets=targets)
    assert chosen.patches.is_contiguous()
    assert chosen.max_seqlen == 7
    assert chosen.target_indices().tolist() == [2, 4]
    assert chosen.target_indices().dtype == batch.target_indices().dtype == torch.int64
    with pytest.raises(AttributeError):
        batch.max_seqlen = 1


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 30), max_size=8))
def test_target_indices_equal_the_mask(sizes: list[int]) -> None:
    batch = PackedPatches.from_bytes([("a", bytes(size)) for size in sizes], config(), end_of_file=False)
    mask = torch.ones(batch.num_patches, dtype=torch.bool)
    mask[batch.cu_seqlens[:-1].long()] = False
    assert torch.equal(batch.target_indices(), mask.nonzero().flatten())


def test_concatenate() -> None:
    stream = random.Random(1)
    corpora = [[("a", stream.randbytes(size)) for size in sizes] for sizes in ([3, 50, 0], [], [9], [0])]
    batches = [PackedPatches.from_bytes(documents, config()) for documents in corpora]
    joined = PackedPatches.concatenate(batches)
    complete = PackedPatches.from_bytes([*corpora[0], *corpora[2], *corpora[3]], config())
    assert torch.equal(joined.patches, complete.patches)
    assert torch.equal(joined.cu_seqlens, complete.cu_seqlens)
    assert joined.cu_seqlens.dtype == torch.int32
    assert (joined.max_seqlen, joined.truncated, joined.truncated_bytes) == (8, 1, 22)
    assert joined.targets is None
    PackedPatches(joined.patches, joined.cu_seqlens)
    masked = PackedPatches(PATCHES, OFFSETS, targets=torch.tensor([False, True, False, False, False]))
    mixed = PackedPatches.concatenate([PackedPatches(PATCHES, OFFSETS), masked])
    assert mixed.target_indices().tolist() == [1, 2, 4, 6]
    with pytest.raises(ValueError, match="at least one"):
        PackedPatches.concatenate([])
    with pytest.raises(ValueError, match="patches of 4 bytes on cpu like the first batch, got 2 bytes"):
        PackedPatches.concatenate([complete, masked])


def test_moving_reads_no_values_and_moves_all_fields() -> None:
    targets = torch.tensor([False, True, False, False, True])
    moved = PackedPatches(PATCHES, OFFSETS, targets=targets, truncated=1, truncated_bytes=9).to("meta")
    assert moved.targets is not None
    assert {moved.patches.device.type, moved.cu_seqlens.device.type, moved.targets.device.type} == {"meta"}
    assert (moved.max_seqlen, moved.truncated, moved.truncated_bytes) == (3, 1, 9)
    unmasked = PackedPatches(PATCHES, OFFSETS).to("meta")
    assert unmasked.target_indices().shape == (3,), "target indices are laid out without reading a device's values"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_pinned_batches_reach_the_gpu_and_come_back() -> None:
    documents = [("txt", b"hello"), ("bin", bytes(range(200)))]
    batch = PackedPatches.from_bytes(documents, config(16, 64)).pin_memory()
    assert batch.patches.is_pinned()
    moved = batch.to("cuda", non_blocking=True)
    assert moved.target_indices().tolist() == batch.target_indices().tolist()
    assert moved.to_bytes() == documents


@pytest.mark.parametrize(
    "rows",
    [
        [[256, 97], [1, 2]],
        [[97, 256], [256, 1], [256, 256]],
        [[97, 256], [1, 256], [2, 3]],
        [[97, 256], [256, 256], [1, 2]],
        [[97, 256], [256, 256], [256, 256]],
    ],
)
def test_patches_that_are_no_file_are_refused(rows: list[list[int]]) -> None:
    patches = torch.tensor([[120, 256], [256, 256], *rows], dtype=torch.int16)
    batch = PackedPatches(patches, torch.tensor([0, 2, len(patches)], dtype=torch.int32))
    with pytest.raises(PatchError, match="document 1: expected bytes, then <eop> as padding"):
        batch.to_bytes()
