"""The flat byte model: the same bytes, the same bits a byte, as many operations, and what its parts must not do."""

from __future__ import annotations

import dataclasses
import math
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from support.paths import EXAMPLES

from bgpt_fast import BGPT, BGPTConfig, PackedPatches
from bgpt_fast.config import EOP
from bgpt_fast.data import DataError
from bgpt_fast.flops import forward_flops
from bgpt_fast.tasks.evaluation import evaluate_files
from bgpt_fast.training import TrainConfig

sys.path.append(str(EXAMPLES / "trade_offs"))
from flat_baseline import (
    FlatConfig,
    FlatDocument,
    FlatModel,
    evaluate_flat,
    flat_context,
    flat_documents,
    flat_flops,
    flat_of_equal_compute,
    generate_flat,
    train_flat,
)

pytest.importorskip("transformers")
CONFIG = BGPTConfig(
    patch_size=4, patch_length=8, hidden_size=16, patch_num_layers=2, byte_num_layers=1, num_heads=2, byte_num_heads=2
)


def flat(seed: int = 0, **fields: Any) -> FlatModel:
    torch.manual_seed(seed)
    return FlatModel(FlatConfig(**{"context": 34, "hidden_size": 16, "num_layers": 2, "num_heads": 2, **fields})).eval()


class Documents:
    """A source of the same documents again and again."""

    def __init__(self, documents: Sequence[tuple[str, bytes]]) -> None:
        self.batch = PackedPatches.from_bytes(documents, CONFIG)

    def next_batch(self) -> PackedPatches:
        return self.batch

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass

    def describe(self) -> dict[str, Any]:
        return {}


def test_documents_become_their_bytes_and_one_end() -> None:
    contents = [b"", b"a", b"abcd", bytes(range(9)), bytes(40)]
    batch = PackedPatches.from_bytes([("md", content) for content in contents], CONFIG)
    for (tokens, is_target), content in zip(flat_documents(batch), contents, strict=True):
        content_tokens = content[:28]  # seven patches beside the extension's
        ends = [EOP] if len(content) <= 24 else []
        assert tokens.tolist() == [*b"md", EOP, *content_tokens, *ends]
        assert is_target.tolist() == [False] * 3 + [True] * (len(content_tokens) + len(ends))
        assert len(tokens) <= flat_context(CONFIG)


def test_targets_are_those_of_the_batch() -> None:
    batch = PackedPatches.from_bytes([("longer", b"12345678")], CONFIG)
    mask = torch.tensor([False, False, True, True])
    [(tokens, is_target)] = flat_documents(PackedPatches(batch.patches, batch.cu_seqlens, targets=mask))
    assert tokens.tolist() == [*b"long", EOP, *b"12345678", EOP]
    assert tokens[is_target].tolist() == [*b"5678", EOP]


def test_a_pair_keeps_its_separators() -> None:
    """[ext]["abcde"][ext]["xy"][end]: the short source's <eop> stays, and so does the end."""
    rows = [[*b"abc", EOP], [*b"abcd"], [*b"e", EOP, EOP, EOP], [*b"mid", EOP], [*b"xy", EOP, EOP], [EOP] * 4]
    batch = PackedPatches(torch.tensor(rows, dtype=torch.int16), torch.tensor([0, 6], dtype=torch.int32))
    [(tokens, _)] = flat_documents(batch)
    assert tokens.tolist() == [*b"abc", EOP, *b"abcde", EOP, *b"mid", EOP, *b"xy", EOP]


def test_bits_are_those_of_the_chain_rule(tmp_path: Path) -> None:
    model = flat()
    contents = {"a.txt": b"hello world", "b.bin": bytes(range(50)), "c.txt": b"x"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    report = evaluate_flat(model, tmp_path, CONFIG)
    nats = dict.fromkeys(("txt", "bin"), 0.0)
    for name, content in contents.items():
        extension = name[2:]
        tokens = [*extension.encode(), EOP]
        for token in [*content[:28], *([EOP] if len(content) <= 24 else [])]:
            nats[extension] -= float(model(torch.tensor([tokens])).detach()[0, -1].log_softmax(-1)[token])
            tokens.append(token)
    assert report.by_extension["txt"].nats == pytest.approx(nats["txt"], rel=1e-5)
    assert report.total.per_byte == pytest.approx(sum(nats.values()) / math.log(2) / (11 + 28 + 1), rel=1e-5)
    assert [Path(path).name for path in report.paths] == sorted(contents)
    assert report.total.bytes == evaluate_files(BGPT(CONFIG), tmp_path).total.bytes
    assert report.to_dict()["by_extension"].keys() == nats.keys()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError):
        evaluate_flat(model, tmp_path / "empty", CONFIG)


