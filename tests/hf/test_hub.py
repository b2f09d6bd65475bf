"""Models go to a hub and come back: bgpt_fast's own classes, transformers' Auto classes, and remote code."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.hub import TOKEN, LocalHub
from support.paths import ROOT

pytest.importorskip("transformers")
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from bgpt_fast import BGPT, BGPTConfig, BGPTForClassification
from bgpt_fast.checkpoint import CheckpointError, ModelCard, ModelTask
from bgpt_fast.checkpoint.save import save_released
from bgpt_fast.hf import BGPTFastForCausalLM


@pytest.fixture(autouse=True)
def new_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers keeps one client, with the address of the hub of the test before."""
    monkeypatch.setattr("transformers.utils.hub._hf_api", None)


def is_same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def changed(model: BGPT) -> BGPT:
    other = BGPT(model.config)
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        other.byte_level_decoder.base.transformer.wpe.weight.mul_(-50.0)
    return other


def test_pushed_models_come_back_by_revision(hub: LocalHub, tiny_model: BGPT) -> None:
    tiny_model.task = ModelTask.of("generation", extensions=["bmp"])
    address = tiny_model.push_to_hub("owner/mine")
    assert address.startswith(f"{hub.url}/owner/mine/commit/")
    first = address.rpartition("/")[2]
    other = changed(tiny_model)
    other.push_to_hub("owner/mine", revision="wide")
    assert is_same(BGPT.from_pretrained("owner/mine"), tiny_model)
    assert is_same(BGPT.from_pretrained("owner/mine", revision="wide"), other)
    other.push_to_hub("owner/mine", commit_message="better")
    assert is_same(BGPT.from_pretrained("owner/mine"), other), "the newest"
    assert is_same(BGPT.from_pretrained("owner/mine", revision=first), tiny_model)
    loaded = AutoModelForCausalLM.from_pretrained("owner/mine", revision=first)
    assert isinstance(loaded, BGPTFastForCausalLM)
    assert is_same(loaded.model, tiny_model)
    assert loaded.config.extension == "bmp", "of the files that it was trained on"
    for source in (BGPT, AutoModelForCausalLM):
        with pytest.raises((CheckpointError, OSError), match="nowhere"):
            source.from_pretrained("owner/mine", revision="nowhere")


