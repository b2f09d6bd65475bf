"""`--precision` of the commands that run a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bgpt_fast.generation.decoders.base import device_of
from bgpt_fast.generation.precision import PrecisionChoice, generation_precision
from bgpt_fast.model import BGPT


def choose_precision(option: str, earlier: Mapping[str, Any] | None, model: BGPT, files: int) -> PrecisionChoice:
    """The precision of a run that generates files.

    Args:
        option: the value of --precision.
        earlier: the plan of the run that this one resumes, whose precision "auto" keeps; None if there is none.
        model: the model.
        files: number of files generated at the same time.
    """
    if option == "auto" and earlier is not None:
        # Earlier versions computed in float32 and did not record it.
        return PrecisionChoice(earlier.get("precision", "float32"), "as in the run that this one resumes")
    return generation_precision(option, model.config, device_of(model), files)


def in_plan(choice: PrecisionChoice) -> dict[str, str]:
    """The precision as an entry of a plan, in which float32 is left out, as in earlier versions."""
    return {} if choice.precision == "float32" else {"precision": choice.precision}