def test_padding_and_what_comes_later_change_nothing() -> None:
    model = flat()
    tokens = torch.randint(0, 256, (1, 12), generator=torch.Generator().manual_seed(1))
    later = tokens.clone()
    later[0, 7:] = EOP
    torch.testing.assert_close(model(tokens)[:, :7], model(later)[:, :7])
    assert not torch.allclose(model(tokens)[:, 8], model(later)[:, 8])


def test_operations_are_counted_and_matched() -> None:
    one = FlatConfig(context=20, hidden_size=6, num_layers=3, num_heads=2)
    document = FlatDocument(torch.zeros(5, dtype=torch.int64), torch.ones(5, dtype=torch.bool))
    assert flat_flops(one, [document]) == 3 * (4 * 24 * 36 + 4 * 6 * (1 + 2 + 3 + 4)) + 4 * 2 * 6 * 257
    config = BGPTConfig(
        patch_size=16, patch_length=34, hidden_size=96, patch_num_layers=4, byte_num_layers=1, num_heads=3
    )
    stream = random.Random(0)
    sample = PackedPatches.from_bytes([("txt", stream.randbytes(stream.randrange(500))) for _ in range(20)], config)
    target = sum(forward_flops(config, sample.cu_seqlens.diff()).values())
    for layers in (1, 4):
        matched = flat_of_equal_compute(config, sample, num_layers=layers, num_heads=2)
        assert matched.num_layers == layers
        assert matched.context >= max(len(document.tokens) for document in flat_documents(sample))
        assert abs(flat_flops(matched, flat_documents(sample)) / target - 1) < 0.1


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_training_learns_and_counts_its_bytes(optimizer: Any) -> None:
    source = Documents([("txt", b"abababababab"), ("txt", b"abab"), ("bin", b"ab")])
    settings = TrainConfig(steps=60, learning_rate=2e-2, optimizer=optimizer, device="cpu", threads=1)
    model = flat()
    done = train_flat(model, source, settings)
    assert (done.steps, done.num_bytes) == (60, 60 * 18)
    assert done.loss < 0.5
    few = dataclasses.replace(settings, steps=3)
    assert train_flat(flat(), source, few).loss == train_flat(flat(), source, few).loss
    assert generate_flat(model, [("txt", b"ab"), ("txt", b"ababa")], max_new_bytes=3) == [b"ababa", b"abababab"]


def test_training_ends_with_its_time_and_refuses_nan() -> None:
    source = Documents([("txt", b"ab")])
    timed = TrainConfig(steps=0, max_minutes=0.01, schedule_by="time", device="cpu", threads=1)
    assert 0.5 <= train_flat(flat(), source, timed).seconds < 10
    model = flat()
    torch.nn.init.constant_(model.gpt2.transformer.ln_f.weight, math.nan)
    with pytest.raises(FloatingPointError, match="step 1"):
        train_flat(model, source, TrainConfig(steps=2, device="cpu", threads=1))


def test_generation_is_that_of_single_steps() -> None:
    model = flat(position_init_std=1.0)
    prompts = [("txt", b""), ("x", b"abcde")]
    contents = generate_flat(model, prompts, max_new_bytes=6)
    for (extension, data), content in zip(prompts, contents, strict=True):
        tokens = [*extension.encode(), EOP, *data]
        for _ in range(6):
            tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
            if tokens[-1] == EOP:
                tokens.pop()
                break
        assert content == bytes(tokens[len(extension) + 1 :])
    sampled = [generate_flat(model, prompts, max_new_bytes=6, temperature=1.0, seed=seed) for seed in (0, 0, 1)]
    assert sampled[0] == sampled[1] != sampled[2]
    with pytest.raises(ValueError, match="34 tokens"):
        generate_flat(model, prompts, max_new_bytes=30)


def test_weights_are_saved_and_loaded(tmp_path: Path) -> None:
    one, other = flat(0), flat(1)
    tokens = torch.tensor([[1, 2, 3]])
    assert not torch.equal(one(tokens), other(tokens))
    one.save(tmp_path / "flat.safetensors")
    other.load(tmp_path / "flat.safetensors")
    assert torch.equal(one(tokens), other(tokens))
    with pytest.raises(ValueError, match="num_layers=3"):
        flat(num_layers=3).load(tmp_path / "flat.safetensors")


def test_a_missing_transformers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"\.\[baselines\]"):
        FlatModel(
            dataclasses.replace(
                flat_of_equal_compute(CONFIG, Documents([("a", b"b")]).batch, num_layers=1, num_heads=1)
            )
        )
