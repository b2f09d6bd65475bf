"""BGPTFastForCausalLM: the logits, losses and bytes of BGPT and Generator behind the interface of transformers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from conftest import randomised
from torch import Tensor
from torch.nn import functional as F

pytest.importorskip("transformers")
from transformers import GenerationConfig

from bgpt_fast import BGPT, BGPTConfig, Generator, PackedPatches, Prompt
from bgpt_fast.config import EOP
from bgpt_fast.hf import BGPTFastConfig, BGPTFastForCausalLM

TEXTS = [b"hello", b"", b"eight by", b"a"]
"""Of 4-byte patches: a part of one, none, whole ones, one byte."""


@pytest.fixture
def model(tiny_config: BGPTConfig) -> BGPTFastForCausalLM:
    torch.manual_seed(0)
    return BGPTFastForCausalLM(BGPTFastConfig(tiny_config.to_dict(), extension="md"), randomised(BGPT(tiny_config)))


def padded(texts: list[bytes], side: str, width: int = 10) -> dict[str, Tensor]:
    """Rows of bytes with padding on one side; what fills the padding does not matter."""
    ids, mask = torch.full((len(texts), width), 65), torch.zeros(len(texts), width, dtype=torch.int64)
    for row, text in enumerate(texts):
        columns = slice(width - len(text), width) if side == "left" else slice(0, len(text))
        ids[row, columns] = torch.tensor(list(text), dtype=torch.int64)
        mask[row, columns] = 1
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_are_those_of_the_next_byte(model: BGPTFastForCausalLM, side: str) -> None:
    logits = model(**padded(TEXTS, side)).logits
    assert logits.shape == (len(TEXTS), 10, 257)
    for row, text in enumerate(TEXTS):
        batch = PackedPatches.from_bytes([("md", text)], model.model.config)
        alone = model.model.logits(batch).flatten(0, 1)[1 : len(text) + 1]
        start = 10 - len(text) if side == "left" else 0
        torch.testing.assert_close(logits[row, start : start + len(text)], alone, rtol=1e-5, atol=1e-5)
    assert logits.isfinite().all()


def test_another_extension_gives_other_logits(model: BGPTFastForCausalLM) -> None:
    ids = padded(TEXTS, "left")
    torch.testing.assert_close(model(**ids, extension="md").logits, model(**ids).logits)
    assert not torch.allclose(model(**ids, extension="bmp").logits, model(**ids).logits)


def test_loss_and_gradients_are_those_of_the_bytes(model: BGPTFastForCausalLM) -> None:
    """All but each row's first byte, and the end that follows a text that fills its patches."""
    ids = torch.tensor([[*b"hello", EOP, EOP, EOP, EOP], [*b"eight by", EOP]])
    labels = ids.masked_fill((ids == EOP) & ((ids == EOP).cumsum(1) > 1), -100)
    out = model(ids, labels=labels)
    out.loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    batch = PackedPatches.from_bytes([("md", b"hello"), ("md", b"eight by")], model.model.config)
    targets, tokens = model.model.logits(batch).flatten(0, 1), batch.patches[batch.all_target_indices()].flatten()
    positions = [*range(1, 6), *range(13, 21)]  # of documents of 3 target patches each
    loss = F.cross_entropy(targets[positions], tokens[positions].long())
    loss.backward()
    torch.testing.assert_close(out.loss, loss, rtol=1e-5, atol=1e-6)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-6, msg=name)
    assert math.isclose(model(ids, labels=labels, num_items_in_batch=26).loss.item(), loss.item() / 2, rel_tol=1e-5), (
        "as transformers accumulates gradients"
    )


@pytest.mark.parametrize("side", ["left", "right"])
def test_generate_is_the_engine(model: BGPTFastForCausalLM, side: str) -> None:
    inputs = padded(TEXTS, side)
    sequences = model.generate(**inputs, max_new_tokens=7)
    files = Generator(model.model).generate([Prompt("md", text) for text in TEXTS], max_new_bytes=7)
    assert torch.equal(sequences[:, :10], inputs["input_ids"])
    for row, file in zip(sequences[:, 10:].tolist(), files, strict=True):
        assert row == [*file.new_bytes, *[EOP] * (7 - len(file.new_bytes))]
    assert any(len(file.new_bytes) == 7 for file in files)


