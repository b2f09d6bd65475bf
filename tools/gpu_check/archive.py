"""The logs of all processes as one archive, which is rewritten after each result. Standard library only."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

LOG_BYTES = 1 << 18
"""The most that the archive has of a file: its end."""


def write_archive(folder: Path, target: Path) -> None:
    """Packs the ends of all logs, results and events below `folder` into `target`, a .tar.gz, atomically."""
    incomplete = target.with_name(f".{target.name}")
    with tarfile.open(incomplete, "w:gz", compresslevel=1) as archive:
        for path in sorted(path for path in folder.rglob("*") if path.suffix in (".log", ".json", ".jsonl")):
            content = path.read_bytes()[-LOG_BYTES:]
            entry = tarfile.TarInfo(str(path.relative_to(folder)))
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    incomplete.replace(target)
