"""The synthetic recipes: their floors are what they say, and (slow) the smallest run of each keeps its claim."""

from __future__ import annotations

import importlib
import json
import math
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
from support.paths import EXAMPLES

FOLDER = EXAMPLES / "synthetic"
SMALLEST = {"patterns": "alternating", "cross_patch": "delay_1", "random_bits": "coin"}


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module(request.param)


def check_floor(rule: object, documents: int) -> None:
    """The frequencies of a small rule's documents are 2^−bits."""
    counts_by_content = Counter(rule.document(1, number)[1] for number in range(documents))  # type: ignore[attr-defined]
    for content, count in counts_by_content.items():
        expected = documents * 2.0 ** -rule.bits(content)  # type: ignore[attr-defined]
        assert abs(count - expected) < 5 * math.sqrt(expected) + 1


@pytest.mark.parametrize("recipe", ["patterns"], indirect=True)
def test_patterns(recipe: ModuleType) -> None:
    check_floor(recipe.alternating(3), 200)
    rule = recipe.repeats(8)
    assert rule.bits(b"gggggggg") == pytest.approx(-math.log2((1 / 4 + 1 / 16 + 1 / 256 + 1 / 65536) / 4))
    assert rule.bits(b"acgtacgg") == pytest.approx(2 + 16)
    counts_by_content = Counter(rule.document(1, number)[1] for number in range(4000))
    for content in (b"aaaaaaaa", b"tttttttt", b"acacacac"):
        expected = 4000 * 2.0 ** -rule.bits(content)
        assert abs(counts_by_content[content] - expected) < 5 * math.sqrt(expected)


@pytest.mark.parametrize("recipe", ["cross_patch"], indirect=True)
def test_cross_patch(recipe: ModuleType) -> None:
    for k in recipe.DISTANCES:
        extension, content = recipe.delay_line(k, 4).document(1, 5)
        letters = content[::4]
        assert extension == f"k{k}"
        assert letters[k:] == letters[: len(letters) - k][: recipe.COPIED]
        assert len(letters) == k + recipe.COPIED
        assert content[1::4] == content[2::4] == content[3::4] == bytes(len(letters))
        assert recipe.delay_line(k, 4).bits(content) == 4 * k
    counts_by_content = set()
    for number in range(100):
        extension, content = recipe.recall(4).document(1, number)
        k = int(extension[1:])
        assert len(content) == 4 * (k + 7)
        assert content[:16] == content[:4] * 4 == content[-16:]
        assert content[16:-16] == bytes(4 * (k - 1))
        counts_by_content.add(k)
    assert counts_by_content == set(recipe.DISTANCES)
    check_floor(recipe.delay_line(1, 2), 500)
    for experiment in recipe.experiments().values():
        longest = max(len(experiment.rule.document(0, number)[1]) for number in range(60))
        assert longest // experiment.model.patch_size + 2 == experiment.model.patch_length


@pytest.mark.parametrize("recipe", ["random_bits"], indirect=True)
def test_random_bits(recipe: ModuleType) -> None:
    check_floor(recipe.flipping(1), 5000)
    check_floor(recipe.coin(1), 5000)
    entropy = -0.1 * math.log2(0.1) - 0.9 * math.log2(0.9)
    for rule in (recipe.flipping(2000), recipe.coin(2000)):
        assert rule.bits(rule.document(1, 0)[1]) == pytest.approx(16_000 * entropy, rel=0.05)
    stream = random.Random(0)
    assert recipe.flipping(100).bits(stream.randbytes(100)) > 1000


@pytest.mark.parametrize("recipe", ["random_bits"], indirect=True)
def test_held_out_documents_are_not_in_training(recipe: ModuleType) -> None:
    documents = importlib.import_module("synthetic_documents")
    rule = recipe.coin(200)
    training = {rule.document(0, number) for number in range(50)}
    assert len(training) == 50
    assert not training & {rule.document(1, number) for number in range(50)}
    source = documents.SyntheticDocuments(rule, documents.SMALL, 3)
    first, state = source.next_batch(), source.state_dict()
    second = source.next_batch()
    source.load_state_dict(state)
    assert source.next_batch().patches.equal(second.patches)
    assert first.to_bytes()[0] == rule.document(0, 0)


@pytest.mark.parametrize("recipe", ["cross_patch"], indirect=True)
@pytest.mark.parametrize(
    ("words", "ran", "output_name"),
    [
        ([], ["delay_1", "delay_4", "delay_16", "recall"], "recipe.cpu.json"),
        (["--only", "recall"], ["recall"], None),
        (["--full"], ["delay_1", "delay_4", "delay_16", "delay_64", "delay_256", "recall"], "recipe.full.json"),
        (["--full", "--only", "delay_256"], ["delay_256"], None),
    ],
)
def test_all_experiments_run_by_default_and_a_partial_run_replaces_no_results(
    recipe: ModuleType,
    words: list[str],
    ran: list[str],
    output_name: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    documents = importlib.import_module("synthetic_documents")
    names: list[str] = []

    def run(experiment: object, folder: Path) -> dict[str, object]:
        names.append(folder.name)
        return {"bits_per_byte": 0.0, "floor_bits_per_byte": 0.0, "excess_bits_per_byte": 0.0, "holds": True}

    monkeypatch.setattr(documents, "run", run)
    monkeypatch.setattr("sys.argv", ["recipe.py", *words])
    script = str(tmp_path / "recipe.py")
    assert documents.main(script, "", recipe.experiments(), recipe.full_experiments()) == 0
    assert names == ran
    assert [path.name for path in tmp_path.iterdir()] == ([output_name] if output_name else [])


@pytest.mark.parametrize("recipe", ["cross_patch"], indirect=True)
def test_experiments_of_the_full_model_are_named(
    recipe: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    documents = importlib.import_module("synthetic_documents")
    monkeypatch.setattr("sys.argv", ["recipe.py", "--only", "delay_64"])
    with pytest.raises(SystemExit):
        documents.main("recipe.py", "", recipe.experiments(), recipe.full_experiments())
    assert "got delay_64, which take --full" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.cpu.json")), ids=lambda path: path.name)
def test_the_results_beside_the_scripts_hold(path: Path) -> None:
    results = json.loads(path.read_text())
    assert results["command"] == f"python examples/synthetic/{path.name.split('.')[0]}.py"
    for experiment, figures in results["experiments"].items():
        assert figures["holds"], experiment


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", SMALLEST)
def test_the_smallest_keeps_its_claim(name: str, tmp_path: Path) -> None:
    words = [sys.executable, str(FOLDER / f"{name}.py"), "--only", SMALLEST[name], "--output", str(tmp_path / "o.json")]
    environment = {**os.environ, "PYTHONPATH": str(FOLDER.parent.parent), "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((tmp_path / "o.json").read_text())["experiments"][SMALLEST[name]]
    assert figures["holds"]
    assert -0.01 < figures["excess_bits_per_byte"] < 0.05
    assert figures["bits_per_byte"] < figures["baselines_bits_per_byte"]["gzip"]
