"""A planted bug, and its application to a copy of the source tree."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path


class MutantError(Exception):
    """A mutant does not fit the source, or its test cannot be run."""


@dataclass(frozen=True)
class Mutant:
    """A small change that breaks the source, and the test that must notice it.

    Args:
        layer: the part of the architecture that it breaks.
        file: path of the source, relative to the repository.
        before: text that occurs in the file exactly once.
        after: text that takes its place.
        test: pytest's id of the test.
    """

    layer: str
    file: str
    before: str
    after: str
    test: str

    @property
    def name(self) -> str:
        """What identifies it in reports: file and test."""
        return f"{self.file} → {self.test.rpartition('::')[2]}"

    @property
    def needs_build(self) -> bool:
        """Whether the extension has to be built again; tests in tests/csrc and of offsets read the C++ themselves."""
        reads_source = self.test.startswith(("tests/csrc/", "tests/kernels/test_offsets.py"))
        return self.file.startswith("csrc/") and not reads_source

    def apply(self, root: Path) -> str:
        """Changes the file below `root`; returns its text as it was.

        Raises:
            MutantError: the text to replace does not occur exactly once, or the result is no Python.
        """
        path = root / self.file
        text = path.read_text() if path.is_file() else ""
        count = text.count(self.before)
        if count != 1 or self.before == self.after:
            raise MutantError(
                f"{self.name}: expected another text for {self.before!r}, which occurs once in {self.file}, got "
                f"{count} occurrences; change the mutant in tools/mutants/table.py"
            )
        mutated = text.replace(self.before, self.after)
        if path.suffix == ".py":
            try:
                ast.parse(mutated)
            except SyntaxError as error:
                raise MutantError(f"{self.name}: expected Python after the change, got {error}") from error
        path.write_text(mutated)
        return text
