"""What a checkpoint folder needs for Hugging Face's hub: fields of config.json, a code file, a tokenizer, a card.

Written without transformers. `bgpt_fast.hf` has the classes that the fields name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bgpt_fast.checkpoint.task import ModelTask
from bgpt_fast.config import EOP, BGPTConfig
from bgpt_fast.files import atomic_write, write_json

MODEL_TYPE = "bgpt_fast"
DEFAULT_EXTENSION = "txt"
EOP_TEXT = "<eop>"
_CODE = "modeling_bgpt_fast"
_CODE_TEXT = '''"""The classes of this folder's model for transformers: those of bgpt_fast, which must be installed."""

try:
    from bgpt_fast.hf import (
        BGPTFastConfig,
        BGPTFastForCausalLM,
        BGPTFastForSequenceClassification,
        BGPTFastTokenizer,
    )
except ImportError as error:
    raise ImportError(
        "expected bgpt_fast and transformers 5, which this model needs; install both, bgpt_fast from its repository: "
        f"{error}"
    ) from error
'''


def default_extension(task: ModelTask | None) -> str:
    """The extension of a model's documents unless the caller names one: of its training files where they had one, or
    "txt" among several or if they are not known."""
    extensions = () if task is None else task.extensions
    return extensions[0] if extensions and DEFAULT_EXTENSION not in extensions else DEFAULT_EXTENSION


def config_fields(is_classifier: bool, extension: str) -> dict[str, Any]:
    """The fields of config.json that transformers reads; `checkpoint.schema.HUGGING_FACE_FIELDS` names them."""
    auto, name = (
        ("AutoModelForSequenceClassification", "BGPTFastForSequenceClassification")
        if is_classifier
        else ("AutoModelForCausalLM", "BGPTFastForCausalLM")
    )
    return {
        "model_type": MODEL_TYPE,
        "architectures": [name],
        "auto_map": {"AutoConfig": f"{_CODE}.BGPTFastConfig", auto: f"{_CODE}.{name}"},
        "extension": extension,
    }


def generation_settings(config: BGPTConfig) -> dict[str, Any]:
    """The defaults of `generate` in transformers: until the context is full, where transformers' own are 20 tokens."""
    length = (config.patch_length - 1) * config.patch_size
    return {"max_length": length, "eos_token_id": EOP, "pad_token_id": EOP}


def write_hub_files(folder: Path, config: BGPTConfig, *, is_classifier: bool, card: str) -> None:
    """Writes the files beside config.json and model.safetensors; a README.md that is there stays.

    Raises:
        OSError: a file cannot be written.
    """
    with atomic_write(folder / f"{_CODE}.py") as file:
        file.write(_CODE_TEXT.encode())
    tokenizer = {
        "tokenizer_class": "BGPTFastTokenizer",
        "auto_map": {"AutoTokenizer": [f"{_CODE}.BGPTFastTokenizer", None]},
        "model_max_length": (config.patch_length - 2) * config.patch_size,
        "padding_side": "left",
    }
    write_json(folder / "tokenizer_config.json", tokenizer)
    if not is_classifier:
        write_json(folder / "generation_config.json", generation_settings(config))
    if not (folder / "README.md").exists():
        with atomic_write(folder / "README.md") as file:
            file.write(card.encode(errors="replace"))  # names that are not UTF-8
