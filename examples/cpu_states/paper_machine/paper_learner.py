"""A model, its optimisers and its place in the curriculum: all that a run of `train.py` is, and one step of it.

Letters: P patches, T target patches, S = 16 bytes a patch.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from paper_documents import CATEGORIES, RELEASED_SHARES, Documents, S, Stream, categories, operation_weights
from torch import Tensor

from bgpt_fast import BGPT, BGPTConfig
from bgpt_fast.byte_decoder import ByteLevelDecoder
from bgpt_fast.config import EOP
from bgpt_fast.files import atomic_write
from bgpt_fast.kernels.byte_attention.op import byte_attention_projected
from bgpt_fast.kernels.byte_embed.op import byte_embed
from bgpt_fast.kernels.linear_cross_entropy.op import linear_cross_entropy
from bgpt_fast.kernels.patch_attention.op import patch_attention
from bgpt_fast.layers import Linear
from bgpt_fast.training.config import Precision, TrainConfig
from bgpt_fast.training.optimizer import Optimizers
from bgpt_fast.training.precision import resolve_precision

_FOLLOW_EVERY = 8
"""Steps from one update of the averaged weights to the next."""
_INSTRUCTION = range(2, 6)
"""Columns of the instruction."""
_RIGHT = math.log(2)
"""A byte of less than so many nats has more than half of the probability, and is therefore the model's choice."""


@dataclasses.dataclass
class Place:
    """Where a run stands.

    `updates` counts those since the optimisers began; `accuracy` is the figure that the stage aims at, of its last
    steps; `width` counts states of a window; `seconds`, `core_seconds` and `targets` (patches predicted) are of all
    sessions; `start` and `draws` are the stream's.
    """

    step: int = 0
    updates: int = 0
    stage: int = 0
    stage_step: int = 0
    width: int = 0
    accuracy: float = 0.0
    seconds: float = 0.0
    core_seconds: float = 0.0
    targets: int = 0
    start: int = 0
    draws: int = 0


