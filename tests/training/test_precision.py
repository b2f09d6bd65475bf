"""precision="auto": the faster dtype by measurement, one for the whole run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.training import make_trainer

from bgpt_fast.training import precision as module
from bgpt_fast.training.precision import MIN_GAIN, ProductRates, product_rates, resolve_precision

CPU = torch.device("cpu")


def pretend(monkeypatch: pytest.MonkeyPatch, gain: float) -> None:
    """bfloat16 products are `gain` times as fast as float32 ones."""
    monkeypatch.setattr(module, "product_rates", lambda width: ProductRates(1e11, gain * 1e11))


@pytest.mark.parametrize(("gain", "expected"), [(8.0, "bf16"), (MIN_GAIN, "fp32"), (0.5, "fp32")])
def test_the_faster_one_is_chosen(monkeypatch: pytest.MonkeyPatch, gain: float, expected: str) -> None:
    pretend(monkeypatch, gain)
    assert resolve_precision("auto", 64, CPU) == expected
    assert resolve_precision("fp32", 64, CPU) == "fp32"
    assert resolve_precision("bf16", 64, CPU) == "bf16"


def test_rates_are_measured_and_printed() -> None:
    rates = product_rates(64)
    assert rates.float32 > 1e8
    assert rates.bfloat16 > 1e8
    assert product_rates(64) is rates, "measured once"
    assert ProductRates(1.2e11, 1.1e12).text == "products: float32 120, bfloat16 1,100 GFLOP/s"


def test_a_resumed_run_keeps_its_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, 8.0)
    first = make_trainer(tmp_path, steps=2, precision="auto")
    assert first.config.precision == "bf16"
    first.train()
    pretend(monkeypatch, 0.5)
    assert make_trainer(tmp_path, steps=4, precision="auto").config.precision == "bf16"
    assert make_trainer(tmp_path / "another", steps=2, precision="auto").config.precision == "fp32"


def test_damaged_settings_of_a_run_are_measured_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, 8.0)
    trainer = make_trainer(tmp_path, steps=1, precision="auto")
    trainer.train()
    assert trainer.store.latest_settings()["precision"] == "bf16"
    state = trainer.store.path(1) / "state.json"
    for text in ("", "[]", "{}", '{"config": 3}'):
        state.write_text(text)
        assert trainer.store.latest_settings() == {}
