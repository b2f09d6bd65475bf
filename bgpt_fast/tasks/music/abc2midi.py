"""ABC to MIDI by abc2midi, the program of Debian's package abcmidi."""

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
    """Where abc2midi is.

    Raises:
        FileNotFoundError: it is not on the PATH.
    """
    program = shutil.which("abc2midi")
    if program is None:
        raise FileNotFoundError("abc2midi: expected on the PATH; on Debian and Ubuntu: apt install abcmidi")
    return program


class Converted(NamedTuple):
    """A MIDI file, and the first error that abc2midi reported while it wrote it; "" for none."""

    midi: bytes
    complaint: str


def abc_to_midi(abc: bytes, program: str | None = None) -> Converted:
    """The MIDI file that abc2midi makes of one tune.

    It writes one for many tunes that it also reports errors of, such as a tie without a second note.

    Args:
        abc: an ABC file of one tune.
        program: the path of abc2midi; None looks for it.

    Raises:
        MediaError: it writes none, crashes, or takes longer than 10 seconds.
        FileNotFoundError: there is no abc2midi.
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
        # It exits with 0 whatever it found; what it prints and writes is all that tells.
        error_found = _ERROR.search(done.stdout.decode("utf-8", "replace"))
        if done.returncode < 0:
            raise MediaError("abc2midi crashed", f"signal {-done.returncode}")
        complaint = error_found[1].strip() if error_found else ""
        if not target.exists():
            raise MediaError("abc2midi rejects it", complaint or "no MIDI file written")
        return Converted(target.read_bytes(), complaint)
