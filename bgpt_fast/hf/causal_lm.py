"""BGPTFastForCausalLM: `BGPT` for transformers; `generate` is bgpt_fast's own engine.

Shape letters: B rows, L columns, V = 257 tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin
from transformers.generation import GenerateDecoderOnlyOutput
from transformers.modeling_outputs import CausalLMOutput

from bgpt_fast.checkpoint.hugging_face import generation_settings
from bgpt_fast.config import EOP
from bgpt_fast.generation.generator import Generator
from bgpt_fast.generation.prompt import Prompt
from bgpt_fast.hf.base import BGPTFastPreTrainedModel
from bgpt_fast.hf.config import BGPTFastConfig
from bgpt_fast.hf.rows import next_token_logits, pack_rows, read_rows
from bgpt_fast.model import BGPT

_SAMPLING = {"max_length", "max_new_tokens", "do_sample", "temperature", "top_k", "top_p", "num_return_sequences"}
_OUTPUT = {"return_dict_in_generate", "eos_token_id", "pad_token_id", "bos_token_id"}
_WITHOUT_EFFECT = {"use_cache", "early_stopping", "length_penalty", "num_beam_groups", "disable_compile"}


class BGPTFastForCausalLM(BGPTFastPreTrainedModel, GenerationMixin):
    """Predicts and continues rows of bytes, each a document with the extension `config.extension`.

    Args:
        config: the configuration.
        model: the `BGPT`; None makes one with new weights.
    """

    kind = BGPT
    model: BGPT

    def __init__(self, config: BGPTFastConfig, model: BGPT | None = None) -> None:
        super().__init__(config)
        self.model = BGPT(config.sizes) if model is None else model
        self.generation_config = GenerationConfig(**generation_settings(config.sizes))
        self._generator: Generator | None = None
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        extension: str | None = None,
        **kwargs: Any,
    ) -> CausalLMOutput:
        """Logits of the token after each column, [B, L, V], and the loss.

        Args:
            input_ids: int64 [B, L], bytes 0…255; 256 pads, or after the bytes is the end of the file.
            attention_mask: [B, L], 0 for padding; None means that all bytes count.
            labels: int64 [B, L], mostly `input_ids`, with −100 where no loss counts; the token of column i + 1 is
                predicted at column i, as in all models of transformers. A row's first byte, which the extension alone
                predicts, is not among them; `BGPT.forward` counts it.
            extension: of the documents; None means `config.extension`.
            kwargs: of the loss, such as num_items_in_batch; others are ignored.

        Raises:
            TypeError, ValueError: the rows are no documents that fit the model.
        """
        rows = read_rows("forward", input_ids, attention_mask)
        extension = self.config.extension if extension is None else extension
        batch = pack_rows("forward", rows, extension, self.model.config)
        logits = next_token_logits(rows, batch, self.model.logits(batch))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutput(loss=loss, logits=logits)

    @torch.no_grad()
    def generate(  # type: ignore[override]
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        extension: str | None = None,
        **kwargs: Any,
    ) -> Tensor | GenerateDecoderOnlyOutput:
        """Continues rows of bytes by bgpt_fast's engine: key-value caches at both levels, all rows in one batch.

        Args:
            inputs, input_ids: int64 [B, L], one of the two; none generates from the extension alone.
            generation_config: settings; `kwargs` replace them.
            attention_mask: [B, L], 0 for padding; None means that all bytes count.
            extension: of the documents; None means `config.extension`.
            kwargs: max_new_tokens or max_length (default: until the context is full), do_sample, temperature, top_k
                (default: off), top_p, num_return_sequences, return_dict_in_generate. With do_sample the seed is drawn
                from torch's global generator (`torch.manual_seed`). top_k and top_p come before the temperature, as in
                the paper's code.

        Returns:
            int64 [B · num_return_sequences, L + new]: the input, the new bytes, then 256 where the model ended the file
            and as padding; with return_dict_in_generate in the field `sequences`.

        Raises:
            TypeError, ValueError: rows that are no documents or fill the context, or a setting that the engine has not,
                such as num_beams.
        """
        if input_ids is not None and inputs is not None:
            raise ValueError("generate: expected inputs or input_ids, got both; they are two names of one argument")
        tokens = inputs if input_ids is None else input_ids
        if tokens is None:
            tokens = torch.empty(1, 0, dtype=torch.int64, device=self.device)
        defaults = GenerationConfig().to_dict() | GenerationConfig._get_default_generation_params()
        settings, others = self._prepare_generation_config(generation_config, **kwargs)  # type: ignore[misc]
        _check_settings(settings.to_dict(), defaults, others)
        rows = read_rows("generate", tokens, attention_mask)
        extension = self.config.extension if extension is None else extension
        copies = settings.num_return_sequences or 1
        prompts = [Prompt(extension, document) for document in rows.documents() for _ in range(copies)]
        limit = settings.max_new_tokens
        if limit is None and settings.max_length is not None:
            limit = max(0, settings.max_length - tokens.shape[1])
        sampling: dict[str, Any] = {}
        if settings.do_sample:
            # Not transformers' default, 50 of 257.
            choices = (kwargs.get("top_k"), getattr(generation_config, "top_k", None), self.generation_config.top_k)
            top_k = next((choice for choice in choices if choice is not None), 0)
            sampling = {
                "temperature": float(settings.temperature),
                "top_k": top_k,
                "top_p": float(settings.top_p),
                "seed": int(torch.randint(2**63 - 1, (), device="cpu")),
            }
        if self._generator is None:
            self._generator = Generator(self.model)
        files = self._generator.generate(prompts, max_new_bytes=limit, **sampling)
        new = [[*file.new_bytes, *([EOP] if file.finished else [])] for file in files]
        width = max((len(row) for row in new), default=0)
        columns = torch.tensor(
            [row + [EOP] * (width - len(row)) for row in new], dtype=torch.int64, device=tokens.device
        ).reshape(len(new), width)
        sequences = torch.cat([tokens.long().repeat_interleave(copies, 0), columns], 1)
        if settings.return_dict_in_generate:
            return GenerateDecoderOnlyOutput(sequences=sequences)  # type: ignore[arg-type]
        return sequences


def _check_settings(settings: dict[str, Any], defaults: dict[str, Any], others: dict[str, Any]) -> None:
    """Raises ValueError for settings that the engine does not have, unless they are those that change nothing."""
    known = _SAMPLING | _OUTPUT | _WITHOUT_EFFECT | {"transformers_version"}
    extra = {name for name, value in settings.items() if name not in known and value != defaults.get(name) and value}
    extra |= {name for name, value in others.items() if value is not None and name not in _WITHOUT_EFFECT}
    if extra:
        raise ValueError(
            f"generate: expected settings among {sorted(_SAMPLING)}, got also {sorted(extra)}, which bgpt_fast's "
            "engine has not"
        )
