"""A data set of text, images and traces that needs no download.

txt: pieces of the Python standard library's source. bmp: scikit-learn's handwritten digits, if scikit-learn and Pillow
are installed. bin: traces of the toy CPU. Held-out documents come from other source files, digits and programs.
"""

from __future__ import annotations

import hashlib
import io
import random
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bgpt_fast.files import atomic_write
from bgpt_fast.tasks.cpu_states import generate

MACHINE = {"num_registers": 2, "memory_size": 64, "min_program": 1, "max_program": 15}
# Excluded: other packages, tests, and the encodings, which are hundreds of nearly equal files.
_LEAVE_OUT = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idlelib", "lib2to3", "encodings"}
_HELD_OUT_SHARE = 16  # one source file in this many


@dataclass(frozen=True)
class Documents:
    """Pairs (extension, content) for training, and held-out ones."""

    training: list[tuple[str, bytes]]
    held_out: list[tuple[str, bytes]]

    def write_held_out(self, folder: Path) -> None:
        """Writes the held-out documents as files."""
        for number, (extension, content) in enumerate(self.held_out):
            with atomic_write(folder / f"{number:05}.{extension}") as file:
                file.write(content)

    def describe(self) -> dict[str, dict[str, dict[str, int]]]:
        """Documents and bytes of each extension, JSON-ready."""
        return {
            side: {
                extension: {
                    "documents": sum(one == extension for one, _ in documents),
                    "bytes": sum(len(content) for one, content in documents if one == extension),
                }
                for extension in sorted({extension for extension, _ in documents})
            }
            for side, documents in (("training", self.training), ("held_out", self.held_out))
        }


def mixed_documents(most: int, scored: int, text_bytes: int) -> Documents:
    """Returns the data set.

    Args:
        most: number of training documents of each kind.
        scored: number of held-out documents of each kind.
        text_bytes: length of a piece of text.
    """
    kinds = [_texts(most, scored, text_bytes), _images(most, scored), _traces(most, scored)]
    return Documents(*([document for side in sides for document in side] for sides in zip(*kinds, strict=True)))


def _texts(most: int, scored: int, size: int) -> tuple[list[tuple[str, bytes]], list[tuple[str, bytes]]]:
    sides: tuple[list[tuple[str, bytes]], list[tuple[str, bytes]]] = ([], [])
    for name, path in _sources():
        content = path.read_bytes()
        held_out = hashlib.blake2b(name.encode()).digest()[0] % _HELD_OUT_SHARE == 0
        sides[held_out].extend(("txt", content[start : start + size]) for start in range(0, len(content), size))
    contents = set(sides[0])  # licences and other lines that files share
    sides[1][:] = [piece for piece in sides[1] if piece not in contents]
    return tuple(  # type: ignore[return-value]
        random.Random(0).sample(side, min(count, len(side))) for side, count in zip(sides, (most, scored), strict=True)
    )


def _sources() -> Iterator[tuple[str, Path]]:
    """Names and paths of the standard library's files, by name."""
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py")):
        parts = path.relative_to(library).parts
        if not _LEAVE_OUT & set(parts) and path.is_file():
            yield "/".join(parts), path


def _images(most: int, scored: int) -> tuple[list[tuple[str, bytes]], list[tuple[str, bytes]]]:
    try:
        from PIL import Image
        from sklearn.datasets import load_digits
    except ImportError:
        return [], []
    bitmaps = []
    for grey in load_digits().images:
        file = io.BytesIO()
        # 17 grey levels, black on white, as ink on paper.
        Image.fromarray((255 - grey * 255 / 16).round().astype("uint8")).convert("RGB").save(file, "BMP")
        bitmaps.append(("bmp", file.getvalue()))
    return bitmaps[scored:][:most], bitmaps[:scored]


def _traces(most: int, scored: int) -> tuple[list[tuple[str, bytes]], list[tuple[str, bytes]]]:
    def documents(count: int, seed: int, split: str) -> list[tuple[str, bytes]]:
        traces = generate(count, seed=seed, stream="philox", split=split, **MACHINE)  # type: ignore[arg-type]
        return [("bin", trace.to_bytes()) for trace in traces]

    return documents(most, 0, "train"), documents(scored, 1, "eval")
