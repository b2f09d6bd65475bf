"""`bgpt-fast export`: writes a model as a folder of its own, also for transformers, and uploads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from bgpt_fast.checkpoint.hub import push_folder
from bgpt_fast.checkpoint.load import followed, load_weights
from bgpt_fast.checkpoint.model_card import ModelCard
from bgpt_fast.checkpoint.save import save_weights
from bgpt_fast.cli.common import new_folder, read_options
from bgpt_fast.cli.train_summary import data_text, source_descriptions
from bgpt_fast.parsing import read_json
from bgpt_fast.terminal import print_text


@dataclass(frozen=True, kw_only=True)
class Export:
    """Writes a model as a folder of its own: weights and config, without the optimiser and the rest of a run.

    With --hf also transformers loads the folder (trust_remote_code=True), and it has a model card with what the run
    knows: data, training, scores on held-out data. docs/hugging-face.md has the rest.

    Args:
        checkpoint: the model: a run's folder (its latest checkpoint), a checkpoint folder, a .safetensors or .pth file,
            or a hub id.
        output: a new or empty folder.
        dtype: dtype of the weights; "stored" keeps it.
        hf: also write what transformers and the hub need, and a model card.
        extension: with --hf, the kind of the documents that transformers' rows are; None means that of the training
            files, or txt.
        license: with --hf, the licence of the weights, as the hub calls it, such as mit; None does not state one.
        push_to_hub: "owner/name" on the hub to upload the folder to, after `hf auth login`; needs --hf.
        revision: branch to upload to; None means the main one.
        private: make a new repository private.
    """

    checkpoint: Annotated[str, tyro.conf.Positional]
    output: Path = Path("exported")
    dtype: Literal["stored", "float32", "bfloat16", "float16"] = "stored"
    hf: bool = False
    extension: str | None = None
    license: str | None = None
    push_to_hub: str | None = None
    revision: str | None = None
    private: bool = False


OPTIONS = Export


def run(words: Sequence[str]) -> int:
    options = read_options(Export, "export", words)
    if options.push_to_hub is not None and not options.hf:
        raise ValueError(
            "--push-to-hub: expected it with --hf, which writes the files that a hub repository has; add --hf"
        )
    checkpoint = load_weights(options.checkpoint)
    folder = new_folder(options.output, "the exported model")
    name = options.push_to_hub or folder.resolve().name
    save_weights(
        folder,
        checkpoint.config,
        checkpoint.state_dict,
        dtype=None if options.dtype == "stored" else getattr(torch, options.dtype),
        labels=checkpoint.labels,
        task=checkpoint.task,
        hf=options.hf,
        extension=options.extension,
        card=_card(followed(Path(options.checkpoint)), name, options.license) if options.hf else None,
    )
    print_text(f"model: {folder}")
    if options.push_to_hub is not None:
        address = push_folder(
            folder,
            options.push_to_hub,
            revision=options.revision,
            private=True if options.private else None,
            keep_card=False,
        )
        print_text(f"uploaded: {address}")
    return 0


def _card(folder: Path, name: str, licence: str | None) -> ModelCard:
    """The card of a checkpoint folder, with what its run says about it if it is one of a run."""
    state_path, run_path = folder / "state.json", folder.parent.parent / "run.json"
    if not (state_path.is_file() and run_path.is_file()):
        return ModelCard(name, licence)
    state, about = _fields(read_json(state_path)), _fields(read_json(run_path))
    settings = _fields(about.get("training"))
    steps, seconds = state.get("step", 0), state.get("seconds", 0)
    duration = f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} s"
    training = f"{steps:,} step{'' if steps == 1 else 's'} in {duration}"
    for key in ("optimizer", "precision"):
        training += f", {settings[key]}" if key in settings else ""
    scores = {
        f"{key.replace('_', ' ')} on held-out data": float(value)
        for key, value in _fields(state.get("evaluation")).items()
        if isinstance(value, int | float)
    }
    source = _fields(about.get("source"))
    return ModelCard(name, licence, data_text(source_descriptions(source)) if source else "", training, scores)


def _fields(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
