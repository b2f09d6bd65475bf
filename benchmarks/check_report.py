"""What a receipt of `gpu_check.py` says in short: targets met or not, and a table. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from check_items import BATCHES, COMPILED, DECODED, ITEMS, OPS, OURS, RELEASED

TARGETS = {"mfu": 0.55, "compiled": 1.3, "released": 3.0}
"""The least of: the share of 989 TFLOP/s; times the reference under torch.compile; times the released way."""


def items_of(receipt: Mapping[str, Any], piece: str) -> dict[str, Any]:
    """A piece's items that are ok, by name."""
    items = receipt["pieces"].get(piece, {}).get("items", {})
    return {name: item for name, item in items.items() if item["status"] == "ok"}


def red_rooms(receipt: Mapping[str, Any]) -> set[str]:
    """Names in the file names of failed kernel tests, and ops that are wrong: their speed is not reported."""
    pieces = receipt["pieces"]
    tests = pieces.get("tests", {}).get("items", {})
    stems = {name.rsplit("/", 1)[-1].removesuffix(".py") for name, item in tests.items() if _is_red(item)}
    found = {stem.removeprefix("test_").removesuffix("_triton") for stem in stems}
    for piece in ("correctness", "graphs"):
        found |= {name for name, item in pieces.get(piece, {}).get("items", {}).items() if _is_red(item)}
    return found


def _is_red(item: Mapping[str, Any]) -> bool:
    return item["status"] in ("failed", "timed out")


def is_red(op: str, red: set[str]) -> bool:
    """Whether an op or its room is among the red ones."""
    room = {"add_layer_norm": "layer_norm", "byte_attention_projected": "byte_attention"}.get(op, op)
    return bool({op, room} & red)


def summary(receipt: Mapping[str, Any]) -> dict[str, Any]:
    """Ratios between measured figures, and the targets. What rests on something red is left out and named; tiny sizes
    say nothing."""
    if receipt["quick"]:
        return {"speed_up_withheld": list(OPS), "targets": {}}
    red = red_rooms(receipt)
    withheld = sorted(op for op in OPS if is_red(op, red))
    found: dict[str, Any] = {"speed_up_withheld": withheld, "targets": {}}
    training = items_of(receipt, "training")
    if OURS in training and "losses" in training and not withheld:
        ours = training[OURS]
        for key, peer in (("compiled", COMPILED), ("released", RELEASED)):
            if peer in training:
                found[f"training_times_{key}"] = ours["patches_per_s"] / training[peer]["patches_per_s"]
                found["targets"][key] = found[f"training_times_{key}"] >= TARGETS[key]
        if "mfu" in ours:
            found["targets"]["mfu"] = ours["mfu"] >= TARGETS["mfu"]
        if "peak_memory" in ours:
            found["targets"]["memory"] = ours["peak_memory"] <= ours["memory_target"]
    decoded = items_of(receipt, "byte_decode")
    both = [batch for batch in DECODED if {"persistent", "graphed"} <= decoded.get(batch, {}).keys()]
    if both and "bytes" in decoded:
        wins = [batch for batch in both if _times(decoded[batch]) > 1]
        found["byte_decode_switch"] = {
            "expected": decoded[both[0]]["persistent_rows"],
            "persistent_faster_up_to": int(wins[-1]) if wins else 0,
        }
    generation = items_of(receipt, "generation")
    if RELEASED in generation and not withheld:
        found["generation_times_released"] = {
            batch: generation[batch]["bytes_per_s"] / generation[RELEASED]["bytes_per_s"]
            for batch in BATCHES
            if batch in generation
        }
    return found


def table(receipt: Mapping[str, Any]) -> str:
    """The short table that ends the run."""
    gpu = receipt["machine"].get("gpu")
    commit = receipt["commit"]["id"] or f"sources {receipt['commit']['sources_sha256']}"
    lines = [f"bgpt_fast {commit[:12]} on {gpu['name'] if gpu else 'no GPU'}, {receipt.get('seconds', 0):.0f} s", ""]
    lines += _pieces(receipt)
    lines += _ceilings(receipt)
    lines += _ops(receipt)
    lines += _training(receipt)
    lines += _byte_decode(receipt)
    lines += _generation(receipt)
    return "\n".join(lines)


