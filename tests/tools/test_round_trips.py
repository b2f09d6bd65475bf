"""The count of a byte's round trips to memory, on small listings and on the persistent kernel's machine code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.paths import ROOT

from tools.static_check import compile, round_trips
from tools.static_check.round_trips import BYTE, MAX_ROUND_TRIPS, Visits
from tools.static_check.table import RESULT

HEADER = """BGPT_DEVICE float embedding(const float* x) {
    return load_fresh(x);
}
BGPT_DEVICE void product() {
    embedding(x);
}
"""
FRAMES = """//## File "{root}/csrc/byte_decode/lanes.h", line 9 inlined at "{root}/csrc/byte_decode/x.h", line 2
//## File "{root}/csrc/byte_decode/x.h", line 2 inlined at "{root}/csrc/byte_decode/x.h", line 5
//## File "{root}/csrc/byte_decode/x.h", line 5"""
THREE_TIMES_FOUR = Visits(3, 4)
LOAD, USE = "LDG.E.STRONG.GPU R{0}, desc[UR8][R2.64]", "FADD R20, R{0}, R20"


def trips(folder: Path, *instructions: str, visits: Visits = THREE_TIMES_FOUR) -> int:
    """Round trips of a byte that runs through these instructions of `product/embedding`."""
    source = folder / "csrc/byte_decode/x.h"
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_text(HEADER)
    lines = []
    for number, instruction in enumerate(instructions):
        if instruction.endswith(":"):
            lines.append(instruction)
            continue
        predicate = "" if instruction.startswith("BRA") else "@!P1"
        lines += [FRAMES.format(root=folder), f"        /*{16 * number:04x}*/  {predicate} {instruction} ;"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(round_trips, "BYTE", {"product/embedding": visits})
        return round_trips.round_trips("\n".join(lines), folder, "bf16")


def test_loads_that_are_begun_together_are_one_round_trip(tmp_path: Path) -> None:
    loads, uses = ([text.format(r) for r in (4, 5, 6, 7)] for text in (LOAD, USE))
    assert trips(tmp_path, *loads, *uses) == 3
    one_by_one = [line for pair in zip(loads, uses, strict=True) for line in pair]
    assert trips(tmp_path, *one_by_one) == 3 * 4
    # The registers of a wide load, and a register that is the target again.
    assert trips(tmp_path, "LDG.E.128 R4, desc[UR8][R2.64]", USE.format(7), visits=Visits(1, 1)) == 1
    assert trips(tmp_path, *loads[:1], "MOV R4, R9", *uses[:1]) == 0
    # A store reads all its operands.
    assert trips(tmp_path, *loads[:1], "ST.E desc[UR8][R8.64], R4", visits=Visits(1, 1)) == 1
    assert trips(tmp_path) == 0


def test_a_loop_that_begins_fewer_loads_runs_more_often(tmp_path: Path) -> None:
    loads, uses = ([text.format(r) for r in (4, 5)] for text in (LOAD, USE))
    assert trips(tmp_path, *loads, *uses, visits=Visits(3, 64)) == 3 * 32


def test_what_a_jump_leaves_out_does_not_wait(tmp_path: Path) -> None:
    load, use, end = LOAD.format(4), USE.format(4), "BRA `(.L_x_1)"
    assert trips(tmp_path, load, end, use) == 0
    assert trips(tmp_path, load, end, ".L_x_1:", use, visits=Visits(3, 1)) == 3


def test_an_unknown_function_that_waits_is_named(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BYTE, "product/embedding", Visits(1, 1))
        (tmp_path / "csrc/byte_decode").mkdir(parents=True)
        (tmp_path / "csrc/byte_decode/x.h").write_text(HEADER.replace("embedding", "guess"))
        listing = f"{FRAMES.format(root=tmp_path)}\n /*0000*/ {LOAD.format(4)} ;\n /*0010*/ {USE.format(4)} ;"
        with pytest.raises(ValueError, match=r"BYTE or OTHER of round_trips\.py lists, got product/guess too"):
            round_trips.round_trips(listing, tmp_path, "bf16")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_loads_that_wait_one_by_one_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bfloat16 kernel for sm_90 alone, with fewer loads of keys begun at once than in the one of static.json."""
    source = "csrc/byte_decode/byte_decode.cu"
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    shutil.copy(ROOT / "CMakeLists.txt", tmp_path)
    monkeypatch.setattr(compile, "ROOT", tmp_path)
    for file, before, after in (
        (source, "dtype == 0 ? launch<float> : launch<uint16_t>", "launch<uint16_t>"),
        ("csrc/byte_decode/persistent_attention.h", "kChannelsAtOnce = 32", "kChannelsAtOnce = 8"),
    ):
        text = (tmp_path / file).read_text()
        assert text.count(before) == 1
        (tmp_path / file).write_text(text.replace(before, after))
    text = (tmp_path / source).read_text()
    (tmp_path / source).write_text(text[: text.index("void byte_accept_cuda")] + "}\n")
    [recorded] = [row for row in json.loads(RESULT.read_text())["kernels"] if row["case"] == "byte_decode bf16"]
    [row], errors = compile.compile_task(compile.Task(source, "", 90))
    trips = row["targets"]["sm_90"]["round_trips"]
    assert 0 < recorded["targets"]["sm_90"]["round_trips"] <= MAX_ROUND_TRIPS < trips
    assert f"at most {MAX_ROUND_TRIPS} times, got {trips}" in "\n".join(errors)
