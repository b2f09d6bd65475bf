"""Continues files on W processes: each takes every W-th prompt and writes its part; rank 0 merges the parts.

    torchrun --nproc-per-node 2 examples/many_machines/sharded.py prompts/*.bin \\
        --checkpoint examples/cpu_states/checkpoint --output generated

On several machines give torchrun its --nnodes and --rdzv-endpoint, and an --output on a shared file system. A file's
bytes depend only on its prompt and its index in the list, so the number of processes does not change them. A rerun
with the same number of processes after a kill generates only the missing files.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import closing, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from bgpt_fast import BGPT, Generator, Prompt
from bgpt_fast.cli.outputs import FileRequest, OutputFolder, generate_files
from bgpt_fast.documents import extension_of
from bgpt_fast.files import write_json


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", type=Path, nargs="+", help="files to continue, the same list on every process")
    parser.add_argument("--checkpoint", required=True, help="a folder of weights, a .safetensors or .pth file")
    parser.add_argument("--output", type=Path, required=True, help="a new folder, or one that this command began")
    parser.add_argument("--max-new-bytes", type=int)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout-minutes", type=float, default=600, help="how long to wait for the slowest process")
    options = parser.parse_args()
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if (options.output / "report.json").exists():
        print(f"{options.output}/report.json exists: nothing to do", file=sys.stderr)
        if rank == 0:  # of a merge that was killed after it had written the report
            shutil.rmtree(options.output / "parts", ignore_errors=True)
        return 0
    if world_size > 1:
        distributed.init_process_group("gloo", timeout=timedelta(minutes=options.timeout_minutes))
    try:
        write_part(options, rank, world_size)
        if world_size > 1:
            distributed.barrier()  # if a process has failed, torchrun ends the others here
        if rank == 0:
            merge(options.output, world_size, len(options.prompts))
        if world_size > 1:
            distributed.barrier()
    finally:
        if world_size > 1:
            distributed.destroy_process_group()
    return 0


def part_folder(output: Path, rank: int, world_size: int) -> Path:
    return output / "parts" / f"{rank:05d}-of-{world_size:05d}"


def write_part(options: argparse.Namespace, rank: int, world_size: int) -> None:
    """Generates every `world_size`-th file."""
    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    generator = Generator(BGPT.from_pretrained(options.checkpoint, device=device, dtype=torch.float32))
    requests = []
    for index in range(rank, len(options.prompts), world_size):
        path = options.prompts[index]
        extension = extension_of(path)
        # The index in the list of all prompts is the file's random stream, so the number of processes changes nothing.
        prompt = Prompt(extension, path.read_bytes(), index)
        requests.append(FileRequest(f"{index:07d}.{extension}" if extension else f"{index:07d}", prompt, str(path)))
    plan = {name: str(value) for name, value in vars(options).items() if name not in ("output", "timeout_minutes")}
    part = part_folder(options.output, rank, world_size)
    take_back(options.output, part, [request.name for request in requests])
    sampling = {"temperature": options.temperature, "seed": options.seed}
    with closing(OutputFolder(part, plan, "a part")) as folder:
        generate_files(generator, requests, folder, f"process {rank}", sampling, max_new_bytes=options.max_new_bytes)
        write_json(part / "part.json", [folder.records[request.name] for request in requests])


def take_back(output: Path, part: Path, names: Sequence[str]) -> None:
    """Moves files that a merge, which was killed, has moved out of an existing part back into it."""
    for name in names if part.exists() else ():
        with suppress(FileNotFoundError):
            os.replace(output / name, part / name)


def merge(output: Path, world_size: int, expected: int) -> None:
    """Moves the files of all parts into the output folder, then writes report.json, which marks it as complete.

    Raises:
        RuntimeError: a part is missing or incomplete; nothing is moved.
    """
    records: list[dict[str, Any]] = []
    files = {}
    for rank in range(world_size):
        part = part_folder(output, rank, world_size)
        try:
            own = json.loads((part / "part.json").read_text())
        except FileNotFoundError:
            raise RuntimeError(f"expected the part of process {rank} in {part}; do all machines see it?") from None
        records += own
        files.update({record["path"]: part / record["path"] for record in own})
    if len(files) != expected:
        raise RuntimeError(f"expected {expected} files from {world_size} processes, got {len(files)}")
    for name, path in files.items():
        os.replace(path, output / name)
    finished = sum(record["finished"] for record in records)
    report = {"processes": world_size, "finished": finished, "files": sorted(records, key=lambda one: one["path"])}
    write_json(output / "report.json", report)
    shutil.rmtree(output / "parts")
    print(f"{len(records)} files in {output}/ by {world_size} processes, {finished} of them ended by the model")


if __name__ == "__main__":
    sys.exit(main())
