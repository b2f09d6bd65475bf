"""BGPTFastTokenizer: text ⇄ bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("transformers")

from bgpt_fast.config import EOP
from bgpt_fast.hf import BGPTFastTokenizer

TOKENIZER = BGPTFastTokenizer()


@given(st.text())
def test_text_is_its_bytes_and_back(text: str) -> None:
    ids = TOKENIZER(text).input_ids
    assert ids == list(text.encode())
    assert TOKENIZER.decode(ids) == text
    assert TOKENIZER.decode([*ids, EOP, EOP], skip_special_tokens=True) == text


@given(st.binary())
def test_bytes_that_are_no_text_are_decoded(data: bytes) -> None:
    assert TOKENIZER.decode(list(data)) == data.decode("utf-8", "replace")


def test_the_end_is_no_text() -> None:
    assert len(TOKENIZER) == 257
    assert (TOKENIZER.eos_token_id, TOKENIZER.pad_token_id) == (EOP, EOP)
    assert TOKENIZER("<eop>").input_ids == list(b"<eop>")
    assert TOKENIZER.decode([65, EOP]) == "A<eop>"


def test_batches_are_padded_on_the_left() -> None:
    batch = TOKENIZER(["é", "abc"], padding=True, return_tensors="pt")
    assert batch.input_ids.tolist() == [[EOP, 0xC3, 0xA9], [97, 98, 99]]
    assert batch.attention_mask.tolist() == [[0, 1, 1], [1, 1, 1]]


def test_saving_and_loading(tmp_path: object) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    loaded = BGPTFastTokenizer.from_pretrained(tmp_path)
    assert loaded("é <eop>").input_ids == list("é <eop>".encode())
    assert len(loaded) == 257
