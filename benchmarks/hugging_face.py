"""The released method: the paper's model from Hugging Face's GPT-2, as its authors assembled and ran it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model, logging

from bgpt_fast import BGPTConfig, PackedPatches, ReferenceBGPT
from bgpt_fast.config import EOP

logging.set_verbosity_error()


def _gpt2(config: BGPTConfig, layers: int, heads: int, positions: int, vocab_size: int) -> GPT2Config:
    return GPT2Config(
        vocab_size=vocab_size,
        n_positions=positions,
        n_embd=config.hidden_size,
        n_layer=layers,
        n_head=heads,
        resid_pdrop=config.dropout,
        embd_pdrop=config.dropout,
        attn_pdrop=config.dropout,
        attn_implementation="sdpa",
    )


class _PatchLevelDecoder(nn.Module):
    def __init__(self, config: BGPTConfig) -> None:
        super().__init__()
        self.vocab_size = config.vocab_size
        self.patch_embedding = nn.Linear(config.patch_size * config.vocab_size, config.hidden_size)
        sizes = (config.patch_num_layers, config.patch_heads, config.patch_length, 1)
        self.base = GPT2Model(_gpt2(config, *sizes))

    def forward(self, patches: Tensor, mask: Tensor) -> Tensor:
        one_hot = F.one_hot(patches, self.vocab_size).to(self.patch_embedding.weight.dtype).flatten(2)
        return self.base(inputs_embeds=self.patch_embedding(one_hot), attention_mask=mask)["last_hidden_state"]


class _ByteLevelDecoder(nn.Module):
    def __init__(self, config: BGPTConfig) -> None:
        super().__init__()
        sizes = (config.byte_num_layers, config.byte_heads, config.patch_size + 1, config.vocab_size)
        self.base = GPT2LMHeadModel(_gpt2(config, *sizes))


class HuggingFaceBGPT(nn.Module):
    """Takes the batches of `BGPT` and pads them; runs S + 1 byte positions; `state_dict` has the released layout.

    Args:
        config: sizes.
    """

    def __init__(self, config: BGPTConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_level_decoder = _PatchLevelDecoder(config)
        self.byte_level_decoder = _ByteLevelDecoder(config)

    def features(self, batch: PackedPatches) -> tuple[Tensor, Tensor, Tensor]:
        """Padded patches [B, L, S], their mask [B, L] and their features [B, L, D]."""
        lengths = batch.cu_seqlens.diff().tolist()
        documents = batch.patches.long().split(lengths)
        patches = nn.utils.rnn.pad_sequence(documents, batch_first=True, padding_value=EOP)
        ones = [torch.ones(n, dtype=torch.long, device=patches.device) for n in lengths]
        mask = nn.utils.rnn.pad_sequence(ones, batch_first=True)
        return patches, mask, self.patch_level_decoder(patches, mask)

    def forward(self, batch: PackedPatches) -> Tensor:
        """The released loss: mean cross-entropy over all positions of every patch but the extension patches."""
        patches, mask, features = self.features(batch)
        has_next = mask.clone()
        has_next[torch.arange(len(mask), device=mask.device), mask.sum(1) - 1] = 0
        is_target = mask.clone()
        is_target[:, 0] = 0
        targets = patches[is_target == 1]
        tokens = torch.cat([torch.full_like(targets[:, :1], EOP), targets], dim=1)
        base = self.byte_level_decoder.base
        embeddings = F.embedding(tokens, base.transformer.wte.weight)
        embeddings = torch.cat([features[has_next == 1][:, None], embeddings[:, 1:]], dim=1)
        return base(inputs_embeds=embeddings, labels=tokens).loss

    @torch.no_grad()
    def next_patch(self, patches: Tensor) -> list[int]:
        """The bytes of the patch after `patches` int64 [P, S], decoded greedily without caches."""
        mask = torch.ones(1, len(patches), dtype=torch.long, device=patches.device)
        feature = self.patch_level_decoder(patches[None], mask)[0, -1:]
        decoder = self.byte_level_decoder.base
        tokens: list[int] = []
        while len(tokens) < self.config.patch_size and EOP not in tokens:
            before = torch.tensor(tokens, dtype=torch.int64, device=patches.device)
            inputs = torch.cat([feature, decoder.transformer.wte(before)])
            logits = decoder(inputs_embeds=inputs[None], use_cache=False).logits[0, -1]
            tokens.append(int(logits.argmax()))
        return tokens


class HuggingFaceNotaGen(nn.Module):
    """NotaGen as its authors assembled it: no cache in generation; `state_dict` has the layout of its `.pth` files.

    Args:
        config: sizes, with NotaGen's alphabet.
    """

    def __init__(self, config: BGPTConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_level_decoder = _PatchLevelDecoder(config)
        self.char_level_decoder = _ByteLevelDecoder(config)

    def forward(self, tunes: Sequence[Tensor]) -> Tensor:
        """The released loss of tunes int64 [P, S]: the mean over all symbols but `pad` of all patches but the first."""
        patches = nn.utils.rnn.pad_sequence([*tunes], batch_first=True, padding_value=self.config.pad or 0)
        mask = nn.utils.rnn.pad_sequence([torch.ones(len(tune), dtype=torch.long) for tune in tunes], batch_first=True)
        features = self.patch_level_decoder(patches, mask)
        has_next = mask * (mask.flip(1).cumsum(1).flip(1) > 1)
        is_target = mask.clone()
        is_target[:, 0] = 0
        targets = patches[is_target == 1]
        tokens = torch.cat([torch.full_like(targets[:, :1], self.config.bos or 0), targets], dim=1)
        labels = tokens.masked_fill(tokens == self.config.pad, -100)
        base = self.char_level_decoder.base
        embeddings = F.embedding(tokens, base.transformer.wte.weight)
        embeddings = torch.cat([features[has_next == 1][:, None], embeddings[:, 1:]], dim=1)
        return base(inputs_embeds=embeddings, attention_mask=(labels != -100).long(), labels=labels).loss

    @torch.no_grad()
    def next_patch(self, patches: Tensor, choose: Callable[[Tensor, int], int], known: Sequence[int] = ()) -> list[int]:
        """The symbols of the patch after `patches` int64 [P, S] that follow the known ones.

        `choose` takes the probabilities [V] and the position of a symbol. All positions are computed, also after `eos`.
        """
        feature = self.patch_level_decoder(patches[None], torch.ones(1, len(patches), dtype=torch.long))[0, -1:]
        decoder = self.char_level_decoder.base
        symbols = [*known]
        while len(symbols) < self.config.patch_size:
            inputs = torch.cat([feature, decoder.transformer.wte(torch.tensor(symbols, dtype=torch.int64))])
            logits = decoder(inputs_embeds=inputs[None]).logits[0, -1]
            symbols.append(choose(logits.softmax(0), len(symbols)))
        return symbols[len(known) :]


def batched_reference(model: ReferenceBGPT) -> Callable[[Tensor], Tensor]:
    """The loss of `ReferenceBGPT` as a function of patches int16 [B, L, S]: documents of equal length in one batch.

    The reference itself loops over documents and patches, which torch.compile cannot speed up. Here its two decoders
    run under `torch.vmap`, so that the compiler sees the whole batch.
    """
    patch_decoder = torch.vmap(model.patch_level_decoder, randomness="different")
    byte_decoder = torch.vmap(model.byte_level_decoder, randomness="different")

    def loss_of(patches: Tensor) -> Tensor:
        features = patch_decoder(patches)[:, :-1].flatten(0, 1)
        targets = patches[:, 1:].flatten(0, 1)
        logits = byte_decoder(features, targets)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten().long())

    return loss_of
