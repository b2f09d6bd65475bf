"""What both models for transformers share: they hold one of bgpt_fast's models, which loads and saves the weights."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from transformers import PreTrainedModel

from bgpt_fast.checkpoint.hub import hub_path, is_hub_id
from bgpt_fast.checkpoint.load import followed
from bgpt_fast.checkpoint.schema import CONFIG_FILE
from bgpt_fast.classifier import BGPTForClassification
from bgpt_fast.hf.config import BGPTFastConfig
from bgpt_fast.model import BGPT

_HUB = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
_IGNORED = (
    "_from_auto",
    "_from_pipeline",
    "adapter_kwargs",
    "attn_implementation",
    "code_revision",
    "low_cpu_mem_usage",
    "trust_remote_code",
    "use_safetensors",
    "weights_only",
)
"""Arguments of transformers that change nothing here: how the weights are read, and which kernels run, is fixed."""


class BGPTFastPreTrainedModel(PreTrainedModel):
    """A model of bgpt_fast behind the interface of transformers.

    Attributes:
        model: the `BGPT` or `BGPTForClassification`, whose weights are this model's.
        config: its configuration.
    """

    config_class = BGPTFastConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    kind: type[BGPT] | type[BGPTForClassification]
    model: BGPT | BGPTForClassification

    def init_weights(self) -> None:
        """Nothing: `model` has initialised its weights, as the paper says."""

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *model_args: Any,
        config: BGPTFastConfig | None = None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        device_map: object = None,
        **kwargs: Any,
    ) -> Self:
        """Loads a model, in evaluation mode.

        Args:
            pretrained_model_name_or_path: any source that `BGPT.from_pretrained` accepts. A folder's or a hub
                repository's `config.json` need not have been written for transformers.
            config: replaces the stored `extension`, labels' names and settings of transformers; None means the stored.
            dtype, torch_dtype: as "float32" or torch.float32; None or "auto" means the stored dtype.
            device_map: a device, such as "cuda:0" or {"": "cuda:0"}; None means the CPU.
            kwargs: revision, token, cache_dir, force_download, local_files_only and subfolder of the hub, and fields of
                the configuration such as `extension`.

        Raises:
            CheckpointError: as `BGPT.from_pretrained`.
            TypeError, ValueError: another argument, which this model has not, such as quantization_config.
        """
        hub = {name: kwargs.pop(name) for name in _HUB if kwargs.get(name) is not None}
        for name in (*_HUB, *_IGNORED):
            kwargs.pop(name, None)
        path = followed(Path(_local_path(pretrained_model_name_or_path, hub)))
        model = cls.kind.from_pretrained(path, device=_device_of(device_map), dtype=_dtype_of(dtype or torch_dtype))
        if config is None and (path / CONFIG_FILE).is_file():
            config = cls.config_class.from_pretrained(path)
        elif config is None:
            config = config_of(model)
        for name in list(kwargs):
            if hasattr(config, name):
                setattr(config, name, kwargs.pop(name))
        if model_args or kwargs:
            raise TypeError(
                f"{cls.__name__}.from_pretrained: expected the arguments of its help, got also "
                f"{[*map(repr, model_args), *sorted(kwargs)]}, which this model has not"
            )
        config.dtype = next(model.parameters()).dtype
        config.name_or_path = os.fspath(pretrained_model_name_or_path)
        return cls(config, model).eval()

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | os.PathLike[str], *, push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """Writes a folder that loads in bgpt_fast and, with trust_remote_code=True, in transformers alike.

        Args:
            save_directory: created if missing; a checkpoint in it is replaced.
            push_to_hub: True also uploads it, to `kwargs["repo_id"]`.
            kwargs: of the hub, for `push_to_hub`: repo_id, private, token, revision, commit_message. Other arguments of
                transformers, such as max_shard_size and state_dict, change nothing: there is one file of weights.

        Raises:
            CheckpointError, OSError: as `BGPT.save_pretrained`.
        """
        self.model.save_pretrained(save_directory, hf=True, extension=self.config.extension)
        if push_to_hub:
            names = ("private", "token", "revision", "commit_message", "create_pr")
            repo_id = kwargs.get("repo_id") or Path(save_directory).name
            self.push_to_hub(repo_id, **{name: kwargs[name] for name in names if name in kwargs})

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:  # type: ignore[override]
        """`BGPT.push_to_hub`; returns the commit's address."""
        return self.model.push_to_hub(repo_id, extension=self.config.extension, **kwargs)


def config_of(model: BGPT | BGPTForClassification) -> BGPTFastConfig:
    """The configuration of a model."""
    return BGPTFastConfig(
        model.config.to_dict(),
        getattr(model, "labels", None),
        None if model.task is None else model.task.to_dict(),
    )


def _local_path(source: str | os.PathLike[str], hub: Mapping[str, Any]) -> str | os.PathLike[str]:
    """A path of this machine: `source` itself, or where the hub's cache has the repository's weights."""
    if os.path.exists(source):
        return Path(source, hub["subfolder"]) if "subfolder" in hub else source
    return hub_path(source, **hub) if isinstance(source, str) and is_hub_id(source) else source


def _dtype_of(dtype: torch.dtype | str | None) -> torch.dtype | None:
    if dtype is None or dtype == "auto" or isinstance(dtype, torch.dtype):
        return None if dtype == "auto" else dtype  # type: ignore[return-value]
    known = getattr(torch, dtype, None)
    if not isinstance(known, torch.dtype):
        raise ValueError(f'from_pretrained: dtype: expected a dtype of torch, its name or "auto", got {dtype!r}')
    return known


def _device_of(device_map: object) -> torch.device | None:
    if isinstance(device_map, Mapping) and list(device_map) == [""]:
        device_map = device_map[""]
    if device_map is None:
        return None
    if device_map == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if isinstance(device_map, str | int | torch.device):
        return torch.device(device_map)
    raise ValueError(
        'from_pretrained: device_map: expected one device for the whole model, such as "cuda:0", got '
        f"{device_map!r:.200}"
    )
