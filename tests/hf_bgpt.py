"""The paper's model assembled from Hugging Face's GPT-2, as its authors did: padded, one-hot, S + 1 byte positions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

from bgpt_fast import BGPTConfig, PackedPatches


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
        attn_implementation="eager",
    )


class _PatchLevelDecoder(nn.Module):
    def __init__(self, config: BGPTConfig) -> None:
        super().__init__()
        self.patch_embedding = nn.Linear(config.patch_size * 257, config.hidden_size)
        self.base = GPT2Model(_gpt2(config, config.patch_num_layers, config.patch_heads, config.patch_length, 1))

    def forward(self, patches: Tensor, mask: Tensor) -> Tensor:
        one_hot = F.one_hot(patches, 257).to(self.patch_embedding.weight.dtype).flatten(2)
        return self.base(inputs_embeds=self.patch_embedding(one_hot), attention_mask=mask)["last_hidden_state"]


class _ByteLevelDecoder(nn.Module):
    def __init__(self, config: BGPTConfig) -> None:
        super().__init__()
        self.base = GPT2LMHeadModel(
            _gpt2(config, config.byte_num_layers, config.byte_heads, config.patch_size + 1, 257)
        )


class HuggingFaceBGPT(nn.Module):
    """Takes the same batches as `BGPT` and pads them; its `state_dict` is the released layout."""

    def __init__(self, config: BGPTConfig) -> None:
        super().__init__()
        self.patch_level_decoder = _PatchLevelDecoder(config)
        self.byte_level_decoder = _ByteLevelDecoder(config)

    def features(self, batch: PackedPatches) -> tuple[Tensor, Tensor, Tensor]:
        """Padded patches [B, L, S], their mask [B, L] and their features [B, L, D]."""
        lengths = batch.cu_seqlens.diff().tolist()
        documents = batch.patches.long().split(lengths)
        patches = nn.utils.rnn.pad_sequence(documents, batch_first=True, padding_value=256)
        mask = nn.utils.rnn.pad_sequence([torch.ones(n, dtype=torch.long) for n in lengths], batch_first=True)
        return patches, mask, self.patch_level_decoder(patches, mask)

    def forward(self, batch: PackedPatches) -> Tensor:
        """The released loss: mean cross-entropy over all positions of every patch but the extension patches."""
        patches, mask, features = self.features(batch)
        has_next = mask.clone()
        has_next[torch.arange(len(mask)), mask.sum(1) - 1] = 0
        is_target = mask.clone()
        is_target[:, 0] = 0
        targets = patches[is_target == 1]
        tokens = torch.cat([torch.full_like(targets[:, :1], 256), targets], dim=1)
        base = self.byte_level_decoder.base
        embeddings = F.embedding(tokens, base.transformer.wte.weight)
        embeddings = torch.cat([features[has_next == 1][:, None], embeddings[:, 1:]], dim=1)
        return base(inputs_embeds=embeddings, labels=tokens).loss
