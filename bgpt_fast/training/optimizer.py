"""Optimisers over named parameters: only AdamW, or Muon for the layers' matrices and AdamW for the rest."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from bgpt_fast.training.config import TrainConfig
from bgpt_fast.training.muon import Muon
from bgpt_fast.training.parallel.dtensor import with_layout_of


def is_layer_matrix(name: str, parameter: Tensor) -> bool:
    """Whether a parameter is a weight matrix of a decoder's layers (attention or MLP), not an embedding or a vector."""
    return parameter.ndim == 2 and ".h." in name


def is_decayed(name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies: to matrices except the position embeddings."""
    return parameter.ndim >= 2 and "wpe" not in name.split(".")


class Optimizers:
    """The optimisers of one model, stepped together, with their state by parameter name.

    Args:
        named_parameters: `model.named_parameters()`, on the training device.
        config: optimiser, learning rates, weight decay, betas, eps and momentum are used; and the precision, "fp32" or
            "bf16": with "fp32" on a CPU, Muon's products run in float32, else in bfloat16.
    """

    def __init__(self, named_parameters: Iterable[tuple[str, nn.Parameter]], config: TrainConfig) -> None:
        named = [(name, parameter) for name, parameter in named_parameters if parameter.requires_grad]
        use_muon = config.optimizer == "muon"
        matrices = [(name, parameter) for name, parameter in named if use_muon and is_layer_matrix(name, parameter)]
        in_muon = {name for name, _ in matrices}
        rest = [(name, parameter) for name, parameter in named if name not in in_muon]
        decayed = [(name, parameter) for name, parameter in rest if is_decayed(name, parameter)]
        plain = [(name, parameter) for name, parameter in rest if not is_decayed(name, parameter)]
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        device = next((parameter.device for _, parameter in named), torch.device("cpu"))
        self._in_graph = config.cuda_graph and not matrices
        self._adamw = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=config.learning_rate,
            betas=config.betas,
            eps=config.eps,
            fused=True,
            capturable=self._in_graph and device.type == "cuda",
        )
        if self._in_graph:
            # A graph reads the learning rate from the device. Not in the call above, which would wait for its value.
            for group in self._adamw.param_groups:
                group["lr"] = torch.tensor(config.learning_rate, device=device)
        self._muon: torch.optim.Optimizer | None = None
        if matrices:
            is_float32 = config.precision == "fp32" and matrices[0][1].device.type == "cpu"
            self._muon = Muon(
                matrices,
                lr=config.muon_learning_rate or config.learning_rate,
                weight_decay=config.weight_decay,
                momentum=config.muon_momentum,
                dtype=torch.float32 if is_float32 else torch.bfloat16,
            )
        self._config = config
        self.parameters = [parameter for _, parameter in named]

    @property
    def muon_names(self) -> list[str]:
        """Names of the parameters that Muon updates."""
        return [name for group in (self._muon.param_groups if self._muon else []) for name in group["param_names"]]

    def set_factor(self, factor: float) -> float:
        """Sets every learning rate to `factor` times its peak; returns AdamW's."""
        rate = self._config.learning_rate * factor
        for group in self._adamw.param_groups:
            if self._in_graph:
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        if self._muon is not None:
            for group in self._muon.param_groups:
                group["lr"] = (self._config.muon_learning_rate or self._config.learning_rate) * factor
        return rate

    @property
    def can_skip(self) -> bool:
        """Whether `step` takes `skip`."""
        return self._muon is None

    def step(self, skip: Tensor | None = None) -> None:
        """Updates every parameter that has a gradient.

        Args:
            skip: float32 scalar on the device; if it is 1, neither weights nor state change. The host does not wait for
                it. Only if `can_skip`.
        """
        self._adamw.found_inf = skip  # type: ignore[attr-defined]  # as torch.amp.GradScaler does
        for optimizer in self._all():
            optimizer.step()

    def zero_grad(self, *, keep: bool = False) -> None:
        """Sets all gradients to None; with `keep`, zeroes them in place."""
        for optimizer in self._all():
            optimizer.zero_grad(set_to_none=not keep)

    def state_tensors(self) -> dict[str, Tensor]:
        """The state as a flat dict: "parameter name/field" → tensor."""
        return {
            f"{name}/{field}": value
            for optimizer in self._all()
            for name, parameter in _named(optimizer)
            for field, value in optimizer.state.get(parameter, {}).items()
        }

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `state_tensors`.

        Raises:
            ValueError: the state belongs to other parameters or to another optimiser.
        """
        remaining = dict(tensors)
        for optimizer in self._all():
            fields = ("momentum_buffer",) if optimizer is self._muon else ("step", "exp_avg", "exp_avg_sq")
            state: dict[int, dict[str, Tensor]] = {}
            for index, (name, parameter) in enumerate(_named(optimizer)):
                values = {field: remaining.pop(f"{name}/{field}") for field in fields if f"{name}/{field}" in remaining}
                for field, value in values.items():
                    if field != "step" and value.shape != parameter.shape:
                        raise ValueError(
                            f"optimizer state {name}/{field}: expected shape {tuple(parameter.shape)}, "
                            f"got {tuple(value.shape)}"
                        )
                if values and len(values) != len(fields):
                    raise ValueError(f"optimizer state {name}: expected {list(fields)}, got {sorted(values)}")
                if values:
                    state[index] = {
                        field: value if field == "step" else with_layout_of(value, parameter)
                        for field, value in values.items()
                    }
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        if remaining:
            raise ValueError(
                f"optimizer state: {len(remaining)} tensors fit no parameter of optimizer={self._config.optimizer!r}, "
                f"such as {min(remaining)!r}; resume with the optimizer and the model that the run was started with"
            )

    def _all(self) -> list[torch.optim.Optimizer]:
        return [self._adamw] if self._muon is None else [self._adamw, self._muon]


def _named(optimizer: torch.optim.Optimizer) -> list[tuple[str, nn.Parameter]]:
    """Names and parameters in `state_dict` order."""
    return [
        pair for group in optimizer.param_groups for pair in zip(group["param_names"], group["params"], strict=True)
    ]
