"""The bGPT model on packed batches: training loss, scoring, saving and loading.

Shape letters: B documents, P packed patches, T target patches, S bytes per patch, D width, V tokens.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Self, TypeVar

import torch
from torch import Tensor, nn

from bgpt_fast.byte_decoder import ByteLevelDecoder
from bgpt_fast.checkpoint.hub import push_model
from bgpt_fast.checkpoint.load import Checkpoint, load_weights
from bgpt_fast.checkpoint.model_card import ModelCard
from bgpt_fast.checkpoint.save import save_weights
from bgpt_fast.checkpoint.schema import CheckpointError
from bgpt_fast.checkpoint.task import ModelTask
from bgpt_fast.config import BGPTConfig
from bgpt_fast.device import default_cpu
from bgpt_fast.memory import named_out_of_memory
from bgpt_fast.patch_decoder import PatchLevelDecoder
from bgpt_fast.patches import PackedPatches

Model = TypeVar("Model", bound=nn.Module)


class BGPTOutput(NamedTuple):
    """loss: mean nats per position; nats: the loss of each, float32 [T, S], detached; indices: int64 [T], the targets'
    patch indices in the batch."""

    loss: Tensor
    nats: Tensor
    indices: Tensor


class LogLikelihood(NamedTuple):
    """nats: float64 [B], −log p of each document given its extension; num_bytes: int64 [B], number of real bytes."""

    nats: Tensor
    num_bytes: Tensor


class BGPT(nn.Module):
    """The byte model of arXiv 2402.19155 on packed documents.

    `state_dict` names and shapes are those of the released checkpoints. Weights are initialised with torch's global
    generator: N(0, 0.02), residual projections N(0, 0.02 / √(2·layers)).

    Attributes:
        config: the model's sizes.
        task: what it was trained for, which is saved with the weights; None if that is not known.
    """

    def __init__(self, config: BGPTConfig) -> None:
        super().__init__()
        self.config = config
        self.task: ModelTask | None = None
        self.patch_level_decoder = PatchLevelDecoder(config)
        self.byte_level_decoder = ByteLevelDecoder(config)

    def forward(self, batch: PackedPatches, targets: Tensor | None = None, counted: Tensor | None = None) -> BGPTOutput:
        """Negative log-likelihood of the target patches' bytes.

        Args:
            batch: documents on the model's device.
            targets: int64 [T], indices of the patches to predict, never a document's first; None means
                `batch.target_indices()`: all but the extension patches, unless `batch.targets` is set.
            counted: bool [T], the targets that are in the loss: others only fill a fixed shape; None means all.

        Returns:
            `BGPTOutput`; `loss` is the mean over all S positions of all targets that are counted, padding included, as
            released; with `config.pad`, over those that are not `pad`. `nats` is 0 at the others.

        Raises:
            TypeError, ValueError: the batch does not fit the model, or there are no targets.
        """
        indices = self._targets(batch, targets)
        loss, nats = self.byte_level_decoder(*self._inputs(batch, indices), counted)
        return BGPTOutput(loss, nats, indices)

    def logits(self, batch: PackedPatches, targets: Tensor | None = None) -> Tensor:
        """Teacher-forced logits [T, S, V] of the target patches' bytes; arguments as `forward`."""
        return self.byte_level_decoder.logits(*self._inputs(batch, self._targets(batch, targets)))

    def _targets(self, batch: PackedPatches, targets: Tensor | None) -> Tensor:
        check_batch(batch, self.config, self.byte_level_decoder.base.lm_head.weight.device)
        indices = batch.target_indices() if targets is None else _checked_targets(batch, targets)
        if not indices.shape[0]:
            raise ValueError("BGPT: targets: expected at least one patch to predict, got none; is the batch empty?")
        return indices

    def _inputs(self, batch: PackedPatches, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The byte decoder's inputs: the feature of the patch before each target patch, and the target's bytes."""
        offsets = batch.cu_seqlens, batch.max_seqlen, batch.host_offsets
        features = self.patch_level_decoder(batch.patches, *offsets, rows=indices - 1)
        return features, batch.patches[indices]

    @torch.no_grad()
    def log_likelihood(self, batch: PackedPatches) -> LogLikelihood:
        """−log p(document | extension) in nats, including padding and end-of-file patch, and the number of real bytes.

        All patches except the extension patches count, regardless of `batch.targets`. Runs without dropout.

        Raises:
            TypeError, ValueError: the batch does not fit the model.
            OutOfMemoryError: it needs more memory than there is.
        """
        check_batch(batch, self.config, self.byte_level_decoder.base.lm_head.weight.device)
        if torch.compiler.is_compiling():  # where neither modes nor errors can be handled
            if self.training:
                raise ValueError("log_likelihood: expected a model in evaluation mode to compile; call model.eval()")
            return self._log_likelihood(batch)
        with evaluation_mode(self), batch_memory("log_likelihood", self, batch):
            return self._log_likelihood(batch)

    def _log_likelihood(self, batch: PackedPatches) -> LogLikelihood:
        indices = batch.all_target_indices()
        nats = self(batch, indices).nats.double().sum(1)
        symbols = batch.patches[indices]
        real = ((symbols != self.config.eop) & (symbols != self.config.fill)).sum(1)
        # Before target t of document b are t targets and b + 1 extension patches.
        document_of = indices - torch.arange(1, indices.shape[0] + 1, device=indices.device)
        return LogLikelihood(
            nats.new_zeros(batch.num_documents).index_add_(0, document_of, nats),
            real.new_zeros(batch.num_documents).index_add_(0, document_of, real),
        )

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        revision: str | None = None,
    ) -> Self:
        """Loads a model, in evaluation mode.

        Args:
            source: a folder of `save_pretrained`, a `.safetensors` file, a released-style `.pth` file, or a hub id.
            device: the model's device; None means the CPU.
            dtype: None means the stored dtype; if there are several, the one they promote to.
            revision: of a hub id: a branch, tag or commit; None means the main branch.

        Raises:
            CheckpointError: missing, damaged, of the wrong shape, or a classifier; names the tensor, the expected and
                the actual value.
        """
        checkpoint = load_generative(source, revision=revision)
        model = restored(lambda: cls(checkpoint.config), checkpoint.state_dict, device=device, dtype=dtype)
        model.task = checkpoint.task
        return model

    def save_pretrained(
        self,
        directory: str | os.PathLike[str],
        *,
        dtype: torch.dtype | None = None,
        hf: bool = False,
        extension: str | None = None,
        card: ModelCard | None = None,
    ) -> None:
        """Writes `config.json` and `model.safetensors` atomically.

        Args:
            directory: created if missing; a checkpoint in it is replaced.
            dtype: storage dtype: float32, bfloat16, float16 or float64; None keeps that of the weights.
            hf: True also writes what transformers needs to load the folder with `trust_remote_code=True`, and a model
                card (README.md), unless there is one.
            extension: with `hf`, that of the documents that transformers' rows of tokens are; None means the one that
                the task knows, or "txt".
            card: with `hf`, what the model card says that the weights do not.

        Raises:
            CheckpointError: values overflow in `dtype`, NaN or infinity; nothing is written.
            ValueError: `hf` and a model whose symbols are not bytes.
            OSError: the disk is full or fails; an earlier checkpoint there still loads.
        """
        save_weights(
            directory,
            self.config,
            self.state_dict(),
            dtype=dtype,
            task=self.task,
            hf=hf,
            extension=extension,
            card=card,
        )

    def push_to_hub(
        self,
        repo_id: str,
        *,
        extension: str | None = None,
        card: ModelCard | None = None,
        **options: Any,
    ) -> str:
        """Uploads what `save_pretrained(…, hf=True)` writes to a model repository of Hugging Face's hub.

        Args:
            repo_id: "owner/name"; created if there is none.
            extension, card: as in `save_pretrained`; without a card, one that the repository has stays.
            options: private, token, revision, commit_message and create_pr of `checkpoint.hub.push_folder`.

        Returns:
            The address of the commit.

        Raises:
            CheckpointError: the hub cannot be reached or refuses.
        """
        return push_model(self.save_pretrained, repo_id, extension=extension, card=card, **options)

    def num_parameters(self) -> int:
        """The number of parameters; tied ones count once."""
        return sum(parameter.numel() for parameter in self.parameters())


def load_generative(source: str | os.PathLike[str], *, revision: str | None = None) -> Checkpoint:
    """`load_weights` for a generative model; raises CheckpointError for a classifier."""
    checkpoint = load_weights(source, revision=revision)
    if checkpoint.labels is not None:
        raise CheckpointError(
            f"{os.fspath(source)}: expected a generative model, got a classifier of {len(checkpoint.labels)} classes; "
            "use bgpt-fast classify, or BGPTForClassification.from_pretrained"
        )
    return checkpoint


def restored(
    make: Callable[[], Model],
    weights: Mapping[str, Tensor],
    *,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> Model:
    """The model that `make` returns, with `weights` instead of its initial values, in evaluation mode.

    `device` None means the CPU, `dtype` None that of the weights. The state of torch's global generator is unchanged.
    """
    total = sum(tensor.numel() for tensor in weights.values())
    with named_out_of_memory(lambda: f"a model of {total:,} parameters", advice="use a smaller model"):
        with torch.random.fork_rng(devices=[]), default_cpu():
            model = make()
        model.to(dtype=dtype or stored_dtype(weights))
        model.load_state_dict(weights, strict=True)
        return model.to(device=device).eval()


def stored_dtype(weights: Mapping[str, Tensor]) -> torch.dtype:
    """The dtype that the dtypes of all weights promote to."""
    return functools.reduce(torch.promote_types, (tensor.dtype for tensor in weights.values()))


def batch_memory(
    function: str, model: nn.Module, batch: PackedPatches, *lower: str
) -> contextlib.AbstractContextManager[None]:
    """Names the batch if memory runs out inside the block: see `named_out_of_memory`.

    Args:
        function: what is computed.
        model, batch: what it computes with.
        lower: names of the settings that make the batch smaller; none if the caller made it.
    """

    def what() -> str:
        parameters = sum(parameter.numel() for parameter in model.parameters())
        return (
            f"{function} of {batch.num_patches:,} patches in {batch.num_documents:,} documents, with a model of "
            f"{parameters:,} parameters"
        )

    return named_out_of_memory(what, *lower, advice="" if lower else "pass fewer documents at once")


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; restores the mode of each submodule afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _checked_targets(batch: PackedPatches, targets: object) -> Tensor:
    if not isinstance(targets, Tensor) or targets.dtype != torch.int64 or targets.dim() != 1:
        got = f"{targets.dtype} {list(targets.shape)}" if isinstance(targets, Tensor) else type(targets).__name__
        raise TypeError(f"BGPT: targets: expected an int64 tensor [T] of patch indices, got {got}")
    if targets.device != batch.patches.device:
        raise ValueError(f"BGPT: targets: expected device {batch.patches.device}, the batch's, got {targets.device}")
    # On a GPU checking values would synchronise at every step, and a compiled graph cannot raise; there torch's
    # indexing asserts the range.
    if not torch.compiler.is_compiling() and not targets.is_cuda and len(targets):
        least, most = int(targets.min()), int(targets.max())
        if not 0 <= least <= most < batch.num_patches:
            raise ValueError(f"BGPT: targets: expected indices 0…{batch.num_patches - 1}, got {least}…{most}")
        if bool(torch.isin(targets, batch.cu_seqlens[:-1]).any()):
            raise ValueError("BGPT: targets: expected no document's first patch, which nothing predicts, got one")
    return targets


def check_batch(batch: PackedPatches, config: BGPTConfig, device: torch.device) -> None:
    """Raises TypeError or ValueError unless a model of `config` on `device` can take the batch."""
    if not isinstance(batch, PackedPatches):
        raise TypeError(
            f"BGPT: batch: expected PackedPatches, got {type(batch).__name__}; see PackedPatches.from_bytes"
        )
    if batch.patches.shape[1] != config.patch_size:
        raise ValueError(
            f"BGPT: batch: expected patches of {config.patch_size} bytes, got {batch.patches.shape[1]}; "
            "pack with the model's own config"
        )
    if batch.max_seqlen > config.patch_length:
        raise ValueError(
            f"BGPT: batch: expected documents of at most {config.patch_length} patches, got {batch.max_seqlen}; "
            "pack with the model's own config, which cuts or refuses longer ones"
        )
    if batch.patches.device != device:
        raise ValueError(f"BGPT: batch: expected device {device}, where the model is, got {batch.patches.device}")
