"""Continues files with Ray Data: one `Generator` per actor, prompts in batches, results as Parquet.

    pip install ".[ray]" in the repository
    python examples/many_machines/with_ray.py prompts/*.bin --checkpoint examples/cpu_states/checkpoint \\
        --output generated-parquet --actors 2

Ray distributes the actors over the machines of its cluster, gives each the GPUs of --gpus, restarts dead ones, and
streams, so that only some files are in memory. A file's bytes depend only on its prompt and its index in the list, so
they equal those of `sharded.py` and of one process.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bgpt_fast import BGPT, Generator, Prompt
from bgpt_fast.documents import extension_of


class Continue:
    """An actor: loads the model once, then continues batch after batch.

    Args:
        checkpoint: a path that every machine sees.
        options: options of `Generator.generate`.
    """

    def __init__(self, checkpoint: str, options: dict[str, Any]) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.generator = Generator(BGPT.from_pretrained(checkpoint, device=device, dtype=torch.float32))
        self.options = options

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Maps the columns index and path to index, path, data and finished."""
        prompts = [
            Prompt(extension_of(path), Path(path).read_bytes(), int(index))
            for index, path in zip(batch["index"], batch["path"], strict=True)
        ]
        files = self.generator.generate(prompts, **self.options)
        return {
            "index": batch["index"],
            "path": batch["path"],
            "data": np.array([file.data for file in files], dtype=object),
            "finished": np.array([file.finished for file in files]),
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", nargs="+", help="files to continue")
    parser.add_argument("--checkpoint", required=True, help="a folder of weights, a .safetensors or .pth file")
    parser.add_argument("--output", required=True, help="a new folder for the Parquet files")
    parser.add_argument("--actors", type=int, default=1)
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of an actor")
    parser.add_argument("--batch-size", type=int, default=1024, help="prompts of a call; more keep the engine full")
    parser.add_argument("--max-new-bytes", type=int)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    try:
        import ray
    except ImportError as error:
        raise ImportError('this example needs Ray: pip install ".[ray]" in the repository') from error

    rows = [{"index": index, "path": str(Path(path).resolve())} for index, path in enumerate(options.prompts)]
    sampling = {name: getattr(options, name) for name in ("max_new_bytes", "temperature", "seed")}
    generated = ray.data.from_items(rows).map_batches(
        Continue,
        fn_constructor_kwargs={"checkpoint": str(Path(options.checkpoint).resolve()), "options": sampling},
        batch_size=options.batch_size,
        num_gpus=options.gpus,
        concurrency=options.actors,
    )
    generated.write_parquet(str(Path(options.output).resolve()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
