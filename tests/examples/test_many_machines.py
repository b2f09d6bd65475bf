"""examples/many_machines: any number of processes makes what one makes; a failed one leaves no report."""

from __future__ import annotations

import importlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.paths import ROOT

from bgpt_fast import BGPT, BGPTConfig, Generator, Prompt
from bgpt_fast.tasks import cpu_states as cpu
from bgpt_fast.tasks.cpu_states.assessment import assess

EXAMPLE = ROOT / "examples" / "many_machines"
CONFIG = BGPTConfig(patch_size=4, patch_length=10, hidden_size=16, patch_num_layers=1, byte_num_layers=1, num_heads=2)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    BGPT(CONFIG).save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.fixture
def prompts(tmp_path: Path) -> list[Path]:
    stream = random.Random(0)
    paths = [tmp_path / name for name in ("a.txt", "b.bin", "c", "d.txt", "e.bin")]
    for path in paths:
        path.write_bytes(stream.randbytes(stream.randrange(20)))
    return paths


def sharded(processes: int, prompts: list[Path], checkpoint: Path, output: Path) -> subprocess.CompletedProcess[str]:
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--rdzv-backend", "c10d"]
    words = [sys.executable, *launch, "--rdzv-endpoint", "localhost:0", str(EXAMPLE / "sharded.py"), *map(str, prompts)]
    words += ["--checkpoint", str(checkpoint), "--output", str(output), "--temperature", "1", "--seed", "3"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_two_ranks_generate_the_files_of_one_process(tmp_path: Path, checkpoint: Path, prompts: list[Path]) -> None:
    output = tmp_path / "out"
    # A prompt that is not there yet: rank 1 fails, and with it the command.
    content = prompts[3].read_bytes()
    prompts[3].unlink()
    failed = sharded(2, prompts, checkpoint, output)
    assert failed.returncode != 0
    assert "d.txt" in failed.stderr
    assert not (output / "report.json").exists()
    prompts[3].write_bytes(content)
    done = sharded(2, prompts, checkpoint, output)
    assert done.returncode == 0, done.stderr
    assert "5 files" in done.stdout
    report = json.loads((output / "report.json").read_text())
    assert report["processes"] == 2
    assert sorted(path.name for path in output.iterdir()) == sorted(
        ["report.json", *(file["path"] for file in report["files"])]
    )
    model = BGPT.from_pretrained(checkpoint, dtype=torch.float32)
    alone = [Prompt(path.suffix[1:], path.read_bytes(), index) for index, path in enumerate(prompts)]
    for index, file in enumerate(Generator(model).generate(alone, temperature=1.0, seed=3)):
        assert (output / report["files"][index]["path"]).read_bytes() == file.data


def test_a_merge_that_was_killed_costs_no_file(
    tmp_path: Path, checkpoint: Path, prompts: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rerun takes back what the merge has moved, and generates nothing again."""
    monkeypatch.syspath_prepend(EXAMPLE)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    tool, output = importlib.import_module("sharded"), tmp_path / "out"
    words = ["sharded.py", *map(str, prompts), "--checkpoint", str(checkpoint), "--output", str(output)]
    monkeypatch.setattr(sys, "argv", words)
    part = tool.part_folder(output, 0, 1)
    contents: dict[str, bytes] = {}

    def killed(*_: Any) -> None:
        contents.update({path.name: path.read_bytes() for path in part.glob("0*")})
        for name in sorted(contents)[:2]:
            os.rename(part / name, output / name)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tool, "merge", killed)
        with pytest.raises(KeyboardInterrupt):
            tool.main()
    assert len(contents) == 5

    def not_again(*_: Any, **__: Any) -> None:
        raise AssertionError("a file was generated again")

    with monkeypatch.context() as patch:
        patch.setattr("bgpt_fast.cli.outputs.OutputFolder.add", not_again)
        assert tool.main() == 0
    report = json.loads((output / "report.json").read_text())
    assert sorted(path.name for path in output.iterdir()) == sorted(
        ["report.json", *(file["path"] for file in report["files"])]
    )
    assert {name: (output / name).read_bytes() for name in contents} == contents
    # One that was killed later still, before it removed the parts.
    (output / "parts").mkdir()
    assert tool.main() == 0
    assert not (output / "parts").exists()


def test_a_missing_part_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLE)
    tool = importlib.import_module("sharded")
    part = tool.part_folder(tmp_path, 0, 2)
    part.mkdir(parents=True)
    (part / "part.json").write_text("[]")
    with pytest.raises(RuntimeError, match="expected the part of process 1"):
        tool.merge(tmp_path, 2, 5)
    (tmp_path / "parts/00000-of-00001").mkdir()
    (tmp_path / "parts/00000-of-00001/part.json").write_text("[]")
    with pytest.raises(RuntimeError, match="expected 5 files from 1 processes, got 0"):
        tool.merge(tmp_path, 1, 5)
    assert not (tmp_path / "report.json").exists()


def test_the_actor_of_ray_without_ray(checkpoint: Path, prompts: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLE)
    tool = importlib.import_module("with_ray")
    actor = tool.Continue(str(checkpoint), {"temperature": 1.0, "seed": 3, "max_new_bytes": None})
    rows = {"index": np.arange(5), "path": np.array([str(path) for path in prompts])}
    whole = actor(rows)
    halves = [actor({name: column[part] for name, column in rows.items()}) for part in (slice(0, 2), slice(2, 5))]
    assert [*halves[0]["data"], *halves[1]["data"]] == list(whole["data"])
    for path, data in zip(prompts, whole["data"], strict=True):
        assert data.startswith(path.read_bytes())


@pytest.mark.slow
def test_ray(tmp_path: Path, checkpoint: Path, prompts: list[Path]) -> None:
    pytest.importorskip("ray")
    from pyarrow import parquet

    words = [sys.executable, str(EXAMPLE / "with_ray.py"), *map(str, prompts), "--checkpoint", str(checkpoint)]
    words += ["--output", str(tmp_path / "out"), "--actors", "2", "--batch-size", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    subprocess.run(words, env=environment, check=True, timeout=200)
    result = parquet.read_table(tmp_path / "out").to_pydict()
    model = BGPT.from_pretrained(checkpoint, dtype=torch.float32)
    alone = [Prompt(path.suffix[1:], path.read_bytes(), index) for index, path in enumerate(prompts)]
    expected = [file.data for file in Generator(model).generate(alone)]
    assert dict(zip(result["index"], result["data"], strict=True)) == dict(enumerate(expected))


SIMULATOR = BGPTConfig(
    patch_size=8, patch_length=16, hidden_size=16, patch_num_layers=1, byte_num_layers=1, num_heads=2
)
SIMULATION = ["--random", "23", "--seed", "3", "--piece-size", "5", "--registers", "2", "--memory", "16"]
SIMULATION += ["--max-program", "4", "--write", "parquet"]
DYING = """
import os, signal, sys
from pathlib import Path
import simulate_with_ray
from bgpt_fast.tasks.cpu_states.chunk_journal import ChunkJournal

class Dying(simulate_with_ray.SimulatePieces):
    def __init__(self, options, machine):
        super().__init__(options, machine)
        marker, real, left = Path(options.output) / "../killed", ChunkJournal.add, [7]

        def add(journal, *arguments):
            left[0] -= 1
            if left[0] == 0 and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            real(journal, *arguments)

        ChunkJournal.add = add

simulate_with_ray.SimulatePieces = Dying
sys.exit(simulate_with_ray.main())
"""


@pytest.fixture
def simulator(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    BGPT(SIMULATOR).save_pretrained(tmp_path / "simulator")
    return tmp_path / "simulator"


def one_process(simulator: Path) -> dict[str, Any]:
    """Figures of one process, and the predicted files."""
    traces = cpu.generate(
        23, seed=3, stream="philox", split="eval", num_registers=2, memory_size=16, min_program=1, max_program=4
    )
    assessment = assess(BGPT.from_pretrained(simulator, dtype=torch.float32), traces)
    return {**figures(json.loads(json.dumps(assessment.to_dict()))), "data": [one.data for one in assessment.predicted]}


def figures(report: dict[str, Any]) -> dict[str, Any]:
    return {name: report[name] for name in ("teacher_forced", "free_running", "states")}


def predictions(output: Path) -> list[bytes]:
    from pyarrow import parquet

    tables = [parquet.read_table(path).to_pydict() for path in sorted((output / "predicted").iterdir())]
    assert [name[:6] for table in tables for name in table["name"]] == [f"{number:06d}" for number in range(23)]
    return [data for table in tables for data in table["data"]]


def test_simulated_pieces_add_up_without_ray(tmp_path: Path, simulator: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLE)
    tool = importlib.import_module("simulate_with_ray")
    options = tool.parse(["--checkpoint", str(simulator), "--output", str(tmp_path / "out"), *SIMULATION])
    (tmp_path / "out/unfinished").mkdir(parents=True)
    machine = tool.machine_of(options)
    rows = []
    for piece in tool.pieces(options, machine):
        actor = tool.SimulatePieces(options, machine)
        columns = actor({name: np.array([value]) for name, value in piece.items()})
        rows.append({name: column[0] for name, column in columns.items()})
    assert len(rows) == 5
    random.Random(0).shuffle(rows)
    scores, digests = tool.merged(rows, 2)
    assert sorted(digests) == list(range(5))
    expected = one_process(simulator)
    assert figures(json.loads(json.dumps(scores.assessment().to_dict()))) == figures(expected)
    assert predictions(tmp_path / "out") == expected["data"]


@pytest.mark.slow
def test_ray_simulates_what_one_process_does_though_an_actor_dies(tmp_path: Path, simulator: Path) -> None:
    pytest.importorskip("ray", reason="needs Ray")
    script = tmp_path / "dying.py"
    script.write_text(DYING)
    words = [sys.executable, str(script), "--checkpoint", str(simulator), "--output", str(tmp_path / "out")]
    words += [*SIMULATION, "--actors", "2"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{EXAMPLE}", "RAY_USAGE_STATS_ENABLED": "0"}
    subprocess.run(words, env=environment, check=True, timeout=280)
    assert (tmp_path / "killed").exists()
    expected = one_process(simulator)
    assert figures(json.loads((tmp_path / "out/report.json").read_text())) == figures(expected)
    assert predictions(tmp_path / "out") == expected["data"]
    again = subprocess.run(words, env=environment, check=True, timeout=280, capture_output=True, text=True)
    assert "nothing to do" in again.stderr
