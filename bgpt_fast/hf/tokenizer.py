"""BGPTFastTokenizer: text as its bytes in UTF-8, without a vocabulary file."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import AddedToken, PreTrainedTokenizer

from bgpt_fast.checkpoint.hugging_face import EOP_TEXT
from bgpt_fast.config import EOP


class BGPTFastTokenizer(PreTrainedTokenizer):
    """Text → token ids 0…255, its bytes in UTF-8; end-of-file and padding are the token 256.

    Text that spells the end token ("<eop>") is five bytes, never that token. Decoding replaces bytes that are no UTF-8
    by U+FFFD; for files other than text use the ids, which are the bytes.
    """

    model_input_names: ClassVar[list[str]] = ["input_ids", "attention_mask"]  # type: ignore[misc]
    padding_side = "left"

    def __init__(self, **kwargs: Any) -> None:
        end = AddedToken(EOP_TEXT, special=True, normalized=False)
        self._added_tokens_decoder = {EOP: end}
        kwargs = {"split_special_tokens": True, "clean_up_tokenization_spaces": False, **kwargs}
        super().__init__(**{**kwargs, "eos_token": end, "pad_token": end})

    @property
    def vocab_size(self) -> int:
        """256: the bytes, without the end token."""
        return EOP

    def get_vocab(self) -> dict[str, int]:
        """Each byte's token, the character of its number, and the end token."""
        return {chr(byte): byte for byte in range(EOP)} | {EOP_TEXT: EOP}

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return [chr(byte) for byte in text.encode("utf-8", "surrogateescape")]

    def _convert_token_to_id(self, token: str) -> int:
        return ord(token)

    def _convert_id_to_token(self, index: int) -> str:
        return chr(index)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of tokens; bytes that are no UTF-8 become U+FFFD."""
        parts = (token.encode("latin-1" if len(token) == 1 else "utf-8") for token in tokens)
        return b"".join(parts).decode("utf-8", "replace")

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Writes nothing: there is no vocabulary file."""
        return ()