def _pieces(receipt: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, piece in receipt["pieces"].items():
        items = piece["items"]
        good = sum(item["status"] == "ok" for item in items.values())
        line = f"{name:12s} {piece['status']:10s} {good}/{len(items)}"
        if name == "tests":
            counts = {key: sum(item.get(key, 0) for item in items.values()) for key in ("passed", "failed", "skipped")}
            line += ", " + ", ".join(f"{count} {key}" for key, count in counts.items())
        lines.append(line)
        bad = [(key, item) for key, item in items.items() if item["status"] != "ok"]
        if len({item.get("reason") for _, item in bad}) == 1 and len(bad) > 1:
            bad = [(f"{len(bad)} items", bad[0][1])]
        lines += [f"    {key}: {item['status']}: {item.get('reason', '')[:150]}" for key, item in bad[:6]]
        if len(bad) > 6:
            lines.append(f"    … and {len(bad) - 6} more in the receipt")
    return lines


def _ceilings(receipt: Mapping[str, Any]) -> list[str]:
    items = items_of(receipt, "ceilings")
    if set(items) != set(ITEMS["ceilings"]):
        return []
    product, copy = items["matmul"]["rate"] / 1e12, items["copy"]["rate"] / 1e9
    return ["", f"ceilings: {items['matmul']['dtype']} matrix product {product:.1f} TFLOP/s, copy {copy:.0f} GB/s"]


def _ops(receipt: Mapping[str, Any]) -> list[str]:
    red = red_rooms(receipt)
    lines = []
    for name, item in items_of(receipt, "ops").items():
        ours = item["timed"]["op"]
        cells = [f"{name:25s}"]
        for direction in ("forward", "backward"):
            if direction not in ours:
                cells.append(f"{'–':>29s}")
                continue
            row = ours[direction]
            share = f"{100 * row['of_ceiling']:4.0f} %" if "of_ceiling" in row else "     –"
            cells.append(f"{1e6 * row['median']:8.1f} µs {row['gb_per_s']:6.0f} GB/s {share}")
        if receipt["quick"] or is_red(name, red):
            cells.append(f"{'tiny' if receipt['quick'] else 'red'}: no speed-up")
        else:
            cells.append(", ".join(f"{ratio:.2f} × {peer}" for peer, ratio in item["speed_up"].items()))
        lines.append("  ".join(cells))
    head = f"{'op':25s}  {'forward, % of ceiling':29s}  {'backward':29s}  times as fast as, both together"
    return ["", head, *lines] if lines else []


def _training(receipt: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, item in items_of(receipt, "training").items():
        if name == "losses":
            continue
        line = f"training, {name}: {item['patches_per_s']:.0f} patches/s with {item['patches']} patches"
        if "mfu" in item:
            line += f", MFU {100 * item['mfu']:.1f} %"
        if "peak_memory" in item:
            memory, target = item["peak_memory"] / 1e9, item["memory_target"] / 1e9
            line += f", peak {memory:.1f} GB (target for ours {target:.1f})"
        lines.append(line)
    short = receipt.get("summary", {})
    for key in ("compiled", "released"):
        if f"training_times_{key}" in short:
            lines.append(f"  {short[f'training_times_{key}']:.2f} × the {key} one (target {TARGETS[key]})")
    if short.get("targets"):
        lines.append("  targets: " + ", ".join(f"{k} {'met' if v else 'MISSED'}" for k, v in short["targets"].items()))
    if short.get("speed_up_withheld") and not receipt["quick"]:
        lines.append(f"  speed-ups withheld, these are red: {', '.join(short['speed_up_withheld'])}")
    return ["", *lines] if lines else []


def _times(item: Mapping[str, Any]) -> float:
    """How many times as fast as the graphs the persistent kernel is."""
    return item["persistent"]["bytes_per_s"] / item["graphed"]["bytes_per_s"]


def _byte_decode(receipt: Mapping[str, Any]) -> list[str]:
    lines = []
    for batch, item in items_of(receipt, "byte_decode").items():
        rates = [f"{item[name]['bytes_per_s']:.0f} B/s {name}" for name in ("persistent", "graphed") if name in item]
        if rates:
            ratio = f", {_times(item):.2f} ×" if len(rates) == 2 else ""
            cost = item.get("batch_invariant_cost")
            slower = f"; batch-invariant in {cost:.2f} × the time" if cost else ""
            lines.append(f"byte decoder, {batch} patches: {', '.join(rates)}{ratio}{slower}")
    if switch := receipt.get("summary", {}).get("byte_decode_switch"):
        found, expected = switch["persistent_faster_up_to"], switch["expected"]
        lines.append(f"  the persistent kernel is faster up to {found} patches; PERSISTENT_ROWS is {expected}")
    return ["", *lines] if lines else []


def _generation(receipt: Mapping[str, Any]) -> list[str]:
    ratios = receipt.get("summary", {}).get("generation_times_released", {})
    lines = []
    for name, item in items_of(receipt, "generation").items():
        what = f"batch {name}" if name in BATCHES else name
        ratio = f", {ratios[name]:.1f} × the released way" if name in ratios else ""
        lines.append(f"generation, {what}: {item['bytes_per_s']:.0f} B/s{ratio}")
    for item in items_of(receipt, "cpu_states").values():
        lines.append(f"CPU states: {item['instances_per_s'] / 1e6:.1f} M instances/s")
    return ["", *lines] if lines else []