class Learner:
    """Trains by a recipe.

    Args:
        recipe: as recipe.json.
        model: a fresh one.
        device: where it trains.
    """

    def __init__(self, recipe: dict[str, Any], model: BGPT, device: torch.device) -> None:
        self.recipe = recipe
        self.model = model.to(device).train()
        self.device = device
        self.stages: list[dict[str, Any]] = recipe["stages"]
        self.precision = resolve_precision(recipe["precision"], model.config.hidden_size, device)
        self.optimizers = [_optimizer(model, recipe, kind, self.precision) for kind in _KINDS]
        self.average = {name: value.clone() for name, value in model.state_dict().items()}
        self.errors = torch.ones(CATEGORIES)
        self.place = Place()
        self._enter()

    @property
    def stage(self) -> dict[str, Any] | None:
        """The stage under way; None when all are done."""
        return self.stages[self.place.stage] if self.place.stage < len(self.stages) else None

    def autocast(self) -> torch.autocast:
        """The precision in which the model computes."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def go_to(self, stage: int) -> None:
        """Begins a stage, whatever came before."""
        self.place.stage = stage
        self._enter()

    def _enter(self) -> None:
        self.place.stage_step, self.place.accuracy = 0, 0.0
        if self.stage is not None:
            self.place.width = self.stage.get("widths", [0])[0]

    def step(self) -> dict[str, float]:
        """One update; returns its figures."""
        stage, place = self.stage, self.place
        assert stage is not None
        began, core = time.perf_counter(), time.process_time()
        documents = self._draw(stage)
        indices = self._choose(documents, stage["targets"] * self.recipe["batch_scale"])
        counted = self._counted(documents, indices, stage)
        nats = self._nats(documents, indices, counted)
        weights = _column_weights(stage).expand_as(counted)[counted].to(self.device)
        loss = (nats * weights).sum() / weights.sum()
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        rate = self._rate(stage)
        for optimizer, kind in zip(self.optimizers, _KINDS, strict=True):
            optimizer.set_factor(rate * stage.get("rates", {}).get(kind, 1.0))
            if math.isfinite(float(norm)):
                optimizer.step()
        self._follow()
        wrong = torch.zeros(counted.shape, dtype=torch.bool)
        wrong[counted] = (nats.detach() >= _RIGHT).cpu()
        self._remember(documents, indices, wrong.any(1).float())
        figures = {"loss": float(loss.detach()), "right": 1 - float(wrong.sum() / counted.sum()), "rate": rate}
        figures |= self._by_columns(documents, indices, counted, ~wrong)
        self._move_on(stage, figures)
        place.targets += len(indices)
        place.seconds += time.perf_counter() - began
        place.core_seconds += time.process_time() - core
        return figures

    def _by_columns(self, documents: Documents, indices: Tensor, counted: Tensor, right: Tensor) -> dict[str, float]:
        """Shares of right bytes: of the instruction, and of ACC and registers that change and that do not."""
        kinds = {"instruction": counted.clone()}
        kinds["instruction"][:, [c for c in range(S) if c not in _INSTRUCTION]] = False
        if bool(counted[:, S - 1].any()):
            changed = _changed(documents, indices)
            values = counted & (documents.patches[indices, :1] < EOP)
            values[:, [0, *_INSTRUCTION]] = False
            kinds |= {"changed": values & changed, "copied": values & ~changed}
        return {kind: float(right[which].float().mean()) for kind, which in kinds.items() if bool(which.any())}

    def _draw(self, stage: dict[str, Any]) -> Documents:
        place = self.place
        stream = Stream(self.model.config, self.recipe["seed"], place.start, place.draws)
        operations = self._operation_weights(stage).double().numpy()
        scale = self.recipe["batch_scale"]
        parts = []
        for part in stage["documents"]:
            options = {"width": place.width, "operations": operations, **part, "patches": part["patches"] * scale}
            parts.append(stream.take(**options))
        place.start, place.draws = stream.start, stream.draws
        return Documents.concatenate(parts)

    def _weights(self, stage: dict[str, Any]) -> Tensor:
        """How much each category counts in the choice of targets, float [CATEGORIES]."""
        errors = self.errors + self.recipe["evenness"] * self.errors[self._has_come].mean()
        return errors * operation_weights(stage.get("operation_weights", {}))

    def _operation_weights(self, stage: dict[str, Any]) -> Tensor:
        """How much each operation with each number of operands counts in drawn programs, float [21, 4].

        The mean of its categories that have come.
        """
        shape = (*RELEASED_SHARES.shape, -1)
        weights, has_come = (value.view(shape) for value in (self._weights(stage), self._has_come))
        return torch.where(has_come.any(2), (weights * has_come).sum(2) / has_come.sum(2).clamp(min=1), weights.mean(2))

    @property
    def _has_come(self) -> Tensor:
        """Which categories have been targets, bool [CATEGORIES]: most of an operation's can be those of no instruction.

        A category whose targets were all wrong so far counts as one that has not; before the first step, all have.
        """
        has_come = self.errors < 1
        return has_come if bool(has_come.any()) else torch.ones_like(has_come)

    def _choose(self, documents: Documents, most: int) -> Tensor:
        """Which patches to predict, rising: those whose category is often wrong come more often."""
        indices = documents.targets.nonzero().flatten()
        if len(indices) <= most:
            return indices
        weights = self._weights(self.stages[self.place.stage])[categories(documents.patches)[indices - 1]]
        generator = torch.Generator().manual_seed(self.place.draws)
        return indices[torch.multinomial(weights, most, generator=generator)].sort().values

    def _counted(self, documents: Documents, indices: Tensor, stage: dict[str, Any]) -> Tensor:
        """Which bytes of the targets count in the loss, bool [T, S].

        Those of columns with a weight; of bytes other than ACC and registers that change, the stage's share, drawn.
        """
        counted = (_column_weights(stage) > 0).repeat(len(indices), 1)
        if (share := stage.get("repeated_share", 1.0)) < 1:
            always = _changed(documents, indices)
            always[:, [0, *_INSTRUCTION]] = False
            generator = torch.Generator().manual_seed(self.place.draws)
            counted &= always | (torch.rand(always.shape, generator=generator) < share)
        return counted

    def _nats(self, documents: Documents, indices: Tensor, counted: Tensor) -> Tensor:
        """−log p of the `counted` bytes of the target patches, float32 [counted.sum()]."""
        columns = int(counted.any(0).nonzero().max()) + 1
        at = indices.to(self.device)
        with self.autocast():
            hidden = features(self.model, documents, self.device, rows=at - 1)
            patches = documents.patches[indices, :columns].contiguous().to(self.device)
            return byte_nats(self.model.byte_level_decoder, hidden, patches, counted[:, :columns].to(self.device))

    def _remember(self, documents: Documents, indices: Tensor, is_wrong: Tensor) -> None:
        """The share of wrong targets of each category, averaged over its last few hundred."""
        which = categories(documents.patches)[indices - 1]
        count = torch.zeros(CATEGORIES).index_add_(0, which, torch.ones(len(which)))
        wrong = torch.zeros(CATEGORIES).index_add_(0, which, is_wrong)
        keep = 0.99**count
        self.errors = torch.where(count > 0, keep * self.errors + (1 - keep) * wrong / count.clamp(min=1), self.errors)

    def _follow(self) -> None:
        """The averaged weights follow the weights; in a run's first steps faster."""
        if self.place.step % _FOLLOW_EVERY:
            return
        decay = min(self.recipe["average_decay"], 1 - 5 / (self.place.step + 10)) ** _FOLLOW_EVERY
        for name, value in self.model.state_dict().items():
            self.average[name].lerp_(value, 1 - decay)

    def _rate(self, stage: dict[str, Any]) -> float:
        """The factor of all rates: a warm-up in a line, times the stage's own, which may change in a line."""
        first, last = stage["rate"] if isinstance(stage["rate"], list) else [stage["rate"]] * 2
        share = min(1.0, self.place.stage_step / stage["steps"])
        return min(1.0, (self.place.updates + 1) / self.recipe["warm_up"]) * (first + (last - first) * share)

    def _move_on(self, stage: dict[str, Any], figures: dict[str, float]) -> None:
        """Counts the step; wider windows or the next stage where the stage's aim is reached."""
        place = self.place
        place.step += 1
        place.updates += 1
        place.stage_step += 1
        name, least = stage.get("until", ["right", 2.0])
        value = figures[name]
        place.accuracy = value if place.accuracy == 0.0 else 0.95 * place.accuracy + 0.05 * value
        widths = stage.get("widths", [0])
        is_reached = place.accuracy >= least
        if is_reached and place.width != widths[-1]:
            place.width = widths[widths.index(place.width) + 1]
            place.accuracy = 0.0
        elif is_reached or place.stage_step >= stage["steps"]:
            place.stage += 1
            self._enter()

    def load_model(self, folder: Path) -> None:
        """Goes on from a folder of `export.py`, or from any model's weights; the optimisers begin anew."""
        self.model.load_state_dict(BGPT.from_pretrained(folder, dtype=torch.float32).state_dict())
        self.average = {name: value.clone() for name, value in self.model.state_dict().items()}
        if (folder / "place.json").exists():
            fields = json.loads((folder / "place.json").read_text())
            self.errors = torch.tensor(fields.pop("errors"))
            # The recipe may have another aim for this stage than the one that the earlier accuracy was measured for.
            self.place = Place(**{**fields, "updates": 0, "accuracy": 0.0})

    def averaged_model(self) -> BGPT:
        """A model of the averaged weights."""
        model = BGPT(self.model.config)
        model.load_state_dict(self.average)
        return model.to(self.device).eval()

    def save(self, path: Path) -> None:
        """Writes everything, complete or absent."""
        optimizers = [optimizer.state_tensors() for optimizer in self.optimizers]
        optimizer_state = {name: value for tensors in optimizers for name, value in tensors.items()}
        with atomic_write(path) as file:
            torch.save(
                {
                    "model": self.model.state_dict(),
                    "average": self.average,
                    "optimizers": optimizer_state,
                    "errors": self.errors,
                    "place": dataclasses.asdict(self.place),
                    "config": self.model.config.to_dict(),
                },
                file,
            )

    def load(self, path: Path) -> None:
        """Goes on from what `save` wrote."""
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state["config"] != self.model.config.to_dict():
            raise ValueError(f"{path}: expected a run of {self.model.config}, got one of {state['config']}")
        self.model.load_state_dict(state["model"])
        self.average = state["average"]
        for optimizer, kind in zip(self.optimizers, _KINDS, strict=True):
            own = {name: value for name, value in state["optimizers"].items() if _kind(name) == kind}
            optimizer.load_state_tensors(own)
        self.errors = state["errors"].cpu()
        self.place = Place(**state["place"])


