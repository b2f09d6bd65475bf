"""Generation speed of `Generator` beside the released way of generating, on the CPU.

    PYTHONPATH=. python benchmarks/bench_generation.py --patches 256 --threads 2 --batches 1 16 64 --output out.json

The released way: Hugging Face's GPT-2 for both decoders, one file at a time, no caches; the whole context goes through
the patch decoder for each patch, and all bytes of the patch so far through the byte decoder for each byte. Both sides
use the same random float32 weights and greedy choice, and the script says whether they wrote the same bytes, which
rounded weights (bfloat16, int8) need not: random weights decide by hairs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from peers import HuggingFaceBGPT, machine
from transformers import logging

from bgpt_fast import BGPT, BGPTConfig, Generator, Prompt
from bgpt_fast.config import EOP
from bgpt_fast.files import write_json


def endless(config: BGPTConfig) -> BGPT:
    """Random weights that never end a file."""
    torch.manual_seed(0)
    model = BGPT(config).eval()
    with torch.no_grad():
        base = model.byte_level_decoder.base.transformer
        base.ln_f.bias -= 20 * base.wte.weight[EOP] / base.wte.weight[EOP].square().sum()
    return model


def prompts_of(config: BGPTConfig, patches: int, count: int) -> list[Prompt]:
    stream = random.Random(0)
    return [Prompt("bin", stream.randbytes((patches - 1) * config.patch_size)) for _ in range(count)]


def ours(
    model: BGPT, prompts: list[Prompt], rounds: int, precision: str | None = None
) -> tuple[dict[str, float], list[bytes]]:
    """Seconds of the first round, which reads the prompts, and of the median later one."""
    times = [time.perf_counter()]

    def tick(*_: int) -> None:
        times.append(time.perf_counter())

    generator = Generator(model, max_batch=len(prompts), precision=precision)
    files = generator.generate(prompts, max_new_bytes=rounds * model.config.patch_size, progress=tick)
    spans = [after - before for before, after in itertools.pairwise(times)]
    new = sum(len(file.new_bytes) for file in files)
    step = median(spans[1:])
    return {
        "first_round_s": spans[0],
        "round_s": step,
        "bytes_per_s": len(prompts) * model.config.patch_size / step,
        "bytes_per_s_with_prompt": new / (times[-1] - times[0]),
        "cache_bytes_per_file": generator.sequence_bytes(len(prompts[0].data) // model.config.patch_size + rounds),
    }, [file.new_bytes for file in files]


def released(model: BGPT, prompt: Prompt, rounds: int) -> tuple[dict[str, float], bytes]:
    device = model.byte_level_decoder.base.lm_head.weight.device
    peer = HuggingFaceBGPT(model.config).to(device).eval()
    peer.load_state_dict(model.state_dict())
    S = model.config.patch_size
    extension = list(prompt.extension.encode())
    patches = torch.tensor([*extension, *[EOP] * (S - len(extension)), *prompt.data], device=device).view(-1, S)
    spans, data = [], b""
    for _ in range(rounds):
        began = time.perf_counter()
        tokens = peer.next_patch(patches)
        spans.append(time.perf_counter() - began)
        data += bytes(tokens)
        patches = torch.cat([patches, torch.tensor([tokens], device=device)])
    return {"round_s": median(spans), "bytes_per_s": S / median(spans)}, data


def measure(arguments: argparse.Namespace, say: Callable[[str], None]) -> dict[str, object]:
    config = BGPTConfig(
        patch_length=max(512, arguments.patches + arguments.rounds + 1),
        hidden_size=arguments.hidden_size,
        patch_num_layers=arguments.layers[0],
        byte_num_layers=arguments.layers[1],
    )
    model = endless(config)
    rows = []
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        peer, expected = released(model, prompts_of(config, arguments.patches, 1)[0], arguments.peer_rounds)
        say(f"{threads} threads, released way, 1 file: {peer['bytes_per_s']:.1f} B/s")
        for precision, batch in itertools.product(arguments.precisions, arguments.batches):
            figures, files = ours(model, prompts_of(config, arguments.patches, batch), arguments.rounds, precision)
            ratio = figures["bytes_per_s"] / peer["bytes_per_s"]
            same = files[0][: len(expected)] == expected
            say(
                f"{threads} threads, Generator, {precision}, {batch} files: {figures['bytes_per_s']:.1f} B/s, "
                f"{ratio:.1f} times; first round with the prompts {figures['first_round_s']:.2f} s; "
                f"caches {figures['cache_bytes_per_file'] / 2**20:.1f} MiB a file; "
                f"first file {'the same bytes' if same else 'other bytes'}"
            )
            row = {"threads": threads, "precision": precision, "batch": batch, "ours": figures, "released": peer}
            rows.append({**row, "ratio": ratio, "same": same})
    return {
        "config": config.to_dict(),
        "parameters": model.num_parameters(),
        "context_patches": arguments.patches,
        "weights": "float32",
        "machine": arguments.machine,
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", type=int, default=256, help="patches of context before the first new byte")
    parser.add_argument("--rounds", type=int, default=6, help="patches that the Generator writes")
    parser.add_argument("--peer-rounds", type=int, default=3, help="patches that the released way writes")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--batches", type=int, nargs="+", default=[1])
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16", "int8"])
    parser.add_argument("--hidden-size", type=int, default=768)
    parser.add_argument("--layers", type=int, nargs=2, default=[12, 3], metavar=("PATCH", "BYTE"))
    parser.add_argument("--output", type=Path, help="write the figures there as JSON")
    arguments = parser.parse_args()
    arguments.machine = machine()
    logging.set_verbosity_error()
    result = measure(arguments, lambda line: print(line, flush=True))
    print(json.dumps(result["machine"]))
    if arguments.output is not None:
        write_json(arguments.output, result)


if __name__ == "__main__":
    main()
