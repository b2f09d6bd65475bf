"""Samples of the model during `bgpt-fast train --sample-every`: files that it generates, and a line about them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from bgpt_fast.cli.train_data import CPU_STATES, SAMPLES, TrainData, task_of
from bgpt_fast.cli.train_options import Train
from bgpt_fast.files import atomic_write
from bgpt_fast.generation import Generator, Prompt
from bgpt_fast.model import BGPT
from bgpt_fast.tasks.cpu_states import evaluate, simulate

MOST_BYTES = 512
_SHOWN_BYTES = 60
Sample = Callable[[BGPT, int], str]


def sampler(options: Train, data: TrainData) -> Sample | None:
    """Returns a function of the model and the step that writes samples and returns a line about them.

    Of a model of files: new files of up to three of the training extensions; of a conversion: up to three held-out
    sources, converted; of the CPU-state machine: the simulation of up to three held-out programs. They are in
    OUTPUT/samples/step-N/.

    Returns:
        None without --sample-every.

    Raises:
        ValueError: the task is classification.
    """
    task = task_of(options)
    if not options.training.sample_every:
        return None
    if task == "classification":
        raise ValueError("--training.sample-every: expected a task that generates files, got classification")
    folder = options.output / "samples"
    if task == CPU_STATES:
        return lambda model, step: _simulated(model, data, folder / f"step-{step:08d}")
    return lambda model, step: _generated(model, data, folder / f"step-{step:08d}", step)


def _generated(model: BGPT, data: TrainData, folder: Path, step: int) -> str:
    prompts: Sequence[Prompt] = data.sample_prompts
    if not prompts and data.source.describe()["kind"] == "pairs":
        return f"step {step}: no sample: no pair is held out; give --eval-share or --eval-data"
    if not prompts:
        task = getattr(data.source, "task", None)
        names = () if task is None else task.extensions[:SAMPLES]
        prompts = [Prompt(name) for name in names or ("txt",)]
    # Conversions are greedy, as in bgpt-fast convert; new files are drawn.
    temperature = 0.0 if data.sample_prompts else 1.0
    files = Generator(model).generate(prompts, max_new_bytes=MOST_BYTES, temperature=temperature, seed=step)
    texts = []
    for index, (prompt, file) in enumerate(zip(prompts, files, strict=True)):
        name = f"{index:02d}.{prompt.extension}" if prompt.extension else f"{index:02d}"
        _write(folder / name, file.data)
        more = "" if file.finished and len(file.data) <= _SHOWN_BYTES else "…"
        texts.append(f"  {name}: {file.data[:_SHOWN_BYTES]!r}{more}")
    return "\n".join([f"step {step}: samples, in {folder}/", *texts])


def _simulated(model: BGPT, data: TrainData, folder: Path) -> str:
    truth = data.sample_programs
    predicted = simulate(Generator(model), truth)
    for index, one in enumerate(predicted):
        _write(folder / f"{index:02d}.bin", one.to_bytes())
    report = evaluate(predicted, truth)
    return (
        f"{folder.name}: {report.programs_right} of {report.programs} programs right to the last byte, free running, "
        f"{report.right_bytes:,} of {report.state_bytes:,} state bytes; in {folder}/"
    )


def _write(path: Path, content: bytes) -> None:
    with atomic_write(path) as file:
        file.write(content)
