"""`pytest benchmarks/`: its options, what is parametrised by them, and what the JSON says of the machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from check_machine import describe
from gpu_check import commit
from limits import measured_limits
from optional_peers import missing, status
from scales import Scale, scale_of
from suite import Bench

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_LIMITS = pytest.StashKey[dict[str, dict[str, float]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("bgpt_fast")
    group.addoption(
        "--size",
        choices=("tiny", "quick", "full"),
        default="quick",
        help="tiny: tries the suite itself; quick: under 3 minutes on two cores; full: what receipts hold",
    )
    group.addoption("--device", choices=("auto", "cpu", "cuda"), default="auto")
    group.addoption(
        "--dtype", default=None, help="of ops and training, joined by commas; default: bfloat16 on a GPU, else float32"
    )
    group.addoption("--threads", type=int, default=None, help="torch's threads on the CPU")


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


def limits_of(config: pytest.Config) -> dict[str, dict[str, float]]:
    """Measured once, before the first item."""
    if _LIMITS not in config.stash:
        asked = {"float32": torch.float32, "bfloat16": torch.bfloat16, **dtypes_of(config)}
        chosen = scale(config)
        config.stash[_LIMITS] = measured_limits(
            device_of(config), tuple(asked.values()), chosen.limit, 3 * chosen.seconds
        )
    return config.stash[_LIMITS]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("python_files", "bench_*.py")
    threads = config.getoption("--threads")
    if threads is not None:
        torch.set_num_threads(threads)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    config = metafunc.config
    ops = metafunc.definition.get_closest_marker("ops")
    if ops is not None:
        from op_bench import parameters

        rows = parameters(ops.args, device_of(config), dtypes_of(config))
        metafunc.parametrize(("name", "implementation", "direction", "dtype"), rows)
        return
    if "dtype" in metafunc.fixturenames:
        metafunc.parametrize("dtype", list(dtypes_of(config).values()), ids=list(dtypes_of(config)))
    if "batch" in metafunc.fixturenames:
        metafunc.parametrize("batch", scale(config).batches)
    if "curve" in metafunc.fixturenames:
        points = [(name, value) for name, values in scale(config).curves.items() for value in values]
        metafunc.parametrize("curve", points, ids=[f"{name}-{value}" for name, value in points])
    peers = metafunc.definition.get_closest_marker("peers")
    if peers is not None:
        slow = metafunc.definition.get_closest_marker("slow_peers")
        metafunc.parametrize(
            "implementation", [_row(peer, config, slow is not None and peer in slow.args) for peer in peers.args]
        )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Takes the tests' time limit off: a compiler's minutes are no fault of a benchmark."""
    if config.pluginmanager.hasplugin("timeout"):
        for item in items:
            item.add_marker(pytest.mark.timeout(0))


def _row(peer: str, config: pytest.Config, is_slow: bool) -> Any:
    device = device_of(config)
    reason = missing(peer, device)
    if reason is None and is_slow and device.type == "cpu" and config.getoption("--size") != "full":
        reason = "takes a minute: --size full"
    marks = [] if reason is None else [pytest.mark.skip(reason=f"{peer}: {reason}")]
    return pytest.param(peer, id=peer.replace(" ", "_").replace(",", ""), marks=marks)


@pytest.fixture
def bench(benchmark: Any, request: pytest.FixtureRequest) -> Bench:
    """Measures this item."""
    config = request.config
    return Bench(benchmark, device_of(config), scale(config), limits_of(config))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def processor() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), "unknown")


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: list[Any], output_json: dict[str, Any]) -> None:
    """Adds what a receipt needs: the command, the commit, the machine, its limits, and which peers are missing."""
    device = device_of(config)
    for entry in output_json["benchmarks"]:
        # Each round's time: a hundred times as much as all that is read of it.
        entry["stats"].pop("data", None)
    here = f"{Path(__file__).resolve().parent.parent}"
    output_json["bgpt_fast"] = {
        "command": [
            "pytest",
            *(str(word).replace(f"{here}/", "").replace(here, ".") for word in config.invocation_params.args),
        ],
        "commit": commit(),
        "machine": {**describe(), "processor": processor()},
        "load_at_start": config.stash[_LOAD],
        "size": config.getoption("--size"),
        "device": device.type,
        "threads": torch.get_num_threads(),
        "openmp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "limits": limits_of(config),
        "peers": status(device),
        "python": sys.version.split()[0],
    }


_LOAD = pytest.StashKey[float]()


def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.stash[_LOAD] = os.getloadavg()[0]
