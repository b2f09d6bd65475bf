"""`bgpt-fast bench`: what its options make of the child processes, and what is left when one of them fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from bgpt_fast.cli import bench


class Children:
    """Records the commands of child processes; each exits with the next of `codes`, then with 0."""

    def __init__(self, *codes: int) -> None:
        self.codes = [*codes]
        self.commands: list[list[str]] = []

    def __call__(self, root: Path, module: str, *words: str) -> int:
        self.commands.append([module, *words])
        if "--benchmark-json" in words:
            Path(words[words.index("--benchmark-json") + 1]).write_text(f"run {len(self.commands)}")
        return self.codes.pop(0) if self.codes else 0


@pytest.fixture
def json(tmp_path: Path) -> Path:
    return tmp_path / "results" / "bench.json"


def run_bench(monkeypatch: pytest.MonkeyPatch, children: Children, *words: str) -> int:
    monkeypatch.setattr(bench, "_run_module", children)
    return bench.run(words)


def test_each_run_is_a_process_and_their_results_are_merged(monkeypatch: pytest.MonkeyPatch, json: Path) -> None:
    children = Children()
    options = ["--size", "tiny", "--dtype", "bfloat16", "--threads", "2", "--select", "layer_norm", "--device", "cpu"]
    assert run_bench(monkeypatch, children, *options, "--runs", "2", "--json", str(json)) == 0
    first, second, merge = children.commands
    for command in (first, second):
        assert command[0] == "pytest"
        for pair in (["--size", "tiny"], ["--dtype", "bfloat16"], ["--threads", "2"], ["-k", "layer_norm"]):
            at = command.index(pair[0])
            assert command[at : at + 2] == pair
    parts = [command[command.index("--benchmark-json") + 1] for command in (first, second)]
    assert merge == ["benchmarks.compare", *parts, "--merge", parts[0]]
    assert json.read_text() == "run 1"
    assert list(json.parent.iterdir()) == [json]


@pytest.mark.parametrize("codes", [(3,), (0, 3), (0, 0, 3)], ids=["first run", "second run", "merge"])
def test_a_failure_keeps_the_old_result(monkeypatch: pytest.MonkeyPatch, json: Path, codes: tuple[int, ...]) -> None:
    json.parent.mkdir()
    json.write_text("old")
    children = Children(*codes)
    assert run_bench(monkeypatch, children, "--runs", "2", "--json", str(json)) == 3
    assert len(children.commands) == len(codes)
    assert json.read_text() == "old"
    assert list(json.parent.iterdir()) == [json]


def test_a_profile_is_its_own_command(monkeypatch: pytest.MonkeyPatch) -> None:
    children = Children()
    assert run_bench(monkeypatch, children, "--profile", "train", "--size", "tiny", "--device", "cpu") == 0
    trace = ["--output", "bench_train.json.gz"]
    assert children.commands == [["benchmarks.profiling", "train", *trace, "--size", "tiny", "--device", "cpu"]]


def test_a_subcommand_gets_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    children = Children(2)
    assert run_bench(monkeypatch, children, "compare", "a.json", "b.json") == 2
    assert children.commands == [["benchmarks.compare", "a.json", "b.json"]]
