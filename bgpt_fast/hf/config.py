"""BGPTFastConfig: a checkpoint's config.json as a configuration of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

from bgpt_fast.checkpoint.hugging_face import DEFAULT_EXTENSION, MODEL_TYPE
from bgpt_fast.checkpoint.schema import parse_config, parse_labels
from bgpt_fast.checkpoint.task import parse_task
from bgpt_fast.config import EOP, VOCAB_SIZE, BGPTConfig

_OF_THE_FILES = ("format", "version", "sha256", "previous")
"""Fields of config.json that describe its folder, not the model."""


class BGPTFastConfig(PreTrainedConfig):
    """The configuration of a model for transformers.

    Args:
        config: the fields of `BGPTConfig`; None means its defaults.
        labels: a classifier's class name → index; None for a generative model.
        task: the fields of `ModelTask`; None if what the model was trained for is not known.
        extension: file name extension of the documents that rows of tokens are, such as "txt".
        kwargs: as in `PreTrainedConfig`.

    Attributes:
        sizes: `config` as a `BGPTConfig`.
        vocab_size: 257: the bytes and end-of-patch, which is also `eos_token_id` and `pad_token_id`.
        max_position_embeddings: bytes of a document that fill the context.
        hidden_size, num_hidden_layers, num_attention_heads: of the patch-level decoder.

    Raises:
        CheckpointError: `config`, `labels` or `task` are of another form.
        ValueError: a config whose symbols are not bytes.
    """

    model_type = MODEL_TYPE

    def __init__(
        self,
        config: Mapping[str, Any] | None = None,
        labels: Mapping[str, int] | None = None,
        task: Mapping[str, Any] | None = None,
        extension: str = DEFAULT_EXTENSION,
        **kwargs: Any,
    ) -> None:
        for name in _OF_THE_FILES:
            kwargs.pop(name, None)
        self.config = parse_config({} if config is None else dict(config), "BGPTFastConfig").to_dict()
        parse_task(task, "BGPTFastConfig")
        self.task = task
        self.labels = labels
        if labels is not None:
            self.labels = parse_labels(labels, "BGPTFastConfig")
            kwargs["id2label"] = {index: name for name, index in self.labels.items()}
            kwargs["label2id"] = dict(self.labels)
        self.extension = extension
        sizes = self.sizes
        sizes.check_bytes("BGPTFastConfig: config")
        derived: dict[str, Any] = {
            "vocab_size": VOCAB_SIZE,
            "hidden_size": sizes.hidden_size,
            "num_hidden_layers": sizes.patch_num_layers,
            "num_attention_heads": sizes.patch_heads,
            "max_position_embeddings": (sizes.patch_length - 1) * sizes.patch_size,
        }
        super().__init__(**{"eos_token_id": EOP, "pad_token_id": EOP, **kwargs, **derived})

    @property
    def sizes(self) -> BGPTConfig:
        """The model's sizes."""
        return BGPTConfig.from_dict(self.config)