def features(model: BGPT, documents: Documents, device: torch.device, rows: Tensor | None = None) -> Tensor:
    """The patch-level decoder's features [P, D], or those of `rows`, of documents whose positions have gaps."""
    decoder = model.patch_level_decoder
    cu_seqlens, longest = documents.cu_seqlens.to(device), documents.max_seqlen
    patches, positions = documents.patches.to(device), documents.positions.to(device)
    embeddings = decoder.patch_embedding(patches, decoder.base.wpe.weight, positions)

    def attend(x: Tensor, projection: Linear, dropout: float) -> Tensor:
        q, k, v = projection(x).view(len(x), 3, decoder.heads, -1).unbind(1)
        return patch_attention(q, k, v, cu_seqlens, longest, dropout=dropout).reshape(x.shape)

    features_: Tensor = decoder.base(embeddings, attend, rows)
    return features_


def byte_nats(decoder: ByteLevelDecoder, hidden: Tensor, patches: Tensor, counted: Tensor) -> Tensor:
    """−log p of some bytes of the target patches, float32 [N]; the last layer computes no others after its attention.

    Args:
        decoder: the byte-level decoder.
        hidden: float [T, D], the feature of the patch before each target.
        patches: int16 [T, C], the targets' first C bytes.
        counted: bool [T, C], N of them, which bytes.
    """
    transformer = decoder.base.transformer

    def attend(x: Tensor, projection: Linear, dropout: float) -> Tensor:
        return byte_attention_projected(x.view(*patches.shape, -1), *projection, decoder.heads).view(x.shape)

    embeddings = byte_embed(hidden, patches, transformer.wte.weight, transformer.wpe.weight)
    rows = counted.flatten().nonzero().flatten()
    x = transformer(embeddings.flatten(0, 1), attend, rows)
    return linear_cross_entropy(x, decoder.base.lm_head.weight.to(x.dtype), patches.flatten()[rows])


