"""The recipe of whole tunes: generated ABC is valid and repeats by seed, batches go on, scores count what they say."""

from __future__ import annotations

import importlib
import json
import re
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from support.paths import EXAMPLES

from bgpt_fast import BGPT, BGPTConfig
from bgpt_fast.config import EOP
from bgpt_fast.tasks.conversion_likelihood import evaluate_pairs
from bgpt_fast.tasks.music import abc_to_midi, read_notes

FOLDER = EXAMPLES / "music" / "whole_tunes"
TINY = BGPTConfig(
    patch_size=4, patch_length=400, hidden_size=16, patch_num_layers=1, byte_num_layers=1, num_heads=2, byte_num_heads=2
)
STAGES = [
    {"name": "bars", "batches": 2, "patches": 200, "documents": {"plain 1": 1}, "backward": 0.5},
    {"name": "whole", "batches": 0, "documents": {"2": 1, "real": 1}, "backward": 0.5},
]
USUAL = (
    "Assuming repeat",
    "Ignoring reserved character `",
    "replacing |: with double repeat",
    "time units while the time",
)
"""Warnings about what the real tunes do too: repeats that are not opened, backticks, pickups."""
pytestmark = pytest.mark.skipif(shutil.which("abc2midi") is None, reason="abc2midi is not installed")


