"""A whole training step of `BGPT` beside the released way of training, on the CPU.

    PYTHONPATH=. python benchmarks/bench_training.py --threads 2 --output training.json

The released way: Hugging Face's GPT-2 for both decoders, one-hot patches, documents padded to the longest, 17 positions
for 16 bytes. Both sides have the same random float32 weights, documents, threads and optimiser (AdamW); their losses
are compared before anything is timed. Steps of both alternate, so that a change of the machine's speed hits both.

Beside the times: the share of patch positions that are padding, and the peak memory of training, in bytes, that is by
how much a new process grows over two steps (gradients, AdamW's state and activations; the weights are there before).
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from memory import in_child, peak_growth
from peers import HuggingFaceBGPT, machine
from torch import Tensor, nn
from training_step import step_of
from transformers import logging

from bgpt_fast import BGPT, BGPTConfig, PackedPatches
from bgpt_fast.files import write_json


def timed(model: nn.Module, loss_of: Callable[[], Tensor], bf16: bool) -> Callable[[], float]:
    """One update on the CPU; returns its seconds."""
    step = step_of(model, loss_of, torch.device("cpu"), torch.bfloat16 if bf16 else None)

    def seconds() -> float:
        began = time.perf_counter()
        step()
        return time.perf_counter() - began

    return seconds


def documents(kind: str, patches: int, seed: int) -> list[tuple[str, bytes]]:
    """Four documents of together about `patches` patches, of equal or of mixed lengths."""
    stream = random.Random(seed)
    shares = {"equal": (0.25, 0.25, 0.25, 0.25), "mixed": (0.55, 0.25, 0.15, 0.05)}[kind]
    return [("bin", stream.randbytes(max(1, int(share * patches) - 2) * 16)) for share in shares]


def contender(side: str, config: BGPTConfig) -> tuple[nn.Module, Callable[[PackedPatches], Tensor]]:
    """A side with random weights, and its loss."""
    torch.manual_seed(0)
    if side == "ours":
        model = BGPT(config)
        return model, lambda batch: model(batch).loss
    peer = HuggingFaceBGPT(config)
    return peer, peer


def peak_bytes(side: str, config: BGPTConfig, files: list[tuple[str, bytes]], bf16: bool, threads: int) -> int:
    """Bytes by which this process grows at most in two steps; to be asked in a new one."""
    logging.set_verbosity_error()
    torch.set_num_threads(threads)
    batch = PackedPatches.from_bytes(files, config)
    model, loss_of = contender(side, config)
    step = timed(model, lambda: loss_of(batch), bf16)
    return peak_growth(lambda: (step(), step()))


def padding(batch: PackedPatches) -> tuple[float, float]:
    """The share of patch positions that are no document's: in the batch as it is packed, and padded to the longest."""
    lengths = batch.cu_seqlens.diff()
    real = int(lengths.sum())
    return 1 - real / batch.num_patches, 1 - real / (len(lengths) * int(lengths.max()))


def measure(arguments: argparse.Namespace) -> list[dict[str, object]]:
    config = BGPTConfig(
        hidden_size=arguments.hidden_size, patch_num_layers=arguments.layers[0], byte_num_layers=arguments.layers[1]
    )
    (ours, our_loss), (peer, peer_loss) = contender("ours", config), contender("released", config)
    peer.load_state_dict(ours.state_dict())
    rows: list[dict[str, object]] = []
    for kind in ("equal", "mixed"):
        files = documents(kind, arguments.patches, 0)
        batch = PackedPatches.from_bytes(files, config)
        our_padding, peer_padding = padding(batch)
        with torch.no_grad():
            gap = abs(float(our_loss(batch)) / float(peer_loss(batch)) - 1)
        if gap > 1e-5:
            raise SystemExit(f"the two models do not compute the same: their losses differ by {gap:.1e}")
        for dtype in arguments.dtypes:
            bf16 = dtype == "bf16"
            steps = [timed(ours, lambda: our_loss(batch), bf16), timed(peer, lambda: peer_loss(batch), bf16)]  # noqa: B023
            for step in steps:
                step()
            times = [[step() for step in steps] for _ in range(arguments.rounds)]
            mine, theirs = (median(column) for column in zip(*times, strict=True))
            memory = [
                in_child(peak_bytes, side, config, files, bf16, arguments.threads) for side in ("ours", "released")
            ]
            row = {
                "documents": kind,
                "dtype": dtype,
                "patches": batch.num_patches,
                "ours_s": mine,
                "released_s": theirs,
                "ratio": theirs / mine,
                "patches_per_s": batch.num_patches / mine,
                "ours_padding": our_padding,
                "released_padding": peer_padding,
                "ours_peak_bytes": memory[0],
                "released_peak_bytes": memory[1],
            }
            rows.append(row)
            print(json.dumps(row), flush=True)
        # The optimisers have moved the weights apart.
        peer.load_state_dict(ours.state_dict())
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", type=int, default=256, help="patches of a batch")
    parser.add_argument("--rounds", type=int, default=5, help="steps of each side")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtypes", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--hidden-size", type=int, default=768)
    parser.add_argument("--layers", type=int, nargs=2, default=[12, 3], metavar=("PATCH", "BYTE"))
    parser.add_argument("--output", type=Path, help="write the figures there as JSON")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    torch.set_num_threads(arguments.threads)
    where = machine()
    rows = measure(arguments)
    if arguments.output is not None:
        write_json(arguments.output, {"machine": where, "threads": arguments.threads, "rows": rows})


if __name__ == "__main__":
    main()
