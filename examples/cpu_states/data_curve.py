"""How many programs are needed: the same training on fixed sets of 10³, 10⁴, 10⁵ and 10⁶ different programs.

Each run has the same number of steps and programs per step, from the same initial weights; small sets are repeated. All
are scored, teacher-forced, on the same held-out programs and on programs of their own set: a lower loss on the latter
is memorisation. The figures go to data_curve.cpu.json next to this script, the curve to a PNG.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from train_paper import MACHINE, PAPER, TRAINING

sys.path.append(str(Path(__file__).resolve().parents[1]))
import training_runs as runs

from bgpt_fast import BGPT, BGPTConfig, PackedPatches
from bgpt_fast.report.plots import COLORS, new_figure, save_figure
from bgpt_fast.tasks.cpu_states import CPUStateReport, Traces, evaluate_bytes, generate, pack_traces, teacher_forced
from bgpt_fast.training import TrainConfig, Trainer, likelihood_evaluation
from bgpt_fast.training.presets import PRESETS

COUNTS = (1_000, 10_000, 100_000, 1_000_000)
PUBLISHED = {
    "10000": "not learned",
    "100000": "learned at epochs 11 to 13",
    "1000000": "learned by epoch 2; more than 99.99 % of the state bytes with all 2.1 million programs",
    "source": "arXiv 2402.19155, section 4.5, epochs read off a figure; another machine: 10 registers, 1 KiB of memory",
}
_BATCH = 64


@dataclass(frozen=True)
class Settings:
    """Settings of all runs.

    Args:
        model: sizes.
        machine: options of `generate`.
        programs: programs in a batch.
        training: see `TrainConfig`; the same number of steps for each set.
        scored: programs of the final scores, both held-out ones and those of the set.
        seed: seed of the programs; larger sets contain the smaller ones. Held-out programs have the next seed.
    """

    model: BGPTConfig
    machine: dict[str, int]
    programs: int
    training: TrainConfig
    scored: int
    seed: int = 0


def small(steps: int = 2000) -> Settings:
    """Settings for a CPU: 2 registers, at most 8 instructions, 0.4 M parameters, 128,000 programs in a few minutes."""
    preset = PRESETS["cpu-states"]
    return Settings(
        model=dataclasses.replace(preset.model, patch_length=15, hidden_size=64, num_heads=2, byte_num_heads=8),
        machine={"num_registers": 2, "memory_size": 32, "min_program": 4, "max_program": 8},
        programs=64,
        training=dataclasses.replace(
            preset.training,
            steps=steps,
            max_minutes=0.0,
            schedule_by="steps",
            eval_every=max(1, steps // 6),
            tensorboard=False,
            device="cpu",
            threads=1,
        ),
        scored=2000,
    )


def full(steps: int = 20_000) -> Settings:
    """The paper's model on the paper's machine, for a GPU."""
    return Settings(
        model=PAPER,
        machine=MACHINE,
        programs=128,
        training=dataclasses.replace(
            TRAINING, steps=steps, eval_every=max(1, steps // 40), save_every=max(1, steps // 40)
        ),
        scored=1000,
    )


def different_programs(count: int, seed: int, machine: dict[str, int]) -> Traces:
    """Returns the first `count` distinct programs of a seed's training split; larger sets contain smaller ones."""
    candidates = count
    while True:
        candidates += candidates // 8 + 16
        traces = generate(candidates, seed=seed, stream="philox", split="train", **machine)
        _, first = np.unique(traces.program_hashes(), return_index=True)
        if len(first) >= count:
            return traces.select(np.sort(first)[:count])