def _column_weights(stage: dict[str, Any]) -> Tensor:
    """How much each byte of a patch counts, float32 [S]; those that the stage leaves out do not."""
    weights = stage["column_weights"]
    return torch.tensor([*weights, *[0] * (S - len(weights))], dtype=torch.float32)


def _changed(documents: Documents, indices: Tensor) -> Tensor:
    """Which bytes of the target patches differ from those of the patch before, bool [T, S]."""
    return documents.patches[indices] != documents.patches[indices - 1]


def new_model(config: BGPTConfig, seed: int) -> BGPT:
    """A model with its initial weights, drawn from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BGPT(config)


_KINDS = ("embeddings", "patch_attention", "patch_mlp", "byte_layers")
"""Parameters with rates of their own; the embeddings are all that is of no layer."""


def _kind(name: str) -> str:
    if ".h." not in name:
        return "embeddings"
    if name.startswith("byte_level_decoder"):
        return "byte_layers"
    return "patch_mlp" if ".mlp." in name else "patch_attention"


def _optimizer(model: BGPT, recipe: dict[str, Any], kind: str, precision: Precision) -> Optimizers:
    named = [(name, parameter) for name, parameter in model.named_parameters() if _kind(name) == kind]
    training = TrainConfig(
        steps=1,
        optimizer="muon",
        muon_learning_rate=recipe["muon_learning_rate"],
        learning_rate=recipe["learning_rate"],
        weight_decay=0.0,
        eps=1e-10,
        precision=precision,
    )
    return Optimizers(named, training)
