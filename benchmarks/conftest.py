"""`pytest benchmarks/`: its options, the parametrisation by them, and the description of the machine in the JSON."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from benchmarks.baselines import missing, status
from benchmarks.bench_ops import parameters
from benchmarks.environment import ROOT, commit, machine
from benchmarks.peak import measured_peak
from benchmarks.scales import Scale, scale_of
from benchmarks.suite import Bench
from benchmarks.timing import CLOCKS, Clock

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_PEAK = pytest.StashKey[dict[str, dict[str, float]]]()
_LOAD = pytest.StashKey[float]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("bgpt_fast")
    group.addoption(
        "--size",
        choices=("tiny", "quick", "full"),
        default="quick",
        help="tiny: tries the suite itself; quick: under 3 minutes on two cores; full: for published results",
    )
    group.addoption("--device", choices=("auto", "cpu", "cuda"), default="auto")
    group.addoption("--dtype", help="of ops and training, joined by commas; default: bfloat16 on a GPU, else float32")
    group.addoption("--threads", type=int, help="torch's threads on the CPU")
    group.addoption(
        "--clock",
        choices=tuple(CLOCKS),
        default="wall",
        help="on a CPU: elapsed time, or the CPU time of the calling thread, for a machine that others use too",
    )


def device_of(config: pytest.Config) -> torch.device:
    name = config.getoption("--device")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--device cuda: torch sees no GPU here")
    return torch.device(name)


def dtypes_of(config: pytest.Config) -> dict[str, torch.dtype]:
    words = config.getoption("--dtype") or ("bfloat16" if device_of(config).type == "cuda" else "float32")
    unknown = [word for word in words.split(",") if word not in DTYPES]
    if unknown:
        raise pytest.UsageError(f"--dtype: expected some of {', '.join(DTYPES)}, joined by commas; got {unknown[0]!r}")
    return {word: DTYPES[word] for word in words.split(",")}


def scale(config: pytest.Config) -> Scale:
    return scale_of(config.getoption("--size"), device_of(config).type)


def clock_of(config: pytest.Config) -> Clock:
    return CLOCKS[config.getoption("--clock")]


def peak_of(config: pytest.Config) -> dict[str, dict[str, float]]:
    """The peak rates, measured once before the first item."""
    if _PEAK not in config.stash:
        dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, **dtypes_of(config)}
        size, seconds = scale(config).peak, 3 * scale(config).seconds
        config.stash[_PEAK] = measured_peak(device_of(config), tuple(dtypes.values()), size, seconds, clock_of(config))
    return config.stash[_PEAK]


def pytest_configure(config: pytest.Config) -> None:
    if getattr(config.option, "numprocesses", None):
        raise pytest.UsageError("benchmarks: expected no -n: beside pytest-xdist, pytest-benchmark measures nothing")
    config.addinivalue_line("python_files", "bench_*.py")
    threads = config.getoption("--threads")
    if threads is not None:
        torch.set_num_threads(threads)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    config = metafunc.config
    if metafunc.definition.get_closest_marker("ops"):
        rows = parameters(device_of(config), dtypes_of(config))
        metafunc.parametrize(("name", "implementation", "direction", "dtype"), rows)
        return
    if "dtype" in metafunc.fixturenames:
        metafunc.parametrize("dtype", list(dtypes_of(config).values()), ids=list(dtypes_of(config)))
    if "batch" in metafunc.fixturenames:
        metafunc.parametrize("batch", scale(config).batches)
    if "curve" in metafunc.fixturenames:
        points = [(name, value) for name, values in scale(config).curves.items() for value in values]
        metafunc.parametrize("curve", points, ids=[f"{name}-{value}" for name, value in points])
    if baselines := metafunc.definition.get_closest_marker("baselines"):
        slow = metafunc.definition.get_closest_marker("slow_baselines")
        rows = [_row(name, config, slow is not None and name in slow.args) for name in baselines.args]
        metafunc.parametrize("implementation", rows)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Removes the tests' time limit: a benchmark may spend minutes in a compiler."""
    if config.pluginmanager.hasplugin("timeout"):
        for item in items:
            item.add_marker(pytest.mark.timeout(0))


def _row(baseline: str, config: pytest.Config, is_slow: bool) -> Any:
    device = device_of(config)
    reason = missing(baseline, device)
    if reason is None and is_slow and device.type == "cpu" and config.getoption("--size") != "full":
        reason = "takes a minute: --size full"
    marks = [] if reason is None else [pytest.mark.skip(reason=f"{baseline}: {reason}")]
    return pytest.param(baseline, id=baseline.replace(" ", "_").replace(",", ""), marks=marks)


@pytest.fixture
def bench(benchmark: Any, request: pytest.FixtureRequest) -> Bench:
    """Measures this item."""
    config = request.config
    return Bench(benchmark, device_of(config), scale(config), peak_of(config), clock_of(config))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: list[Any], output_json: dict[str, Any]) -> None:
    """Adds the command, the commit, the machine, its peak rates, and which baselines are missing."""
    for entry in output_json["benchmarks"]:
        # Each round's time: a hundred times larger than the statistics, and never read.
        entry["stats"].pop("data", None)
    words = [str(word).replace(f"{ROOT}/", "").replace(str(ROOT), ".") for word in config.invocation_params.args]
    description = machine()
    output_json["bgpt_fast"] = {
        "command": ["pytest", *words],
        "commit": commit(),
        "machine": description,
        "load_at_start": config.stash[_LOAD],
        "size": config.getoption("--size"),
        "device": device_of(config).type,
        "threads": torch.get_num_threads(),
        "clock": config.getoption("--clock"),
        "openmp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "peak": peak_of(config),
        "baselines": status(device_of(config)),
        "python": description["python"],
    }


def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.stash[_LOAD] = os.getloadavg()[0]
