"""Summarises a result of gpu_check: which targets were met, and a table. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.names import COMPILED, OURS, RELEASED
from tools.gpu_check.items import BATCHES, DECODED, FOLDERS, ITEMS, OPS

TARGETS = {"mfu": 0.55, "compiled": 1.3, "released": 3.0}
"""Minimum share of 989 TFLOP/s, speed-up over the reference under torch.compile, and over the released method."""


def items_of(result: Mapping[str, Any], piece: str) -> dict[str, Any]:
    """A piece's items with status "ok", by name."""
    items = result["pieces"].get(piece, {}).get("items", {})
    return {name: item for name, item in items.items() if item["status"] == "ok"}


def failed_ops(result: Mapping[str, Any]) -> set[str]:
    """Ops with wrong results or failing tests: their speed is not reported."""

    def failed(piece: str) -> list[str]:
        items = result["pieces"].get(piece, {}).get("items", {})
        return [name for name, item in items.items() if item["status"] in ("failed", "timed out")]

    names = {name.rsplit("/", 1)[-1].removesuffix(".py").removeprefix("test_") for name in failed("tests")}
    names |= {*failed("correctness"), *failed("graphs"), *(name.split()[0] for name in failed("values"))}
    return names | {op for op, folder in FOLDERS.items() if folder in names}


def summary(result: Mapping[str, Any]) -> dict[str, Any]:
    """Ratios between measured figures, and the targets; failed ops are left out, and tiny sizes have none."""
    if result["quick"]:
        return {"speed_up_withheld": list(OPS), "targets": {}}
    withheld = sorted(failed_ops(result) & set(OPS))
    values: dict[str, Any] = {"speed_up_withheld": withheld, "targets": {}}
    training = items_of(result, "training")
    if OURS in training and "losses" in training and not withheld:
        ours, targets = training[OURS], values["targets"]
        for key, baseline in (("compiled", COMPILED), ("released", RELEASED)):
            if baseline in training:
                times = values[f"training_times_{key}"] = ours["patches_per_s"] / training[baseline]["patches_per_s"]
                targets[key] = times >= TARGETS[key]
        if "mfu" in ours:
            targets["mfu"] = ours["mfu"] >= TARGETS["mfu"]
        if "peak_memory" in ours:
            targets["memory"] = ours["peak_memory"] <= ours["memory_target"]
    decoded = items_of(result, "byte_decode")
    both = [batch for batch in DECODED if {"persistent", "graphed"} <= decoded.get(batch, {}).keys()]
    if both and "bytes" in decoded:
        values["byte_decode_switch"] = {
            "expected": decoded[both[0]]["persistent_rows"],
            "persistent_faster_up_to": max((int(batch) for batch in both if _times(decoded[batch]) > 1), default=0),
        }
    generation = items_of(result, "generation")
    if RELEASED in generation and not withheld:
        values["generation_times_released"] = {
            batch: generation[batch]["bytes_per_s"] / generation[RELEASED]["bytes_per_s"]
            for batch in BATCHES
            if batch in generation
        }
    return values


def table(result: Mapping[str, Any]) -> str:
    """The short table printed at the end of the run."""
    gpu = result["machine"].get("gpu")
    commit = result["commit"]["id"] or f"sources {result['commit']['sources_sha256']}"
    lines = [f"bgpt_fast {commit[:12]} on {gpu['name'] if gpu else 'no GPU'}, {result.get('seconds', 0):.0f} s"]
    for part in (_pieces, _peak, _contact, _ops, _training, _byte_decode, _generation):
        rows = part(result)
        lines += ["", *rows] if rows else []
    return "\n".join(lines)