class FixedPrograms:
    """A `Source` of a fixed set of programs, shuffled in each epoch.

    Args:
        traces: the set.
        config: patch size and context.
        programs: programs in a batch.
        seed: seed of the shuffling.
    """

    def __init__(self, traces: Traces, config: BGPTConfig, programs: int, seed: int = 0) -> None:
        self.traces, self.config, self.programs, self.seed = traces, config, programs, seed
        self.position = 0
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def next_batch(self) -> PackedPatches:
        """Returns the next batch; it may continue from one epoch into the next."""
        chosen: list[int] = []
        while len(chosen) < self.programs:
            epoch, place = divmod(self.position, len(self.traces))
            if epoch != self._epoch:
                self._epoch = epoch
                self._order = np.random.default_rng([self.seed, epoch]).permutation(len(self.traces))
            indices = self._order[place : place + self.programs - len(chosen)].tolist()
            chosen += indices
            self.position += len(indices)
        return pack_traces(self.traces.select(chosen), self.config, threads=1)

    def state_dict(self) -> dict[str, Any]:
        """Returns the position, JSON-ready."""
        return {**self.describe(), "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues at a position of the same set."""
        ours = self.describe()
        theirs = {name: state.get(name) for name in ours}
        if theirs != ours:
            raise ValueError(f"FixedPrograms: expected a position of {ours}, got one of {theirs}; use another --runs")
        self.position = state["position"]

    def describe(self) -> dict[str, Any]:
        """Returns what defines the stream, JSON-ready."""
        return {"source": "fixed programs", "set": len(self.traces), "programs": self.programs, "seed": self.seed}


def scores(model: BGPT, traces: Traces) -> dict[str, float]:
    """Returns teacher-forced accuracies, and the loss in bits per state byte, including end-of-file patches."""
    report = evaluate_bytes(teacher_forced(model, traces, batch_size=_BATCH), [trace.states for trace in traces])
    batches = [pack_traces(traces[start : start + _BATCH], model.config) for start in range(0, len(traces), _BATCH)]
    return {**shares(report), "bits_per_byte": likelihood_evaluation(batches)(model)["bits_per_byte"]}


def shares(report: CPUStateReport) -> dict[str, float]:
    """Returns the accuracies that the curve shows."""
    return {
        "state_bytes_right": report.accuracy,
        "changed_bytes_right": report.changed_accuracy or 0.0,
        "instruction_bytes_right": report.instruction_accuracy,
        "copying": report.copy_baseline,
    }


def run(count: int, settings: Settings, held_out: Traces, folder: Path) -> dict[str, Any]:
    """Trains on a set, and scores held-out programs and programs of the set.

    Args:
        count: number of different programs in the set.
        settings: settings of all runs.
        held_out: programs of the evaluation split.
        folder: folder of the run; a stopped run is resumed.

    Returns:
        Figures, JSON-ready.
    """
    traces = different_programs(count, settings.seed, settings.machine)
    torch.manual_seed(settings.training.seed)
    model = BGPT(settings.model)
    source = FixedPrograms(traces, settings.model, settings.programs)
    few = {"held_out": held_out[:400], "own_set": traces[:400]}

    def evaluate(trained: BGPT) -> dict[str, float]:
        groups = {name: scores(trained, some) for name, some in few.items()}
        return {f"{name}_{figure}": value for name, figures in groups.items() for figure, value in figures.items()}

    result = Trainer(model, source, settings.training, folder, evaluate).train()
    return {
        "programs": count,
        "steps": result.steps,
        "times_round": result.steps * settings.programs / count,
        "training_loss": result.loss,
        "training_seconds": round(result.seconds, 1),
        "held_out": scores(model, held_out),
        "own_set": scores(model, traces[: settings.scored]),
    }


def claims(sets: list[dict[str, Any]]) -> dict[str, bool]:
    """Returns the claims, and whether each holds: more programs generalise better and are memorised less.

    Args:
        sets: the results of `run`, from the smallest set to the largest.
    """
    changed = [figures["held_out"]["changed_bytes_right"] for figures in sets]
    gaps = [figures["held_out"]["bits_per_byte"] - figures["own_set"]["bits_per_byte"] for figures in sets]
    return {
        "the larger the set, the less is learned by heart: held-out programs come nearer to the set's own": all(
            less > more for less, more in itertools.pairwise(gaps)
        ),
        "the smallest set is learned by heart: 0.1 bits a byte or more below held-out programs": gaps[0] >= 0.1,
        "the largest set is not: less than a tenth of that": gaps[-1] < gaps[0] / 10,
        "the largest set beats the smallest by 0.1 of the changed bytes or more": changed[-1] >= changed[0] + 0.1,
    }


def draw(sets: list[dict[str, Any]], path: Path) -> None:
    """Plots the accuracy on held-out programs and on the set's own over the number of programs, as a PNG."""
    figure, axes = new_figure(7, 4.5)
    counts = [figures["programs"] for figures in sets]
    for color, (name, label) in zip(
        COLORS, (("state_bytes_right", "state bytes"), ("changed_bytes_right", "changed bytes")), strict=False
    ):
        for group, style, whose in (("held_out", "o-", "held out"), ("own_set", "o:", "own set")):
            values = [100 * figures[group][name] for figures in sets]
            axes.plot(counts, values, style, color=color, label=f"{label}, {whose}")
    axes.axhline(100 * sets[0]["held_out"]["copying"], color="grey", linewidth=0.8, label="state bytes by copying")
    axes.set_xscale("log")
    axes.set_xlabel("different programs")
    axes.set_ylabel("right, teacher-forced, %")
    axes.set_ylim(0, 101)
    axes.set_title(f"{sets[0]['steps']} steps each")
    figure.legend(frameon=False, loc="outside lower center", ncols=3)
    save_figure(figure, path)


def main() -> int:
    parser = runs.argument_parser(__doc__, full="the paper's model and machine, for a GPU; not run yet")
    parser.add_argument("--counts", type=int, nargs="+", default=list(COUNTS), help="programs of each set, rising")
    parser.add_argument("--steps", type=int, help="of each run; by default 2000, and 20000 for --full")
    parser.add_argument("--scored", type=int, help="programs for the final scores")
    options = parser.parse_args()
    make = full if options.full else small
    settings = make(options.steps) if options.steps else make()
    settings = dataclasses.replace(settings, scored=options.scored or settings.scored)
    held_out = generate(settings.scored, seed=settings.seed + 1, stream="philox", split="eval", **settings.machine)
    sets = []
    with runs.runs_folder(options) as folder:
        for count in sorted(options.counts):
            print(f"{count:,} programs:", flush=True)
            figures = run(count, settings, held_out, folder / str(count))
            sets.append(figures)
            for group in ("held_out", "own_set"):
                of = figures[group]
                print(
                    f"  {group}: {of['state_bytes_right']:.4%} of the state bytes, {of['changed_bytes_right']:.4%} of "
                    f"the changed ones, {of['bits_per_byte']:.4f} bits a byte",
                    flush=True,
                )
    claim_results = claims(sets)
    output = runs.write_results(
        __file__,
        parser,
        options,
        {
            "machine": settings.machine,
            "model": settings.model.to_dict(),
            "parameters": BGPT(settings.model).num_parameters(),
            "programs_a_step": settings.programs,
            "held_out_programs": settings.scored,
            "claims": claim_results,
            "published": PUBLISHED,
            "sets": sets,
        },
    )
    draw(sets, output.with_suffix(".png"))
    return runs.print_claims(claim_results)


if __name__ == "__main__":
    sys.exit(main())
