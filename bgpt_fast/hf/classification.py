"""BGPTFastForSequenceClassification: `BGPTForClassification` for transformers.

Shape letters: B rows, L columns, n classes.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.modeling_outputs import SequenceClassifierOutput

from bgpt_fast.classifier import BGPTForClassification
from bgpt_fast.hf.base import BGPTFastPreTrainedModel
from bgpt_fast.hf.config import BGPTFastConfig
from bgpt_fast.hf.rows import pack_rows, read_rows


class BGPTFastForSequenceClassification(BGPTFastPreTrainedModel):
    """Classifies rows of bytes.

    Args:
        config: the configuration; without labels, the classes are called as `config.label2id` says.
        model: the classifier; None makes one with new weights.
    """

    kind = BGPTForClassification
    model: BGPTForClassification

    def __init__(self, config: BGPTFastConfig, model: BGPTForClassification | None = None) -> None:
        super().__init__(config)
        if model is None:
            labels = config.label2id if config.labels is None else config.labels
            model = BGPTForClassification(config.sizes, labels)  # type: ignore[arg-type]
        self.model = model
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        extension: str | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Class logits [B, n] of rows of bytes, and the loss.

        Args:
            input_ids: int64 [B, L], bytes 0…255; 256 pads.
            attention_mask: [B, L], 0 for padding; None means that all bytes count.
            labels: int64 [B], class indices; None gives no loss.
            extension: of the documents; None means `config.extension`.
            kwargs: ignored.

        Raises:
            TypeError, ValueError: the rows are no documents that fit the model.
        """
        rows = read_rows("forward", input_ids, attention_mask)
        extension = self.config.extension if extension is None else extension
        logits = self.model(pack_rows("forward", rows, extension, self.model.config))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutput(loss=loss, logits=logits)