def test_what_is_cached_loads_without_the_hub(hub: LocalHub, tiny_model: BGPT, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_model.push_to_hub("owner/mine")
    save_released(hub.root / "owner" / "lone" / "weights.pth", tiny_model.config, tiny_model.state_dict())
    save_released(hub.branch("owner/lone", "other") / "w.pth", tiny_model.config, changed(tiny_model).state_dict())
    for revision in (None, "other"):
        BGPT.from_pretrained("owner/lone", revision=revision)
    BGPT.from_pretrained("owner/mine")
    shutil.rmtree(hub.root)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert is_same(BGPT.from_pretrained("owner/mine"), tiny_model)
    assert is_same(BGPT.from_pretrained("owner/lone"), tiny_model)
    assert is_same(BGPT.from_pretrained("owner/lone", revision="other"), changed(tiny_model))
    lone = BGPTFastForCausalLM.from_pretrained("owner/lone", dtype="bfloat16", extension="md")
    assert (lone.dtype, lone.config.extension) == (torch.bfloat16, "md")


def test_both_files_are_of_one_commit(hub: LocalHub, tiny_model: BGPT, monkeypatch: pytest.MonkeyPatch) -> None:
    """A push between the two downloads must not mix them."""
    import huggingface_hub

    tiny_model.push_to_hub("owner/mine")
    download = huggingface_hub.hf_hub_download

    def pushed_after(repository: str, name: str, **options: object) -> str:
        path = download(repository, name, **options)  # type: ignore[arg-type]
        if name == "config.json":
            changed(tiny_model).save_pretrained(hub.root / "owner" / "mine")
        return path

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", pushed_after)
    assert is_same(BGPT.from_pretrained("owner/mine"), tiny_model)


def test_models_of_transformers_push_and_save(hub: LocalHub, tiny_model: BGPT, tmp_path: Path) -> None:
    tiny_model.push_to_hub("owner/mine", extension="wav")
    model = AutoModelForCausalLM.from_pretrained("owner/mine", dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "saved", push_to_hub=True, repo_id="owner/copy", max_shard_size="1GB")
    for source in (tmp_path / "saved", "owner/copy"):
        assert is_same(BGPT.from_pretrained(source), model.model)
        assert AutoConfig.from_pretrained(source).extension == "wav"
        assert AutoTokenizer.from_pretrained(source)("é").input_ids == [0xC3, 0xA9]


def test_a_card_of_the_repository_stays_unless_one_is_passed(hub: LocalHub, tiny_model: BGPT) -> None:
    card = hub.root / "owner" / "mine" / "README.md"
    tiny_model.push_to_hub("owner/mine")
    assert 'BGPT.from_pretrained("owner/mine")' in card.read_text()
    card.write_text("my own")
    tiny_model.push_to_hub("owner/mine")
    assert card.read_text() == "my own"
    tiny_model.push_to_hub("owner/mine", card=ModelCard("owner/mine", licence="mit", scores={"bits per byte": 1.5}))
    assert "| bits per byte | 1.5 |" in card.read_text()
    assert "license: mit\n" in card.read_text()


def test_a_missing_token_is_named(hub: LocalHub, tiny_model: BGPT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(CheckpointError, match=r"push_to_hub: owner/mine: expected a repository .*401"):
        tiny_model.push_to_hub("owner/mine")
    with pytest.raises(CheckpointError, match=r"push_to_hub: a b/c"):
        tiny_model.push_to_hub("a b/c", token=TOKEN)
    assert not hub.root.exists()


def test_a_revision_is_of_the_hub(tmp_path: Path, tiny_model: BGPT) -> None:
    tiny_model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="revision: expected None"):
        BGPT.from_pretrained(tmp_path, revision="main")


REMOTE = """
import sys
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, pipeline

assert "bgpt_fast" not in sys.modules
for source, revision in ((sys.argv[1], None), ("owner/mine", None), ("owner/mine", "second")):
    options = {"trust_remote_code": True, **({"revision": revision} if revision else {})}
    model = AutoModelForCausalLM.from_pretrained(source, **options)
    assert type(model).__module__ == "bgpt_fast.hf.causal_lm", type(model)
    tokenizer = AutoTokenizer.from_pretrained(source, **options)
    ids = model.generate(**tokenizer("Once", return_tensors="pt"), max_new_tokens=8)
    pipe = pipeline("text-generation", model=source, **options)
    texts = pipe("Once", max_new_tokens=8, do_sample=False)
    assert texts[0]["generated_text"] == tokenizer.decode(ids[0], skip_special_tokens=True), texts
    print(ids[0].tolist())
assert AutoConfig.from_pretrained(sys.argv[1], trust_remote_code=True).extension == "txt"
classifier = AutoModelForSequenceClassification.from_pretrained(sys.argv[2], trust_remote_code=True)
assert classifier.config.label2id == {"a": 0, "b": 1}
"""


def test_remote_code_in_a_process_that_knows_nothing(hub: LocalHub, tiny_model: BGPT, tmp_path: Path) -> None:
    """Folder and hub, by trust_remote_code=True alone; a second revision has other weights."""
    tiny_model.save_pretrained(tmp_path / "model", hf=True)
    tiny_model.push_to_hub("owner/mine")
    changed(tiny_model).push_to_hub("owner/mine", revision="second")
    BGPTForClassification(tiny_model.config, {"a": 0, "b": 1}).save_pretrained(tmp_path / "classes", hf=True)
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", REMOTE, str(tmp_path / "model"), str(tmp_path / "classes")]
    done = subprocess.run(command, env=environment, cwd=tmp_path / "empty", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    local, first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert local == first != second
    assert list((tmp_path / "home" / "modules").rglob("modeling_bgpt_fast.py")), "the remote code ran"


def test_remote_code_without_bgpt_fast_says_so(tiny_model: BGPT, tmp_path: Path) -> None:
    tiny_model.save_pretrained(tmp_path / "model", hf=True)
    blocked = "import sys; sys.modules['bgpt_fast'] = None\n"
    program = blocked + "from transformers import AutoConfig as A; A.from_pretrained('model', trust_remote_code=True)"
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "expected bgpt_fast and transformers 5, which this model needs" in done.stderr


def test_writing_needs_no_transformers(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['transformers'] = None\n"
        "from bgpt_fast import BGPT, BGPTConfig\n"
        "config = BGPTConfig(4, 9, 8, 1, 1, num_heads=1)\n"
        "BGPT(config).save_pretrained('model', hf=True); BGPT.from_pretrained('model')"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", program], env=environment, cwd=tmp_path, check=True)
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert names == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "modeling_bgpt_fast.py",
        "tokenizer_config.json",
    }


def test_the_card_tells_what_the_model_is(tiny_config: BGPTConfig, tmp_path: Path) -> None:
    card = ModelCard("me/tunes", "cc0-1.0", "12 files, 173 B", "2 steps", {"bits per byte, held out": 1.9375})
    model = BGPT(tiny_config)
    model.task = ModelTask.of("generation", extensions=["abc"])
    model.save_pretrained(tmp_path, hf=True, card=card)
    text = (tmp_path / "README.md").read_text()
    for part in ("license: cc0-1.0", f"{model.num_parameters():,}", "12 files, 173 B", "2 steps", "1.9375", ".abc"):
        assert part in text
    (tmp_path / "README.md").write_text("my own")
    model.save_pretrained(tmp_path, hf=True)
    assert (tmp_path / "README.md").read_text() == "my own"