@pytest.fixture
def generator(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("tune_generator")


@pytest.fixture
def pairs(generator: ModuleType) -> ModuleType:
    return importlib.import_module("tune_pairs")


@pytest.fixture
def source_of(pairs: ModuleType, tmp_path: Path) -> Any:
    real = tmp_path / "real"
    real.mkdir()
    for number, pair in enumerate(pairs.make_chunk(9, 0, "1")[:5]):
        (real / f"{number}.abc").write_bytes(pair.abc)
        (real / f"{number}.mid").write_bytes(pair.midi)
    module = importlib.import_module("tune_source")
    return lambda **options: module.TuneSource(
        TINY,
        **{"patches_per_batch": 400, "stages": STAGES, "real": real, "cache": tmp_path / "cache", "seed": 3} | options,
    )


def test_tunes_parse(generator: ModuleType, pairs: ModuleType) -> None:
    tunes = [generator.tune(5, number) for number in range(300)]
    tunes += [generator.tune(5, number, bars) for number in range(40) for bars in (1, 2, 8)]
    tunes += [generator.tune(5, number, 2, plain=True) for number in range(40)]
    files, printed = pairs.convert_all(tunes)
    assert all(len(read_notes(midi)) >= 1 for midi in files)
    complaints = re.findall(r"^(?:Error|Warning) in line-char \S+ : .*$", printed, re.MULTILINE)
    assert [text for text in complaints if not any(usual in text for usual in USUAL)] == []


def test_a_chunk_is_what_single_tunes_are(generator: ModuleType, pairs: ModuleType, tmp_path: Path) -> None:
    chunk = pairs.cached_chunk(tmp_path, 1, 0, "2")
    assert [pair.abc.decode() for pair in chunk] == [generator.tune(1, number, 2) for number in range(pairs.TUNES)]
    assert all(abc_to_midi(pair.abc).midi == pair.midi for pair in chunk[:8])
    assert pairs.cached_chunk(tmp_path, 1, 0, "2") == chunk
    assert pairs.make_chunk(2, 0, "2") != chunk
    assert not {pair.abc for pair in chunk} & {pair.abc for pair in pairs.make_chunk(1, 1, "2")}


def test_a_whole_tune_is_as_long_as_real_ones(generator: ModuleType, pairs: ModuleType) -> None:
    tunes = [generator.tune(6, number) for number in range(400)]
    files, _ = pairs.convert_all(tunes)
    assert 210 < sum(map(len, tunes)) / len(tunes) < 310
    assert 1300 < sum(map(len, files)) / len(files) < 1900
    assert len({text.split("K:")[1].split("\n")[0] for text in tunes}) > 12


def test_batches_go_on(source_of: Any) -> None:
    source = source_of()
    batches = [source.next_batch() for _ in range(2)]
    assert all(batch.num_patches <= 200 for batch in batches)
    state = json.loads(json.dumps(source.state_dict()))
    expected = [source.next_batch() for _ in range(4)]
    other = source_of()
    other.load_state_dict(state)
    for batch in expected:
        again = other.next_batch()
        assert torch.equal(batch.patches, again.patches)
        assert torch.equal(batch.target_indices(), again.target_indices())
    assert other.state_dict() == source.state_dict()
    assert source.stage["name"] == "whole"
    assert source.state_dict()["documents"]["real"] > 0


def test_the_target_alone_is_in_the_loss(source_of: Any) -> None:
    batch = source_of().next_batch()
    targets = set(batch.target_indices().tolist())
    extensions = set()
    for start, stop in zip(batch.cu_seqlens[:-1].tolist(), batch.cu_seqlens[1:].tolist(), strict=True):
        names = [bytes(b for b in row if b != EOP) for row in batch.patches[start:stop].tolist()]
        second = next(place for place in range(1, stop - start) if names[place] in (b"abc", b"mid"))
        extensions.add(names[second])
        counted = [place for place in range(stop - start) if start + place in targets]
        assert counted == list(range(second + 1, stop - start))
    assert extensions == {b"abc", b"mid"}


def test_track_lengths_are_counted_apart(pairs: ModuleType, tmp_path: Path) -> None:
    scores = importlib.import_module("evaluate")
    pair = pairs.make_chunk(4, 0, "1")[0]
    assert b"".join(pair.midi[place : place + 1] for place in scores.track_lengths(pair.midi)) == (
        len(pair.midi) - 22
    ).to_bytes(4, "big")
    paths = tmp_path / "a.abc", tmp_path / "a.mid"
    for path, content in zip(paths, pair, strict=True):
        path.write_bytes(content)
    torch.manual_seed(0)
    model = BGPT(TINY).eval()
    (file,) = evaluate_pairs(model, tmp_path, "abc->mid", baselines=False)["abc->mid"].files
    nats = scores.track_length_nats(model, paths)
    # An untrained model spends nearly as much on each position.
    assert nats == pytest.approx(4 * file.scores.nats / file.scores.positions, rel=0.1)


def test_the_recipe_is_valid(source_of: Any) -> None:
    train = importlib.import_module("train")
    for full in (False, True):
        recipe = train.read_recipe(FOLDER / "recipe.json", full=full)
        config = BGPTConfig(**recipe["model"])
        train.TrainConfig(**recipe["training"])
        assert recipe["patches_per_batch"] >= config.patch_length
        assert recipe["stages"][-1]["documents"]["real"] > 0


def test_a_run_learns_from_other_tunes_than_it_is_scored_on(
    generator: ModuleType, pairs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = importlib.import_module("train")
    tunes = [generator.tune(7, number, 1).replace("X:1\n", f"X:{number}\nT:Tune {number}\n") for number in range(40)]
    (tmp_path / "tunes.abc").write_text("\n".join(tunes))
    monkeypatch.setattr(train, "irish_collections", lambda: [str(tmp_path / "tunes.abc")])
    recipe = train.read_recipe(FOLDER / "recipe.json", full=False)
    recipe |= {"model": TINY.to_dict(), "patches_per_batch": 400, "stages": STAGES, "watched_pairs": 2}
    recipe["training"] |= {"steps": 2, "max_minutes": 0, "schedule_by": "steps", "precision": "fp32"}
    trainer = train.trainer_of(recipe, tmp_path / "run")
    evaluation = trainer.train().evaluation
    assert evaluation["abc->mid_bits_per_byte"] > 0
    held_out = {path.read_bytes() for path in (tmp_path / "run/real/test").iterdir()}
    real = {file for pair in trainer.source._real for file in pair}
    assert len(real) + len(held_out) == 80
    assert len(held_out) >= 2
    assert not real & held_out
    importlib.import_module("export").export(tmp_path / "run/run", tmp_path / "snapshot")
    assert BGPT.from_pretrained(tmp_path / "snapshot").task == trainer.source.task
    assert '"eval"' in (tmp_path / "snapshot/curve.jsonl").read_text()
