"""Simulates random programs of the toy CPU with Ray Data: pieces of programs go to actors, scores add up to one report.

    pip install ".[ray]" in the repository
    python examples/many_machines/simulate_with_ray.py --random 1000000 --checkpoint examples/cpu_states/checkpoint \\
        --output /shared/simulated --actors 2

The programs, their predictions and their scores are those of `bgpt-fast simulate --random`. An actor appends each
finished program to its piece's journal in OUTPUT/unfinished/. Ray starts a dead actor again and repeats its pieces,
which go on after their last finished program; so does this command if it is run again. The report is complete when
OUTPUT/report.json exists. With --write parquet, OUTPUT/predicted/ has a Parquet file for each piece.
"""

from __future__ import annotations

import argparse
import os
import pickle
import socket
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bgpt_fast import BGPT
from bgpt_fast.cli.outputs import fingerprint
from bgpt_fast.cli.simulate_folder import SimulationFolder, chunk_path
from bgpt_fast.cli.simulate_results import programs_digest
from bgpt_fast.tasks.cpu_states import SMALL_MACHINE, StreamOptions, generate
from bgpt_fast.tasks.cpu_states.assessment import Evaluator, Scores
from bgpt_fast.tasks.cpu_states.chunk_journal import ChunkJournal, digest
from bgpt_fast.tasks.cpu_states.machine import state_size
from bgpt_fast.tasks.cpu_states.predictions import predictions_to_parquet
from bgpt_fast.tasks.cpu_states.programs import random_chunks

_BLOCKS_PER_ACTOR = 64


class SimulatePieces:
    """An actor: loads the model once, then simulates piece after piece.

    Args:
        options: those of the command; every machine sees their paths.
        machine: the machine and its programs.
    """

    def __init__(self, options: argparse.Namespace, machine: StreamOptions) -> None:
        self.options, self.machine = options, machine
        model = load(options.checkpoint, "cuda" if torch.cuda.is_available() else "cpu")
        self.evaluator = Evaluator(
            model, machine.num_registers, max_batch=options.max_batch, precision=options.precision
        )

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Maps the columns of `pieces` to digest, scores (pickled `Scores`) and worker of each piece."""
        rows = [
            self.simulate(*(int(value) for value in row))
            for row in zip(batch["piece"], batch["first"], batch["start"], batch["count"], strict=True)
        ]
        worker = f"{socket.gethostname()} {os.getpid()}"
        return {
            "piece": batch["piece"],
            "digest": np.array([digest for digest, _ in rows], dtype=object),
            "scores": np.array([scores for _, scores in rows], dtype=object),
            "worker": np.array([worker] * len(rows)),
        }

    def simulate(self, piece: int, first: int, start: int, count: int) -> tuple[bytes, bytes]:
        """Simulates one piece.

        Args:
            piece: its number.
            first: number of its first program among all.
            start: position in the stream of programs.
            count: number of programs.
        """
        seed, machine = self.options.seed, asdict(self.machine)
        traces = generate(count, seed=seed, stream="philox", split="eval", start=start, **machine)
        with ChunkJournal(chunk_path(self.options.output, piece), traces) as saved:
            chunk = self.evaluator.add(traces, saved=saved)
        if self.options.write == "parquet":
            path = self.options.output / "predicted" / f"{piece:06d}.parquet"
            names = [f"{number:06d}-{trace.name}" for number, trace in enumerate(traces, first)]
            with predictions_to_parquet(path, self.machine.num_registers, self.machine.memory_size) as table:
                table.add(names, chunk.predicted, traces)
        return digest(traces), pickle.dumps(chunk.scores)


def pieces(options: argparse.Namespace, machine: StreamOptions) -> Iterator[dict[str, int]]:
    """The arguments of `SimulatePieces.simulate` for each piece; draws all programs, to know where pieces begin."""
    first = start = 0
    chunks = random_chunks(options.random, machine, seed=options.seed, chunk_size=options.piece_size)
    for piece, traces in enumerate(chunks):
        yield {"piece": piece, "first": first, "start": start, "count": len(traces)}
        first, start = first + len(traces), traces.next_start or 0


def load(checkpoint: Path, device: str) -> BGPT:
    return BGPT.from_pretrained(str(checkpoint), device=device, dtype=torch.float32)


def merged(rows: Iterable[dict[str, Any]], num_registers: int) -> tuple[Scores, dict[int, bytes]]:
    """The scores of all pieces, with the time of the worker that took longest, and the pieces' digests."""
    total, digests, seconds = Scores(state_size(num_registers)), {}, defaultdict(lambda: [0.0, 0.0])
    for row in rows:
        scores = pickle.loads(row["scores"])
        total.merge(scores)
        digests[row["piece"]] = row["digest"]
        seconds[row["worker"]][0] += scores.seconds
        seconds[row["worker"]][1] += scores.forced_seconds
    total.seconds, total.forced_seconds = (max(times) for times in zip(*seconds.values(), strict=True))
    return total, digests


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The options of the command, with absolute paths."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="a folder of weights, a .safetensors or .pth file"
    )
    parser.add_argument("--output", type=Path, required=True, help="a folder that every machine sees; new, or resumed")
    parser.add_argument("--random", type=int, default=1000, help="number of random held-out programs")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--registers", type=int, default=SMALL_MACHINE.num_registers)
    parser.add_argument("--memory", type=int, default=SMALL_MACHINE.memory_size)
    parser.add_argument("--max-program", type=int, default=SMALL_MACHINE.max_program)
    parser.add_argument("--piece-size", type=int, default=4096, help="programs of a piece (default: %(default)s)")
    parser.add_argument("--actors", type=int, default=1)
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of an actor")
    parser.add_argument("--max-batch", type=int, default=1024, help="programs that an actor simulates at once")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--write", choices=("none", "parquet"), default="none")
    options = parser.parse_args(words)
    options.checkpoint, options.output = options.checkpoint.resolve(), options.output.resolve()
    return options


def machine_of(options: argparse.Namespace) -> StreamOptions:
    return StreamOptions(options.registers, options.memory, 1, options.max_program)


def main() -> int:
    options = parse()
    machine = machine_of(options)
    try:
        import ray
    except ImportError as error:
        raise ImportError('this example needs Ray: pip install ".[ray]" in the repository') from error

    names = ("random", "seed", "piece_size", "precision", "write")
    plan = {name: getattr(options, name) for name in names} | {"machine": asdict(machine)}
    folder = SimulationFolder(options.output, plan | {"model": fingerprint(load(options.checkpoint, "cpu"))})
    try:
        if folder.complete:
            print(f"{options.output}/report.json exists: nothing to do", file=sys.stderr)
            return 0
        todo = list(pieces(options, machine))
        # A block is what is repeated after an actor has died: enough of them for equal loads.
        blocks = min(len(todo), _BLOCKS_PER_ACTOR * options.actors)
        results = ray.data.from_items(todo, override_num_blocks=blocks).map_batches(
            SimulatePieces,
            fn_constructor_args=(options, machine),
            batch_size=1,
            num_gpus=options.gpus,
            compute=ray.data.ActorPoolStrategy(size=options.actors),
        )
        scores, digests = merged(results.iter_rows(), machine.num_registers)
        assessment = scores.assessment()
        programs = programs_digest(digests[piece] for piece in range(len(todo)))
        folder.finish({"programs_digest": programs, **assessment.to_dict()})
        print(assessment.free_running.summary())
    finally:
        folder.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
