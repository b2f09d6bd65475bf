"""A byte model without patches as a baseline: the GPT-2 of `transformers` over single bytes, on the same documents.

A document is its extension, a token 256, its content, and a final token 256. The extension and the first 256
are not targets, like bGPT's extension patch. Bits per byte are all bits of content and end over the content's bytes, as
for bGPT.

Shape letters: B documents, L tokens of a document, V = 257 tokens, D width.
"""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bgpt_fast.checkpoint.save import safetensors_parts
from bgpt_fast.config import EOP, VOCAB_SIZE, BGPTConfig
from bgpt_fast.data.file_index import Paths, SkipReport, as_roots, find_files, read_document
from bgpt_fast.data.source import DataError, Source
from bgpt_fast.device import resolve_device
from bgpt_fast.documents import extension_of
from bgpt_fast.files import atomic_write
from bgpt_fast.flops import forward_flops
from bgpt_fast.metrics import ByteScores, Interval, bootstrap_interval
from bgpt_fast.model import evaluation_mode
from bgpt_fast.patches import PackedPatches
from bgpt_fast.tasks.media.errors import optional
from bgpt_fast.training import TrainConfig
from bgpt_fast.training.optimizer import Optimizers
from bgpt_fast.training.schedule import schedule_factor, step_progress, time_progress

_TOKENS_AT_ONCE = 16_384
_LEAST_FILLED = 0.75


@dataclass(frozen=True)
class FlatConfig:
    """Sizes of a flat byte model.

    Args:
        context: maximum number of tokens in a document, extension and separators included; see `flat_context`.
        hidden_size: width.
        num_layers: layers.
        num_heads: a divisor of the width.
        dropout: dropout of residuals, embeddings and attention.
        position_init_std: standard deviation of the initial position embeddings, as in `BGPTConfig`.
    """

    context: int
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    dropout: float = 0.0
    position_init_std: float = 0.02


class FlatModel(nn.Module):
    """GPT-2 over bytes; `gpt2` is transformers' own model.

    Raises:
        ImportError: transformers is missing.
    """

    def __init__(self, config: FlatConfig) -> None:
        super().__init__()
        transformers = optional("transformers", "baselines", "the flat baseline")
        self.config = config
        sizes = transformers.GPT2Config(
            vocab_size=VOCAB_SIZE,
            n_positions=config.context,
            n_embd=config.hidden_size,
            n_layer=config.num_layers,
            n_head=config.num_heads,
            resid_pdrop=config.dropout,
            embd_pdrop=config.dropout,
            attn_pdrop=config.dropout,
            bos_token_id=None,
            eos_token_id=None,
        )
        self.gpt2 = transformers.GPT2LMHeadModel(sizes)
        nn.init.normal_(self.gpt2.transformer.wpe.weight, std=config.position_init_std)

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns the logits [B, L, V] of the token that follows each of `tokens`, int64 [B, L]."""
        return self.gpt2(input_ids=tokens, use_cache=False).logits

    def num_parameters(self) -> int:
        """Returns the number of parameters; tied ones count once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the weights as safetensors; the file is complete or absent."""
        with atomic_write(path) as file:
            file.writelines(safetensors_parts(dict(self.named_parameters())))

    @torch.no_grad()
    def load(self, path: str | os.PathLike[str]) -> None:
        """Reads weights that `save` wrote.

        Raises:
            ValueError: they belong to a model of other sizes.
        """
        weights = safetensors.torch.load_file(path)
        ours = {name: tuple(tensor.shape) for name, tensor in self.named_parameters()}
        theirs = {name: tuple(tensor.shape) for name, tensor in weights.items()}
        if theirs != ours:
            raise ValueError(f"{os.fspath(path)}: expected weights of {self.config}, got others: {len(theirs)} tensors")
        for name, tensor in self.named_parameters():
            tensor.copy_(weights[name])


class FlatDocument(NamedTuple):
    """tokens: int64 [L]; is_target: bool [L], which of them the loss counts."""

    tokens: Tensor
    is_target: Tensor


def flat_context(config: BGPTConfig) -> int:
    """Returns the number of tokens of the largest document that fits a bGPT's context."""
    return config.patch_length * config.patch_size + 2


def flat_documents(batch: PackedPatches) -> list[FlatDocument]:
    """Returns the documents of a batch as tokens; the tokens of target patches are targets.

    Consecutive `<eop>` tokens become one: the end of a file, or of a pair's source whose last patch is not full.
    """
    patches = batch.patches.cpu().long()
    mask = torch.zeros(len(patches), dtype=torch.bool)
    mask[batch.target_indices().cpu()] = True
    offsets = batch.cu_seqlens.tolist()
    documents = []
    for start, stop in itertools.pairwise(offsets):
        extension = patches[start][patches[start] != EOP]
        body = patches[start + 1 : stop].flatten()
        targets = mask[start + 1 : stop].repeat_interleave(patches.shape[1])
        is_eop = body == EOP
        is_token = ~is_eop
        is_token[1:] |= is_eop[1:] & ~is_eop[:-1]
        is_token[:1] = True
        prefix = torch.cat([extension, torch.tensor([EOP])])
        is_target = torch.cat([torch.zeros(len(prefix), dtype=torch.bool), targets[is_token]])
        documents.append(FlatDocument(torch.cat([prefix, body[is_token]]), is_target))
    return documents


