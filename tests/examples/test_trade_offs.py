"""The recipes of data curves and trade-offs, with tiny settings: what they feed, measure, claim and take up again."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from support.paths import EXAMPLES

from bgpt_fast import BGPTConfig, PackedPatches
from bgpt_fast.tasks.cpu_states import generate
from bgpt_fast.training import TrainConfig

RESULTS = [*EXAMPLES.glob("cpu_states/data_curve.cpu.json"), *EXAMPLES.glob("trade_offs/*.cpu.json")]
pytest.importorskip("transformers")


@pytest.fixture
def data_curve(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLES / "cpu_states"))
    return importlib.import_module("data_curve")


@pytest.fixture
def trade_offs(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLES / "synthetic"))
    monkeypatch.syspath_prepend(str(EXAMPLES / "trade_offs"))
    return importlib.import_module("trade_offs")


def test_sets_are_different_programs_and_contain_smaller_sets(data_curve: ModuleType) -> None:
    machine = {"num_registers": 2, "memory_size": 32, "min_program": 2, "max_program": 3}
    large, small = (data_curve.different_programs(count, 0, machine) for count in (400, 50))
    assert len(set(large.program_hashes().tolist())) == 400
    assert [trace.to_bytes() for trace in large[:50]] == [trace.to_bytes() for trace in small]
    sample = generate(400, seed=0, stream="philox", split="train", **machine)
    assert len(set(sample.program_hashes().tolist())) < 400, "without repeats among them this tests nothing"
    held_out = generate(400, seed=1, stream="philox", split="eval", **machine)
    assert not set(large.program_hashes().tolist()) & set(held_out.program_hashes().tolist())


def test_each_program_of_a_set_comes_once_an_epoch(data_curve: ModuleType) -> None:
    settings = data_curve.small()
    traces = data_curve.different_programs(10, 0, settings.machine)
    source = data_curve.FixedPrograms(traces, settings.model, 4)
    contents = []
    for _ in range(4):
        contents += source.next_batch().to_bytes()
    state, following = source.state_dict(), source.next_batch()
    every = sorted(trace.to_bytes() for trace in traces)
    assert sorted(content for _, content in contents[:10]) == every
    assert sorted(content for _, content in [*contents[10:], *following.to_bytes()])[:10] == every
    assert contents[:6] != contents[10:16]
    other = data_curve.FixedPrograms(traces, settings.model, 4)
    other.load_state_dict(state)
    assert other.next_batch().patches.equal(following.patches)
    with pytest.raises(ValueError, match="another --runs"):
        data_curve.FixedPrograms(traces[:9], settings.model, 4).load_state_dict(state)


def test_a_tiny_curve_is_measured_and_plotted(data_curve: ModuleType, tmp_path: Path) -> None:
    settings = data_curve.small(steps=2)
    training = dataclasses.replace(settings.training, eval_every=0, precision="fp32")
    settings = dataclasses.replace(settings, programs=4, training=training, scored=20)
    held_out = generate(20, seed=1, stream="philox", split="eval", **settings.machine)
    results = [data_curve.run(count, settings, held_out, tmp_path / str(count)) for count in (8, 16)]
    assert [figures["times_round"] for figures in results] == [1.0, 0.5]
    assert results[0]["own_set"] != results[0]["held_out"]
    assert results[0]["held_out"]["copying"] == results[1]["held_out"]["copying"]
    assert data_curve.run(8, settings, held_out, tmp_path / "8")["held_out"] == results[0]["held_out"]
    data_curve.draw(results, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"


def test_claims_of_the_curve_can_fail(data_curve: ModuleType) -> None:
    def figures(changed: float, held_out: float, own: float) -> dict[str, Any]:
        scores = {"changed_bytes_right": changed, "bits_per_byte": held_out}
        return {"held_out": scores, "own_set": {**scores, "bits_per_byte": own}}

    good = [figures(0.2, 1.3, 0.1), figures(0.6, 0.5, 0.4), figures(0.9, 0.1, 0.09)]
    assert all(data_curve.claims(good).values())
    for bad in (
        [good[0], good[2], good[1]],
        [good[0], figures(0.25, 0.1, 0.1)],
        [figures(0.2, 1.3, 1.25), good[2]],
        [good[0], figures(0.9, 0.5, 0.1)],
    ):
        assert not all(data_curve.claims(bad).values())


def test_documents_have_three_kinds_and_splits_share_none(
    trade_offs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("PIL")
    mixed = importlib.import_module("mixed_documents")
    few = list(itertools.islice(mixed._sources(), 80))
    monkeypatch.setattr(mixed, "_sources", lambda: iter(few))
    documents = trade_offs.mixed_documents(100, 20, 480)
    assert {extension for extension, _ in documents.training} == {"txt", "bmp", "bin"}
    counts = documents.describe()
    assert all(counts["training"][kind]["documents"] == 100 for kind in ("txt", "bmp", "bin"))
    assert all(counts["held_out"][kind]["documents"] == 20 for kind in ("txt", "bmp", "bin"))
    assert not set(documents.training) & set(documents.held_out)
    assert documents == trade_offs.mixed_documents(100, 20, 480)
    assert all(content[:2] == b"BM" for extension, content in documents.training if extension == "bmp")
    documents.write_held_out(tmp_path)
    assert len(list(tmp_path.iterdir())) == 60


def tiny(trade_offs: ModuleType) -> Any:
    return dataclasses.replace(
        trade_offs.SMALL,
        hidden_size=16,
        num_heads=2,
        byte_num_heads=2,
        flat_layers=1,
        flat_heads=2,
        splits=((1, 1),),
        text_bytes=64,
        documents=2,
        minutes=1e-6,
        patch_sizes=(4, 32),
        new_bytes=8,
        training=TrainConfig(tensorboard=False, device="cpu", threads=1),
    )


def test_a_tiny_comparison_is_measured_resumed_and_plotted(trade_offs: ModuleType, tmp_path: Path) -> None:
    settings = tiny(trade_offs)
    texts = [("txt", bytes([65 + number]) * 60) for number in range(8)]
    documents = trade_offs.Documents(texts[:6], texts[6:])
    results = trade_offs.run(settings, documents, tmp_path / "runs")
    assert list(results) == ["S4 1+1", "S32 1+1", "flat", "flat, as many bytes"]
    assert all(figures["generated_bytes_a_second"] > 0 for figures in results.values())
    assert results["flat, as many bytes"]["steps"] == results["S4 1+1"]["steps"]
    patches = [results[name]["training_patches_a_second"] for name in ("S4 1+1", "flat")]
    assert patches[0] > 0
    assert patches[1] is None
    again = trade_offs.run(settings, documents, tmp_path / "runs")
    for name in results:
        assert again[name]["bits_per_byte"] == results[name]["bits_per_byte"], name
    trade_offs.draw(results, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"
    rows = trade_offs.table(results).splitlines()
    assert len(rows) == 2 + len(results)
    assert len({row.count("|") for row in rows}) == 1
    assert not trade_offs.claims(results, entropy=0.0)["every model learned more than how frequent bytes are"]


def test_all_models_see_the_same_documents(trade_offs: ModuleType) -> None:
    settings = tiny(trade_offs)
    documents = trade_offs.Documents([("txt", bytes([number]) * 40) for number in range(50)], [])
    models = trade_offs.variants(settings, documents.training)
    contents = [trade_offs.source_of(one, documents, settings).next_batch().to_bytes() for one in models]
    assert all(batch == contents[0] for batch in contents)


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.name)
def test_the_results_beside_the_scripts_hold(path: Path) -> None:
    results = json.loads(path.read_text())
    assert results["command"] == f"python examples/{path.parent.name}/{path.name.split('.')[0]}.py"
    assert all(results["claims"].values())
    assert path.with_suffix(".png").exists()


def test_full_settings_fit_their_data(data_curve: ModuleType, trade_offs: ModuleType) -> None:
    full = data_curve.full()
    longest = generate(1, min_program=255, num_registers=10, memory_size=1024, max_program=255)
    assert PackedPatches.from_bytes([("bin", longest[0].to_bytes())], full.model, truncation="error").num_patches > 300
    models = trade_offs.variants(trade_offs.FULL, [("txt", bytes(8000)), ("bin", bytes(300))])
    by_name = {one.name: one.config for one in models}
    assert by_name["S16 12+3"] == dataclasses.replace(BGPTConfig(), patch_length=502)
    assert np.unique([config.patch_size for config in by_name.values()]).tolist() == [4, 8, 16, 32]
