"""The media recipe: its data has labels and does not leak; a tiny run of it goes through on scikit-learn's digits."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from support.paths import EXAMPLES

from bgpt_fast.config import BGPTConfig
from bgpt_fast.data import label_of

FOLDER = EXAMPLES / "modalities"


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("media_data")


@pytest.fixture
def recipe(data: ModuleType) -> ModuleType:
    return importlib.import_module("modalities")


def contents(paths: list[str]) -> set[bytes]:
    return {Path(path).read_bytes() for path in paths}


def check(labelled: object, classes: int) -> None:
    """All classes are there, on both sides, and no content is on both."""
    train, test, labels = labelled.train, labelled.test, labelled.labels  # type: ignore[attr-defined]
    assert len(labels) == classes
    assert {label_of(path) for path in train} == {label_of(path) for path in test} == set(labels)
    assert len(contents(train)) == len(train)
    assert not contents(train) & contents(test)


def tiny(recipe: ModuleType, data: ModuleType) -> object:
    settings = recipe.small()
    sizes = data.Sizes(image_side=8, digits=200, labelled=(1, 4, 1, 1), held_out=2, scored=5)
    model = BGPTConfig(patch_length=18, hidden_size=16, patch_num_layers=1, byte_num_layers=1, num_heads=1)
    return dataclasses.replace(
        settings,
        sizes=sizes,
        model=model,
        patches_per_batch=72,
        pre_training=dataclasses.replace(settings.pre_training, steps=2, targets_per_step=16),
        epochs={"image": 0.2},
        cnn_steps=5,
    )


def test_a_tiny_run_on_digits(recipe: ModuleType, data: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("PIL")
    settings = tiny(recipe, data)
    media = data.prepare(("image",), settings.sizes, tmp_path / "cpu/media")  # type: ignore[attr-defined]
    check(media.tasks["image"], 10)
    assert not contents(media.scored["image"]) & contents(data.files_of(media.pre_training["image"]))
    [size] = {len(content) for content in contents(media.tasks["image"].train)}
    assert size == 54 + 8 * 8 * 3
    result = recipe.run(("image",), settings, tmp_path / "cpu")
    assert result["claims"] == {"image: fewer bits than gzip behind the training files": False}
    assert 0 < result["pre_training"]["image"]["held_out"]["image"]["bits_per_byte"] < 10
    for name in ("none", "image"):
        assert result["classification"][name]["image"]["documents"] == result["documents"]["image"]["test"]
    assert {"cnn", "gradient-boosting", "nearest-centroid"} < set(result["classified_by_others"]["image"])
    log = tmp_path / "cpu/pre_training/image/log.jsonl"
    before = log.stat().st_mtime_ns
    assert recipe.run(("image",), settings, tmp_path / "cpu") == result
    assert log.stat().st_mtime_ns == before, "what is done is not done again"
    with pytest.raises(ValueError, match="choose another --runs"):
        recipe.run(("image",), dataclasses.replace(settings, epochs={"image": 1}), tmp_path / "cpu")  # type: ignore[type-var]


def test_a_missing_package_is_named(data: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("sklearn", "PIL", "soundfile", "soxr"):
        pytest.importorskip(package)
    monkeypatch.setattr(data, "FORTUNES", tmp_path / "nowhere")
    monkeypatch.setattr(data, "SOUNDS", tmp_path / "nowhere")
    with pytest.raises(data.MissingDataError, match="apt-get install fortunes"):
        data.prepare(("text",), data.Sizes(), tmp_path / "out")
    with pytest.raises(data.MissingDataError, match="apt-get install asterisk-core-sounds-en-wav"):
        data.prepare(("audio",), data.Sizes(), tmp_path / "out")
    # Before anything is trained that would be held against it.
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(data.MissingDataError, match=r"text: no sklearn: pip install '\.\[image,baselines\]'"):
        data.prepare(("text",), data.Sizes(), tmp_path / "out")


def test_the_script_names_a_missing_package(
    data: ModuleType,
    recipe: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.setattr(data, "FORTUNES", tmp_path / "nowhere")
    output = tmp_path / "made.json"
    monkeypatch.setattr("sys.argv", ["modalities.py", "--modalities", "text", "--output", str(output)])
    assert recipe.main() == 2
    assert "nothing was run: text: expected fortunes" in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.parametrize(("words", "results"), [([], ["modalities.cpu.json"]), (["--modalities", "image"], [])])
def test_a_partial_run_replaces_no_results(
    recipe: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], results: list[str]
) -> None:
    monkeypatch.setattr(recipe, "run", lambda *_: {"claims": {}})
    monkeypatch.setattr(recipe, "__file__", str(tmp_path / "modalities.py"))
    monkeypatch.setattr("sys.argv", ["modalities.py", *words])
    assert recipe.main() == 0
    assert [path.name for path in tmp_path.iterdir()] == results


def test_audio_and_its_spectrograms(data: ModuleType, tmp_path: Path) -> None:
    for package in ("sklearn", "PIL", "soundfile", "soxr"):
        pytest.importorskip(package)
    languages = [one for one in data.LANGUAGES if list(data.SOUNDS.glob(f"{one}_*/*.wav"))]
    if len(languages) < 2:
        pytest.skip("needs Debian's asterisk-core-sounds-en-wav and another language")
    media = data.prepare(("audio",), data.Sizes(recordings=12, labelled=(1, 1, 5, 5), held_out=4), tmp_path)
    for task, extension in (("audio", "wav"), ("spectrogram", "bmp")):
        check(media.tasks[task], len(languages))
        assert set(media.tasks[task].labels) == {f"{language}.{extension}" for language in languages}
    prompts = {}
    for side in ("train", "test"):
        names = [Path(path).name.partition("_")[2] for path in data.files_of(tmp_path / f"audio/{side}/audio")]
        prompts[side] = {name.rsplit("-", 2)[0] for name in names}
    assert len(prompts["train"]) > len(prompts["test"]) > 0
    assert not prompts["train"] & prompts["test"], "a prompt is on one side in all languages"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.cpu.json")), ids=lambda path: path.name)
def test_the_results_beside_the_script_hold(path: Path, recipe: ModuleType) -> None:
    result = json.loads(path.read_text())
    assert result["command"] == "python examples/modalities/modalities.py"
    assert all(result["claims"].values())
    assert result["claims"] == recipe.claims(result)
    expected = {"modalities": recipe.MODALITIES, **dataclasses.asdict(recipe.small())}
    assert result["settings"] == recipe.as_json(expected), "of other settings than the script's"
