"""Every part of the engine takes patches of other sizes than 16: packing, training, generation, scoring, evaluation."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from bgpt_fast import BGPT, BGPTConfig, PackedPatches
from bgpt_fast.checkpoint.schema import PATCH_EMBEDDING
from bgpt_fast.config import EOP
from bgpt_fast.data import FileSource
from bgpt_fast.generation import Generator, Prompt
from bgpt_fast.generation.scoring import score
from bgpt_fast.reference import ReferenceBGPT
from bgpt_fast.tasks.evaluation import evaluate_files
from bgpt_fast.training import TrainConfig, Trainer

SIZES = (1, 4, 8, 16, 32, 64, 100)


@pytest.fixture(params=SIZES)
def model(request: pytest.FixtureRequest) -> BGPT:
    torch.manual_seed(request.param)
    S = request.param
    config = BGPTConfig(
        patch_size=S,
        patch_length=3 + 110 // S,
        hidden_size=16,
        patch_num_layers=2,
        byte_num_layers=2,
        num_heads=2,
        byte_num_heads=4,
        position_init_std=0.3,
        byte_init_std=0.3,
    )
    return BGPT(config).eval()


def documents(seed: int = 0) -> list[tuple[str, bytes]]:
    stream = random.Random(seed)
    return [("a", stream.randbytes(size)) for size in (0, 1, 32, 33, 110)]


def test_packing_loss_and_gradients_are_the_references(model: BGPT) -> None:
    batch = PackedPatches.from_bytes(documents(), model.config, truncation="error")
    assert batch.to_bytes() == documents()
    reference = ReferenceBGPT(model.config).eval()
    reference.load_state_dict(model.state_dict())
    ours, theirs = model(batch), reference(batch)
    torch.testing.assert_close(ours.loss, theirs.loss, rtol=1e-5, atol=0)
    ours.loss.backward()
    theirs.loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    gradients[PATCH_EMBEDDING] = gradients[PATCH_EMBEDDING].t()
    expected = dict(reference.named_parameters())
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name].grad, rtol=1e-3, atol=1e-6, msg=name)
    assert model.log_likelihood(batch).num_bytes.tolist() == [len(content) for _, content in documents()]


def test_generation_takes_what_is_likeliest_and_batches_change_nothing(model: BGPT) -> None:
    prompts = [Prompt(extension, content) for extension, content in documents(1)[:4]]
    for precision in ("float32", "bfloat16", "int8"):
        generator = Generator(model, precision=precision)
        greedy = generator.generate(prompts, max_new_bytes=40)
        sampled = generator.generate(prompts, max_new_bytes=40, temperature=1.0)
        assert [generator.generate([one], max_new_bytes=40)[0].data for one in prompts] == [one.data for one in greedy]
        assert [one.data for one in sampled] != [one.data for one in greedy]
        scores = score(model, [("a", one.data) for one in greedy], precision=precision)
        for one, logits in zip(greedy, scores, strict=True):
            tokens = [*one.data, *([EOP] if one.finished else [])]
            assert logits.argmax(-1)[one.prompt_bytes : len(tokens)].tolist() == tokens[one.prompt_bytes :]


def test_scoring_is_the_models(model: BGPT) -> None:
    [content] = [content for _, content in documents() if len(content) == 33]
    batch = PackedPatches.from_bytes([("a", content)], model.config)
    [logits] = score(model, [("a", content)])
    with torch.no_grad():
        expected = model.logits(batch).flatten(0, 1)[: len(content) + 1]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_training_checkpoints_and_evaluation(model: BGPT, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for number, (_, content) in enumerate(documents()):
        (tmp_path / "data" / f"{number}.a").write_bytes(content)
    source = FileSource([str(tmp_path / "data")], model.config, model.config.patch_length, split="all")
    settings = TrainConfig(steps=2, optimizer="muon", device="cpu", threads=1, tensorboard=False)
    done = Trainer(model, source, settings, tmp_path / "run", show_progress=False).train()
    loaded = BGPT.from_pretrained(done.checkpoint_path)
    assert loaded.config == model.config
    report = evaluate_files(loaded, tmp_path / "data", baselines=False)
    contents = [document for document in documents() if document[1]]
    likelihood = model.log_likelihood(PackedPatches.from_bytes(contents, model.config))
    assert report.total.nats == pytest.approx(float(likelihood.nats.sum()), rel=1e-5)
    assert len(report.by_byte) == model.config.patch_size
