"""Fixtures of the ops' tests: the backends, and an op's dtypes and layouts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.ops import BACKENDS, Backend, OpTests, activate


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """The CPU's implementations, then the GPU's: on a GPU, or in Triton's interpreter where there is none."""
    backend = Backend(request.param)
    with activate(backend, getattr(request.module, "OPS", ())):
        yield backend


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.cls is not None and issubclass(metafunc.cls, OpTests):
        if "dtypes" in metafunc.fixturenames:
            metafunc.parametrize("dtypes", metafunc.cls.DTYPES, ids=lambda dtypes: str(dtypes).replace("torch.", ""))
        if "layout" in metafunc.fixturenames:
            metafunc.parametrize("layout", list(metafunc.cls().layouts()))
