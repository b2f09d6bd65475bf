"""The model card: README.md of a folder on Hugging Face's hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import yaml

from bgpt_fast.checkpoint.task import ModelTask
from bgpt_fast.config import BGPTConfig

_CLASSIFICATION = """from transformers import pipeline

classify = pipeline("text-classification", model="{name}", trust_remote_code=True)
print(classify("some text"))"""
_GENERATION = """from transformers import pipeline

generate = pipeline("text-generation", model="{name}", trust_remote_code=True)
print(generate("The ", max_new_tokens=100, do_sample=True)[0]["generated_text"])"""
_INTRODUCTION = (
    "A bGPT ([arXiv 2402.19155](https://arxiv.org/abs/2402.19155)): a model of bytes, which reads and writes files as "
    "patches, without a vocabulary. It was made with bgpt_fast, which must be installed to run it.\n"
)
_OWN = """from bgpt_fast import {kind}

model = {kind}.from_pretrained("{name}")"""


@dataclass(frozen=True)
class ModelCard:
    """What a model card says that the weights do not.

    Args:
        name: the model's name, or its "owner/name" on the hub.
        licence: the identifier of the weights' licence on the hub, such as "mit"; None means that it is not stated.
        data: what the model was trained on, one line.
        training: how it was trained, one line.
        scores: what was measured and the figure, such as {"bits per byte, held out": 1.93}.
    """

    name: str = "owner/name"
    licence: str | None = None
    data: str = ""
    training: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)

    def text(
        self, config: BGPTConfig, task: ModelTask | None, labels: Mapping[str, int] | None, parameters: int
    ) -> str:
        """The card in Markdown, with the hub's metadata.

        Args:
            config, task, labels: the model's; labels None for a generative model.
            parameters: their number.
        """
        kind = "text-generation" if labels is None else "text-classification"
        tags = ["bgpt", "bytes", "custom_code", *(() if task is None else task.tasks)]
        metadata = {"library_name": "transformers", "pipeline_tag": kind, "tags": tags}
        if self.licence is not None:
            metadata["license"] = self.licence
        layers = f"{config.patch_num_layers}" if labels else f"{config.patch_num_layers} + {config.byte_num_layers}"
        context = (config.patch_length - 1) * config.patch_size
        facts = {
            "Parameters": f"{parameters:,}",
            "Sizes": f"width {config.hidden_size}, {layers} layers, patches of {config.patch_size} bytes, a context of "
            f"{config.patch_length} patches ({context:,} bytes and the file's kind)",
            "Trained for": "not known" if task is None else str(task),
            **({"Classes": ", ".join(labels)} if labels else {}),
            "Data": self.data or "not stated",
            "Training": self.training or "not stated",
            "Licence of the weights": self.licence or "not stated",
        }
        scores = [f"| {name} | {value:.6g} |" for name, value in self.scores.items()]
        python = (_GENERATION if labels is None else _CLASSIFICATION).format(name=self.name)
        own = _OWN.format(kind="BGPT" if labels is None else "BGPTForClassification", name=self.name)
        return "\n".join(
            [
                f"---\n{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)}---",
                f"\n# {self.name.rpartition('/')[2]}\n",
                _INTRODUCTION,
                *(f"- **{name}**: {text}" for name, text in facts.items()),
                "\n## Scores\n",
                *(["| what | figure |", "| --- | --- |", *scores] if scores else ["Not stated."]),
                f"\n## Use\n\n```python\n{python}\n```\n\nor without transformers:\n\n```python\n{own}\n```\n",
            ]
        )