def test_sampling_follows_torchs_seed(model: BGPTFastForCausalLM) -> None:
    inputs = padded(TEXTS[:2], "left")
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(model.generate(**inputs, do_sample=True, max_new_tokens=20, num_return_sequences=3, top_k=40))
    assert runs[0].shape == (6, 30)
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert len({tuple(row) for row in runs[0].tolist()}) == 6, "copies of a row differ"
    torch.manual_seed(1)
    seed = int(torch.randint(2**63 - 1, ()))
    prompts = [Prompt("md", text) for text in TEXTS[:2] for _ in range(3)]
    files = Generator(model.model).generate(prompts, max_new_bytes=20, temperature=1.0, top_k=40, seed=seed)
    assert [bytes(row[10 : 10 + len(file.new_bytes)]) for row, file in zip(runs[0].tolist(), files, strict=True)] == [
        file.new_bytes for file in files
    ]


def test_without_settings_the_context_is_filled_and_no_likely_byte_is_left_out(model: BGPTFastForCausalLM) -> None:
    files = Generator(model.model).generate([Prompt("md", b"abc")])
    ids = torch.tensor([list(b"abc")])
    ended = [EOP] if files[0].finished else []
    assert model.generate(ids)[0].tolist() == [*files[0].data, *ended]
    torch.manual_seed(0)
    config = GenerationConfig(do_sample=True, temperature=50.0, max_new_tokens=80)
    assert len(set(model.generate(ids, config)[0].tolist())) > 60, "nearly uniform over 257, not over 50"


def test_generate_from_the_extension_alone(model: BGPTFastForCausalLM) -> None:
    [file] = Generator(model.model).generate([Prompt("md")], max_new_bytes=9)
    for arguments in ({}, {"inputs": torch.empty(1, 0, dtype=torch.int64)}):
        row = model.generate(**arguments, max_new_tokens=9, return_dict_in_generate=True).sequences[0].tolist()
        assert bytes(row[: len(file.data)]) == file.data


def test_a_file_that_ends_has_the_end_token(model: BGPTFastForCausalLM) -> None:
    head = model.model.byte_level_decoder.base
    with torch.no_grad():
        head.transformer.ln_f.bias.copy_(100 * head.lm_head.weight[EOP])
    rows = model.generate(**padded([b"abcd", b"ab"], "left", 4), max_new_tokens=5)
    assert rows[:, 4:].tolist() == [[EOP], [EOP]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 4}, r"generate: .*got also \['num_beams'\]"),
        ({"repetition_penalty": 1.2}, "repetition_penalty"),
        ({"logits_processor": [print]}, "logits_processor"),
        ({"streamer": print}, "streamer"),
        ({"stop_strings": ["a"]}, "stop_strings"),
    ],
)
def test_settings_that_the_engine_has_not_are_refused(
    model: BGPTFastForCausalLM, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        model.generate(torch.tensor([[65]]), max_new_tokens=1, **settings)


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        (torch.tensor([[65.0]]), None, "input_ids: expected an int64 tensor"),
        (torch.tensor([65]), None, r"input_ids: expected an int64 tensor \[B, L\]"),
        ([[65]], None, "got list"),
        (torch.tensor([[65, 300]]), None, r"expected tokens 0…256, got 65…300"),
        (torch.tensor([[65, EOP, 65]]), None, "side by side"),
        (torch.tensor([[65, 65, 65]]), torch.tensor([[1, 0, 1]]), "side by side"),
        (torch.tensor([[65, 65]]), torch.tensor([[1]]), r"attention_mask: expected \[1, 2\]"),
        (torch.full((1, 89), 65), None, "expected at most 88 bytes a row, got 89"),
    ],
)
def test_wrong_rows_are_refused(model: BGPTFastForCausalLM, ids: Any, mask: Tensor | None, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        model(ids, attention_mask=mask)