def flat_flops(config: FlatConfig, documents: Sequence[FlatDocument]) -> int:
    """Returns the floating-point operations of a forward pass, counted as `forward_flops` counts them."""
    D, layers = config.hidden_size, config.num_layers
    L = np.array([len(document.tokens) - 1 for document in documents], np.int64)
    tokens, scores = int(L.sum()), int((L * (L + 1) // 2).sum())
    return layers * (24 * D * D * tokens + 4 * D * scores) + 2 * D * VOCAB_SIZE * tokens


def flat_of_equal_compute(
    config: BGPTConfig, sample: PackedPatches, *, num_layers: int, num_heads: int, dropout: float = 0.0
) -> FlatConfig:
    """Returns the flat model whose forward operations on some documents are nearest to a bGPT's.

    Args:
        config: the bGPT.
        sample: documents of typical lengths.
        num_layers, num_heads: of the flat model; its width is the result.
        dropout: dropout of the flat model.
    """
    documents = flat_documents(sample)
    lengths = sample.cu_seqlens.diff().cpu()
    target = sum(forward_flops(config, lengths, len(sample.target_indices())).values())

    def sized(width: int) -> FlatConfig:
        return FlatConfig(flat_context(config), width, num_layers, num_heads, dropout, config.position_init_std)

    step = 2 * num_heads
    widths = range(step, 16 * config.hidden_size + step, step)
    return min(map(sized, widths), key=lambda flat: abs(flat_flops(flat, documents) - target))


@dataclass(frozen=True)
class FlatTraining:
    """The result of a training: steps, seconds, content bytes seen, and the last step's loss in nats per token."""

    steps: int
    seconds: float
    num_bytes: int
    loss: float


def train_flat(model: FlatModel, source: Source, config: TrainConfig) -> FlatTraining:
    """Trains on a bGPT's source with the same optimisers and schedule; saves no checkpoints.

    Args:
        model: trained in place, on the config's device.
        source: bGPT's batches.
        config: its steps, minutes, learning rates, optimiser, precision, clipping, threads and device apply.

    Raises:
        FloatingPointError: a loss is not finite.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = resolve_device(config.device)
    model.to(device).train()
    optimizers = Optimizers(model.named_parameters(), config)
    started = time.monotonic()
    steps, num_bytes, loss, last = 0, 0, math.nan, 0.0
    while not (config.steps and steps >= config.steps):
        seconds = time.monotonic() - started
        if config.max_minutes and seconds >= 60 * config.max_minutes:
            break
        by_time = config.schedule_by == "time"
        done = time_progress(config, steps, seconds, last) if by_time else step_progress(config, steps)
        optimizers.set_factor(schedule_factor(config, done))
        documents = flat_documents(source.next_batch())
        total = sum(int(document.is_target.sum()) for document in documents)
        optimizers.zero_grad()
        sums = torch.zeros((), dtype=torch.float64, device=device)
        for group in _groups(documents):
            tokens, is_target = _padded(group, device)
            with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                logits = model(tokens[:, :-1])
            nats = (_nats(logits, tokens) * is_target[:, 1:]).sum()
            (nats / total).backward()
            sums += nats.detach()
        if config.grad_clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        loss = float(sums) / total
        if not math.isfinite(loss):
            raise FloatingPointError(f"train_flat: step {steps + 1}: the loss is {loss}; lower learning_rate")
        optimizers.step()
        num_bytes += sum(int((document.tokens[document.is_target] != EOP).sum()) for document in documents)
        steps += 1
        last = time.monotonic() - started - seconds
    return FlatTraining(steps, time.monotonic() - started, num_bytes, loss)


@dataclass(frozen=True)
class FlatReport:
    """The scores of `evaluate_flat`.

    Args:
        paths: the files.
        total: scores of all files; `per_position` is a mean over tokens, unlike bGPT's.
        by_extension: scores of each extension.
        interval: 95 % interval of bits per byte, by bootstrap over files.
        skipped: number of skipped files, by reason.
    """

    paths: tuple[str, ...]
    total: ByteScores
    by_extension: dict[str, ByteScores]
    interval: Interval | None
    skipped: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "files": len(self.paths),
            "bits_per_byte": self.total.per_byte,
            "accuracy": self.total.accuracy,
            "bytes": self.total.bytes,
            "interval_95": None if self.interval is None else list(self.interval),
            "by_extension": {name: scores.per_byte for name, scores in self.by_extension.items()},
            "skipped": self.skipped,
        }


@torch.no_grad()
def evaluate_flat(model: FlatModel, paths: Paths, config: BGPTConfig) -> FlatReport:
    """Scores files as `evaluate_files` does, each truncated to a bGPT's context.

    Args:
        model: on any device.
        paths: files and folders.
        config: the bGPT whose patch size and context apply.

    Raises:
        DataError: no such path, or no file that can be read.
    """
    device = next(model.parameters()).device
    skips = SkipReport()
    documents: list[tuple[str, FlatDocument]] = []
    for file in find_files(as_roots(paths), skips):
        batch = read_document(file, config, skips)
        if batch is not None:
            documents += [(file.path, document) for document in flat_documents(batch)]
    if not documents:
        raise DataError(f"evaluate_flat: expected at least one file that can be read, got none: {skips.by_reason}")
    rows = np.zeros((len(documents), len(ByteScores.COUNTS)))
    rows_of = {id(document): place for place, (_, document) in enumerate(documents)}
    with evaluation_mode(model):
        for group in _groups([document for _, document in documents]):
            tokens, is_target = _padded(group, device)
            logits = model(tokens[:, :-1])
            scored = is_target[:, 1:]
            is_byte = scored & (tokens[:, 1:] != EOP)
            right = scored & (logits.argmax(-1) == tokens[:, 1:])
            figures = [_nats(logits, tokens).double() * scored, scored, is_byte, right, right & is_byte]
            table = torch.stack([figure.double().sum(1) for figure in figures], 1).cpu().numpy()
            rows[[rows_of[id(document)] for document in group]] = table
    extensions = np.array([extension_of(path) for path, _ in documents])
    return FlatReport(
        paths=tuple(path for path, _ in documents),
        total=ByteScores.of(rows.sum(0)),
        by_extension={
            str(name): ByteScores.of(rows[extensions == name].sum(0)) for name in sorted(set(extensions.tolist()))
        },
        interval=bootstrap_interval(rows[:, 0] / math.log(2), rows[:, 2]),
        skipped=skips.by_reason,
    )


@torch.no_grad()
def generate_flat(
    model: FlatModel,
    prompts: Sequence[tuple[str, bytes]],
    *,
    max_new_bytes: int,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[bytes]:
    """Continues files with transformers' own `generate` and its cache.

    Args:
        model: on any device.
        prompts: extension and prefix of each file.
        max_new_bytes: maximum number of bytes to add.
        temperature: 0 always takes the most likely byte.
        seed: seed of torch's global generator, which transformers uses.

    Returns:
        The contents, prefixes included.

    Raises:
        ValueError: a prompt and its new bytes do not fit the context.
    """
    device = next(model.parameters()).device
    prefixes = [torch.tensor([*extension.encode(), EOP, *data]) for extension, data in prompts]
    longest = max(map(len, prefixes))
    if longest + max_new_bytes > model.config.context:
        raise ValueError(
            f"generate_flat: expected at most {model.config.context} tokens, the context, got {longest} of the longest "
            f"prompt and {max_new_bytes} new bytes"
        )
    tokens = torch.full((len(prefixes), longest), EOP)
    mask = torch.zeros_like(tokens)
    for row, sequence in enumerate(prefixes):
        tokens[row, longest - len(sequence) :] = sequence
        mask[row, longest - len(sequence) :] = 1
    ends = {"eos_token_id": EOP, "pad_token_id": EOP}
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature > 0 else {"do_sample": False}
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), evaluation_mode(model):
        torch.manual_seed(seed)
        sequences = model.gpt2.generate(
            input_ids=tokens.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=max_new_bytes,
            **ends,
            **sampling,
        )
    contents = []
    for (_, data), row in zip(prompts, sequences[:, longest:].tolist(), strict=True):
        end = row.index(EOP) if EOP in row else len(row)
        contents.append(data + bytes(row[:end]))
    return contents


def _groups(documents: Sequence[FlatDocument]) -> Iterator[list[FlatDocument]]:
    """Groups documents of similar length, to limit padding, with at most _TOKENS_AT_ONCE tokens each."""
    group: list[FlatDocument] = []
    for document in sorted(documents, key=lambda document: -len(document.tokens)):
        if group:
            longest = len(group[0].tokens)
            if (len(group) + 1) * longest > _TOKENS_AT_ONCE or len(document.tokens) < _LEAST_FILLED * longest:
                yield group
                group = []
        group.append(document)
    if group:
        yield group


def _padded(group: Sequence[FlatDocument], device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns int64 and bool [B, L], padded at the end, where causal attention never reads it."""
    L = len(group[0].tokens)
    tokens = torch.full((len(group), L), EOP)
    is_target = torch.zeros(len(group), L, dtype=torch.bool)
    for row, document in enumerate(group):
        tokens[row, : len(document.tokens)] = document.tokens
        is_target[row, : len(document.tokens)] = document.is_target
    return tokens.to(device), is_target.to(device)


def _nats(logits: Tensor, tokens: Tensor) -> Tensor:
    """Returns float [B, L − 1]: the loss of each token but the first, by the logits [B, L − 1, V] before it."""
    B, L = tokens.shape
    return F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view(B, L - 1)
