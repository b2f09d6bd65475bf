"""Converts ABC to MIDI with abc2midi, a program of Debian's package abcmidi."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from bgpt_fast.tasks.media.errors import MediaError

_SECONDS = 10.0
_ERROR = re.compile(r"^Error in line-char \S+ : (.*)$", re.MULTILINE)


def find_abc2midi() -> str:
    """Returns the path of abc2midi.

    Raises:
        OSError: it is not on the PATH.
    """
    program = shutil.which("abc2midi")
    if program is None:
        raise OSError("abc2midi: expected on the PATH; on Debian and Ubuntu: apt install abcmidi")
    return program


class Converted(NamedTuple):
    """A MIDI file, and the first error that abc2midi reported; "" if there was none."""

    midi: bytes
    complaint: str


def abc_to_midi(abc: bytes, program: str | None = None) -> Converted:
    """Converts an ABC tune to MIDI with abc2midi, which may report errors even if it writes a file.

    Args:
        abc: an ABC file of one tune.
        program: the path of abc2midi; None searches the PATH.

    Raises:
        MediaError: abc2midi writes no file, crashes, or takes longer than 10 seconds.
        OSError: abc2midi is missing.
    """
    program = program or find_abc2midi()
    with tempfile.TemporaryDirectory(prefix="bgpt-abc-") as folder:
        source, target = Path(folder, "tune.abc"), Path(folder, "tune.mid")
        source.write_bytes(abc)
        try:
            done = subprocess.run(
                [program, source.name, "-o", target.name],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise MediaError("abc2midi took too long", f"over {_SECONDS:g} s") from error
        # Its exit code is 0 despite errors, so they are read from its output.
        error_line = _ERROR.search(done.stdout.decode("utf-8", "replace"))
        if done.returncode < 0:
            raise MediaError("abc2midi crashed", f"signal {-done.returncode}")
        complaint = error_line[1].strip() if error_line else ""
        if not target.exists():
            raise MediaError("abc2midi rejects it", complaint or "no MIDI file written")
        return Converted(target.read_bytes(), complaint)
