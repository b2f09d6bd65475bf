"""A simulation as one self-contained HTML page: scores, error positions, and each program step by step."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any

from bgpt_fast.files import atomic_write

Row = list[int | None]


@dataclass(frozen=True)
class ProgramView:
    """A program for the page: the true trace and the predicted ones.

    Args:
        name: name of the predicted file.
        truth: the true states, one row per step, including the first state.
        free: the free-running prediction from step 1; None for missing bytes. It may have fewer rows than the truth, or
            more.
        forced: the teacher-forced prediction from step 1.
        truth_text: the instruction of each row of `truth`, as assembly.
        free_text, forced_text: the same for the predictions.
    """

    name: str
    truth: list[Row]
    free: list[Row]
    forced: list[Row]
    truth_text: list[str]
    free_text: list[str]
    forced_text: list[str]


def write_simulation_page(
    path: str | os.PathLike[str],
    title: str,
    columns: Sequence[str],
    figures: Mapping[str, Any],
    programs: Sequence[ProgramView],
) -> None:
    """Writes the page, complete or absent.

    Args:
        path: the .html file; an existing one is replaced.
        title: its heading.
        columns: names of a state's bytes.
        figures: "teacher_forced" and "free_running", each as a report's `to_dict` gives it, "states_per_second" and
            "teacher_forced_states_per_second".
        programs: to show step by step.

    Raises:
        OSError: the file cannot be written.
    """
    data = {"columns": list(columns), "figures": figures, "programs": [asdict(program) for program in programs]}
    # "</script>" in a string would end the script: "<" is escaped everywhere in it.
    text = json.dumps(data, allow_nan=False).replace("<", "\\u003c")
    name = html.escape(title)
    style, script = (
        files(__package__).joinpath(f"simulation_page.{kind}").read_text("utf-8") for kind in ("css", "js")
    )
    page = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name}</title>
<style>{style}</style>
</head>
<body>
<header><h1>{name}</h1><div id="cards"></div></header>
<main>
<section>
<h2>Program by program</h2>
<p class="note">A row a step, a column a byte of the state. Row k holds the instruction fetched at step k and the
results of the one before. Point at a cell for both values and the disassembly.</p>
<div class="choice"><select id="program" aria-label="program"></select>
<label><input type="radio" name="mode" value="free" checked> free running</label>
<label><input type="radio" name="mode" value="forced"> teacher-forced</label></div>
<p id="verdict"></p>
<div class="scroll"><table id="map"></table></div>
<p class="legend"><span class="right">right</span> <span class="changed">right, and changed at this step</span>
<span class="wrong">wrong</span> <span class="missing">missing or surplus</span>
<span class="first">first divergence</span></p>
</section>
<section>
<h2>Where the model goes wrong</h2>
<p class="note">Wrong bytes in % of the programs that have the step, free running: a row a step, a column a byte of the
state. Empty: none is wrong. The last column is the number of programs.</p>
<div class="scroll"><table id="heat"></table></div>
<p class="legend"><span class="right">0 %</span> <span class="scale"></span> <span id="scale-end"></span></p>
<h3>First divergence</h3>
<p class="note">Programs by the step of their first wrong byte.</p>
<div class="scroll"><div id="histogram"></div></div>
</section>
<section id="scores"><h2>Scores</h2></section>
</main>
<div id="tip" role="tooltip" hidden></div>
<script type="application/json" id="data">{text}</script>
<script>{script}</script>
</body>
</html>
"""
    with atomic_write(path) as file:
        file.write(page.encode("utf-8", "backslashreplace"))
