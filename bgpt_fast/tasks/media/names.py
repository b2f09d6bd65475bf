"""Names, labels and splits of standard files."""

from __future__ import annotations

import os
import re
import unicodedata
from dataclasses import dataclass
from typing import Literal

from bgpt_fast.data.file_index import FileEntry, digest_is_in_split, is_in_split

Labels = Literal["name", "folder", "none"]
Side = Literal["train", "test"]
_LABEL_BYTES, _STEM_BYTES = 96, 96


@dataclass(frozen=True)
class Plan:
    """How labels and splits are derived from names and contents, without decoding.

    Args:
        labels: "name": the text of the file name before its first "_", if there is one; "folder": the name
            of the file's folder; "none": no labels.
        test_share: share of the sources in the test set.
        group: a regular expression to search in the path below the input folder; sources with the same first group (or
            match, without groups) are in the same split. "" makes each distinct content a group.
        stratify: every label has this share of its sources in the test set, at least one if it has two; otherwise the
            share holds on average over all sources.
    """

    labels: Labels = "name"
    test_share: float = 0.1
    group: str = ""
    stratify: bool = False

    def __post_init__(self) -> None:
        if self.labels not in ("name", "folder", "none"):
            raise ValueError(f'labels: expected "name", "folder" or "none", got {self.labels!r}')
        if not 0.0 <= self.test_share <= 1.0:
            raise ValueError(f"test_share: expected a share from 0 to 1, got {self.test_share}")
        try:
            re.compile(self.group)
        except re.error as error:
            raise ValueError(f"group: expected a regular expression, got {self.group!r}: {error}") from error
        if self.stratify and self.group:
            raise ValueError(f"stratify: expected no group beside it, got {self.group!r}: a group can have many labels")

    def label(self, file: FileEntry) -> str:
        """Returns the file's label, without "_" and special characters; "" for none."""
        return clean(self.raw_label(file), _LABEL_BYTES).replace("_", "-")

    def raw_label(self, file: FileEntry) -> str:
        """Returns the file's label as in its name or folder, in Unicode's composed form (NFC); "" for none."""
        path = unicodedata.normalize("NFC", os.path.abspath(file.path))
        if self.labels == "folder":
            return os.path.basename(os.path.dirname(path))
        label, separator, _ = os.path.basename(path).partition("_")
        return label if separator and self.labels == "name" else ""

    def stem(self, file: FileEntry, digest: str) -> str:
        """Returns the prefix of the names of the file's outputs: label, stem, and the content's digest."""
        stem = os.path.splitext(os.path.basename(file.path))[0]
        if self.labels == "name" and self.raw_label(file):
            stem = stem.partition("_")[2]
        label = self.label(file)
        stem = clean(stem, _STEM_BYTES)
        # Without a label there is no "_", since the text before it would be a label.
        return f"{label}_{stem}-{digest[:12]}" if label else f"{stem.replace('_', '-')}-{digest[:12]}"

    def side(self, file: FileEntry, digest: str) -> Side:
        """Returns the split of the file's outputs, which depends only on its content or group."""
        match = re.search(self.group, os.fsdecode(file.relative)) if self.group else None
        if match is None:
            is_test = digest_is_in_split(bytes.fromhex(digest), "eval", self.test_share)
        else:
            key = match[1] if match.re.groups else match[0]
            is_test = is_in_split(os.fsencode(key or ""), "eval", self.test_share)
        return "test" if is_test else "train"


def clean(text: str, most_bytes: int) -> str:
    """Returns text that is valid in file names everywhere: letters with their marks, digits and ".+-_", in NFC.

    It is not empty unless `text` is.
    """
    composed = unicodedata.normalize("NFC", text.encode("utf-8", "replace").decode())
    valid = "".join(char if _is_in_names(char) else "\0" for char in composed)
    plain = re.sub("\0+", "-", valid).strip(".-") or "-" * bool(text)
    return plain.encode()[:most_bytes].decode("utf-8", "ignore")


def _is_in_names(char: str) -> bool:
    return char.isalnum() or char in "_.+-" or unicodedata.category(char).startswith("M")


def check_labels(plan: Plan, files: list[FileEntry]) -> None:
    """Checks that no two labels become equal when they are cleaned.

    Raises:
        ValueError: two labels become equal; the message names them.
    """
    spelled: dict[str, str] = {}
    for file in files:
        raw, label = plan.raw_label(file), plan.label(file)
        other = spelled.setdefault(label, raw)
        if other != raw:
            raise ValueError(
                f"labels {other!r} and {raw!r}: expected labels that differ in letters or digits, got {label!r} for "
                "both; rename one"
            )
