"""bGPT as a document classifier: the patch-level decoder and one linear layer.

Shape letters: B documents, P packed patches, D width, n classes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from bgpt_fast.checkpoint.hub import push_model
from bgpt_fast.checkpoint.load import load_weights
from bgpt_fast.checkpoint.model_card import ModelCard
from bgpt_fast.checkpoint.save import save_weights
from bgpt_fast.checkpoint.schema import CLASSIFIER, CheckpointError, checked_labels
from bgpt_fast.checkpoint.task import ModelTask
from bgpt_fast.config import BGPTConfig
from bgpt_fast.device import default_cpu
from bgpt_fast.layers import INIT_STD
from bgpt_fast.model import BGPT, check_batch, load_generative, restored, stored_dtype
from bgpt_fast.patch_decoder import PatchLevelDecoder
from bgpt_fast.patches import PackedPatches


class BGPTForClassification(nn.Module):
    """Classifies documents: the mean of all patch features of the patch-level decoder, then one linear layer.

    `state_dict` names are those of the released classifiers: `patch_level_decoder.*`, `classifier.{weight,bias}`.

    Args:
        config: sizes of the patch-level decoder; those of the byte decoder are stored but not used.
        labels: class name → index 0…n − 1, as in `LabelledSource.labels`. It is saved with the weights, so that
            training, evaluation and prediction share one map.

    Attributes:
        task: as in `BGPT`.

    Raises:
        ValueError: `labels` is not such a map.

    Source: arXiv 2402.19155 and the released code, where the mean includes the extension and end-of-file patches.
    """

    def __init__(self, config: BGPTConfig, labels: Mapping[str, int]) -> None:
        super().__init__()
        self.config = config
        self.labels = checked_labels(labels, "BGPTForClassification")
        self.task: ModelTask | None = None
        self.patch_level_decoder = PatchLevelDecoder(config)
        self.classifier = _new_head(config, self.labels)

    def forward(self, batch: PackedPatches) -> Tensor:
        """Class logits [B, n] of the documents; the mean is computed in at least float32.

        Args:
            batch: documents on the model's device.

        Raises:
            TypeError, ValueError: the batch does not fit the model.
        """
        check_batch(batch, self.config, self.classifier.weight.device)
        features = self.patch_level_decoder(batch.patches, batch.cu_seqlens, batch.max_seqlen, batch.host_offsets)
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        # Deterministic: on a GPU one program sums each document in a fixed order, unlike index_add. The batch has been
        # checked; a check of the lengths (not `unsafe`) would wait for the GPU.
        means = torch.segment_reduce(features, "mean", lengths=batch.cu_seqlens.diff().long(), unsafe=True)
        return self.classifier(means.to(self.classifier.weight.dtype))

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        labels: Mapping[str, int] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        revision: str | None = None,
    ) -> Self:
        """Loads a classifier, in evaluation mode.

        Args:
            source: a folder of `save_pretrained`, a `.safetensors` file, a released-style `.pth` file, or a hub id.
            labels: the label map for weights stored without one, such as the released `.pth` files; otherwise None.
            device: the model's device; None means the CPU.
            dtype: None means the stored dtype; if there are several, the one they promote to.
            revision: of a hub id: a branch, tag or commit; None means the main branch.

        Raises:
            CheckpointError: missing, damaged or of the wrong shape; the label map is missing or differs from the
                stored one; or the model is a generative one.
        """
        checkpoint = load_weights(source, labels=labels, revision=revision)
        if checkpoint.labels is None:
            raise CheckpointError(
                f"{os.fspath(source)}: expected a classifier, got a generative model; train a classifier that begins "
                "with it by bgpt-fast train --task classification --init-from, or load it by BGPT.from_pretrained"
            )
        stored = checkpoint.labels
        model = restored(lambda: cls(checkpoint.config, stored), checkpoint.state_dict, device=device, dtype=dtype)
        model.task = checkpoint.task
        return model

    @classmethod
    @default_cpu()
    def from_generative(
        cls,
        source: str | os.PathLike[str] | BGPT,
        labels: Mapping[str, int],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """A classifier for fine-tuning: the patch-level decoder of a generative model with a new head.

        The head's weight is drawn from N(0, 0.02) by torch's global generator; its bias is zero.

        Args:
            source: a `BGPT`, whose weights are copied; or any source that `BGPT.from_pretrained` accepts.
            labels: class name → index 0…n − 1.
            device: the classifier's device; None means the CPU.
            dtype: None means the generative model's dtype; if there are several, the one they promote to.

        Returns:
            A classifier in training mode.

        Raises:
            CheckpointError: missing or damaged weights, or those of a classifier.
            ValueError: `labels` is not a label map.
        """
        if isinstance(source, BGPT):
            config, weights = source.config, source.state_dict()
        else:
            config, weights, _ = load_generative(source)
        decoder = {name: tensor for name, tensor in weights.items() if name.startswith("patch_level_decoder.")}
        head = _new_head(config, checked_labels(labels, "BGPTForClassification"))
        of_head = {f"{CLASSIFIER}.{name}": tensor for name, tensor in head.state_dict().items()}
        model = restored(
            lambda: cls(config, labels), {**decoder, **of_head}, device=device, dtype=dtype or stored_dtype(decoder)
        )
        return model.train()

    def save_pretrained(
        self,
        directory: str | os.PathLike[str],
        *,
        dtype: torch.dtype | None = None,
        hf: bool = False,
        extension: str | None = None,
        card: ModelCard | None = None,
    ) -> None:
        """As `BGPT.save_pretrained`; both files have the label map."""
        save_weights(
            directory,
            self.config,
            self.state_dict(),
            dtype=dtype,
            labels=self.labels,
            task=self.task,
            hf=hf,
            extension=extension,
            card=card,
        )

    def push_to_hub(
        self, repo_id: str, *, extension: str | None = None, card: ModelCard | None = None, **options: Any
    ) -> str:
        """As `BGPT.push_to_hub`."""
        return push_model(self.save_pretrained, repo_id, extension=extension, card=card, **options)

    def num_parameters(self) -> int:
        """The number of parameters."""
        return sum(parameter.numel() for parameter in self.parameters())


def _new_head(config: BGPTConfig, labels: Mapping[str, int]) -> nn.Linear:
    head = nn.Linear(config.hidden_size, len(labels))
    nn.init.normal_(head.weight, std=INIT_STD)
    nn.init.zeros_(head.bias)
    return head