def _pieces(result: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, piece in result["pieces"].items():
        items = piece["items"]
        good = sum(item["status"] == "ok" for item in items.values())
        line = f"{name:12s} {piece['status']:10s} {good}/{len(items)}"
        if name == "tests":
            counts = {key: sum(item.get(key, 0) for item in items.values()) for key in ("passed", "failed", "skipped")}
            line += "".join(f", {count} {key}" for key, count in counts.items())
        lines.append(line)
        bad = [(key, item) for key, item in items.items() if item["status"] != "ok"]
        if len({item.get("reason") for _, item in bad}) == 1 and len(bad) > 1:
            bad = [(f"{len(bad)} items", bad[0][1])]
        lines += [f"    {key}: {item['status']}: {item.get('reason', '')[:150]}" for key, item in bad[:6]]
        if len(bad) > 6:
            lines.append(f"    … and {len(bad) - 6} more in the result file")
    return lines


def _peak(result: Mapping[str, Any]) -> list[str]:
    items = items_of(result, "peak")
    if set(items) != set(ITEMS["peak"]):
        return []
    product, copy = items["matmul"]["rate"] / 1e12, items["copy"]["rate"] / 1e9
    return [f"peak rates: {product:.1f} TFLOP/s in {items['matmul']['dtype']} products, {copy:.0f} GB/s in copies"]


def _contact(result: Mapping[str, Any]) -> list[str]:
    lines = [f"{name}: {item['rate'] / 1e12:.1f} TFLOP/s" for name, item in items_of(result, "products").items()]
    if timed := items_of(result, "steps").get("timed"):
        steps, host = ([f"{1e3 * value:.1f}" for value in timed[key]] for key in ("step_s", "host_cpu_s"))
        mfu = f", MFU {100 * timed['mfu']:.1f} %" if "mfu" in timed else ""
        lines.append(f"steps of {timed['patches']} patches: {', '.join(steps)} ms{mfu}; host {', '.join(host)} ms")
    return lines


def _ops(result: Mapping[str, Any]) -> list[str]:
    lines, failed = [], failed_ops(result)
    for name, item in items_of(result, "ops").items():
        cells = [f"{name:25s}"]
        for direction in ("forward", "backward"):
            row = item["timed"]["op"].get(direction)
            if row is None:
                cells.append(f"{'–':>29s}")
                continue
            share = f"{100 * row['of_peak']:4.0f} %" if "of_peak" in row else "     –"
            cells.append(f"{1e6 * row['median']:8.1f} µs {row['gb_per_s']:6.0f} GB/s {share}")
        if result["quick"] or name in failed:
            cells.append(f"{'tiny' if result['quick'] else 'failed'}: no speed-up")
        else:
            cells.append(", ".join(f"{ratio:.2f} × {baseline}" for baseline, ratio in item["speed_up"].items()))
        lines.append("  ".join(cells))
    head = f"{'op':25s}  {'forward, % of peak':29s}  {'backward':29s}  times as fast as, both together"
    return [head, *lines] if lines else []


def _training(result: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, item in items_of(result, "training").items():
        if name == "losses":
            continue
        line = f"training, {name}: {item['patches_per_s']:.0f} patches/s with {item['patches']} patches"
        if "mfu" in item:
            line += f", MFU {100 * item['mfu']:.1f} %"
        if "peak_memory" in item:
            memory, target = item["peak_memory"] / 1e9, item["memory_target"] / 1e9
            line += f", peak {memory:.1f} GB (target for ours {target:.1f})"
        lines.append(line)
    short = result.get("summary", {})
    for key in ("compiled", "released"):
        if f"training_times_{key}" in short:
            lines.append(f"  {short[f'training_times_{key}']:.2f} × the {key} one (target {TARGETS[key]})")
    if short.get("targets"):
        lines.append("  targets: " + ", ".join(f"{k} {'met' if v else 'MISSED'}" for k, v in short["targets"].items()))
    if short.get("speed_up_withheld") and not result["quick"]:
        lines.append(f"  no speed-ups, since these failed: {', '.join(short['speed_up_withheld'])}")
    return lines


def _times(item: Mapping[str, Any]) -> float:
    """The speed-up of the persistent kernel over the graphs."""
    return item["persistent"]["bytes_per_s"] / item["graphed"]["bytes_per_s"]


def _byte_decode(result: Mapping[str, Any]) -> list[str]:
    lines = []
    for batch, item in items_of(result, "byte_decode").items():
        rates = [f"{item[name]['bytes_per_s']:.0f} B/s {name}" for name in ("persistent", "graphed") if name in item]
        if rates:
            ratio = f", {_times(item):.2f} ×" if len(rates) == 2 else ""
            cost = item.get("batch_invariant_cost")
            slower = f"; batch-invariant in {cost:.2f} × the time" if cost else ""
            lines.append(f"byte decoder, {batch} patches: {', '.join(rates)}{ratio}{slower}")
    if switch := result.get("summary", {}).get("byte_decode_switch"):
        measured, expected = switch["persistent_faster_up_to"], switch["expected"]
        lines.append(f"  the persistent kernel is faster up to {measured} patches; PERSISTENT_ROWS is {expected}")
    return lines


def _generation(result: Mapping[str, Any]) -> list[str]:
    ratios = result.get("summary", {}).get("generation_times_released", {})
    lines = []
    for name, item in items_of(result, "generation").items():
        what = f"batch {name}" if name in BATCHES else name
        ratio = f", {ratios[name]:.1f} × the released method" if name in ratios else ""
        lines.append(f"generation, {what}: {item['bytes_per_s']:.0f} B/s{ratio}")
    rates = [item["instances_per_s"] / 1e6 for item in items_of(result, "cpu_states").values()]
    return lines + [f"CPU states: {rate:.1f} M instances/s" for rate in rates]
