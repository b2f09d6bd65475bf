"""ABC collections as a data set of pairs: NAME.abc and NAME.mid, train and test without leakage."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bgpt_fast.config import BGPTConfig
from bgpt_fast.data import DataError
from bgpt_fast.data.file_index import FileEntry, Paths, SkipReport, as_roots, is_in_split
from bgpt_fast.documents import extension_of
from bgpt_fast.files import write_json
from bgpt_fast.tasks.media.errors import MediaError
from bgpt_fast.tasks.media.names import clean, digest_of
from bgpt_fast.tasks.media.output import OutputFolder, Record, find_outside
from bgpt_fast.tasks.music.abc2midi import abc_to_midi, find_abc2midi
from bgpt_fast.tasks.music.collections import Fields, Tune, has_music, split_collection, tidy, title_key
from bgpt_fast.tasks.music.midi import read_notes

_TUNES_AHEAD = 256
_MOST_BYTES = 1 << 28
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class MusicReport:
    """What was made and what was not.

    Args:
        collections: ABC files found.
        tunes: tunes in them that have music behind their header.
        pairs: by side.
        complaints: pairs of which abc2midi reported an error and yet wrote a MIDI file.
        mean_abc_bytes, mean_midi_bytes: of the pairs.
        in_context: share of the pairs that fit into the paper's 512 patches of 16 bytes; longer ones cannot be
            trained on there.
        skipped: files and tunes that were left out, by reason.
        first_skipped: a few of them as "reason: path, tune (detail)".
    """

    collections: int
    tunes: int
    pairs: dict[str, int]
    complaints: int
    mean_abc_bytes: float
    mean_midi_bytes: float
    in_context: float
    skipped: dict[str, int]
    first_skipped: list[str]

    def to_dict(self) -> dict[str, Any]:
        """All figures, JSON-ready."""
        return asdict(self)


class _Work(NamedTuple):
    """A tune, where it is from, and the ABC file that is to be made of it."""

    path: str
    tune: Tune
    abc: bytes

    @property
    def told(self) -> str:
        return f"{self.path}, X:{self.tune.number} {self.tune.title}"


class _Made(NamedTuple):
    """What became of a tune's ABC."""

    midi: bytes
    music: str
    complaint: str
    error: MediaError | None


def make_pairs(
    inputs: Paths,
    output: str | os.PathLike[str],
    *,
    test_share: float = 0.1,
    fields: Fields = "musical",
    strict: bool = False,
    workers: int = 0,
    progress: Progress | None = None,
) -> MusicReport:
    """Makes OUTPUT/train and OUTPUT/test of ABC collections, for training on "abc&mid", and OUTPUT/report.json.

    Each tune is one ABC file, and a MIDI file that abc2midi made of it and mido reads. All settings of a title go to
    one side, and a tune that sounds exactly as an earlier one is skipped. What cannot be used is skipped and told.
    Run again, it goes on where it was stopped.

    Args:
        inputs: .abc files, and folders of them.
        output: a new or empty folder, or one of an earlier run with the same options.
        test_share: share of the titles in the test set.
        fields: "musical" drops titles, sources, lyrics and comments, as IrishMAN does; "all" keeps them.
        strict: skips tunes of which abc2midi reports an error, even where it writes a MIDI file.
        workers: abc2midi programs at once; 0 means one a core.
        progress: called with tunes done and tunes in all.

    Raises:
        DataError: no such path, or no ABC file.
        FileNotFoundError: there is no abc2midi.
        FileExistsError: the output holds something else, or was made with other options.
        ImportError: mido is missing.
        ValueError: a wrong argument.
    """
    if not 0.0 <= test_share <= 1.0:
        raise ValueError(f"test_share: expected a share from 0 to 1, got {test_share}")
    if fields not in ("musical", "all"):
        raise ValueError(f'fields: expected "musical" or "all", got {fields!r}')
    program = find_abc2midi()
    skips = SkipReport()
    files = [file for file in find_outside(inputs, Path(output), skips) if _is_collection(file, skips)]
    if not files:
        raise DataError(f"{as_roots(inputs)}: expected .abc files, got none")
    tunes = list(_tunes(files, fields, skips))
    options = {"test_share": test_share, "fields": fields, "strict": strict}
    run = _Run(test_share, skips)
    with (
        OutputFolder(Path(output), "music", options) as folder,
        ThreadPoolExecutor(workers or len(os.sched_getaffinity(0))) as threads,
    ):
        run.take_up(folder)
        for start in range(0, len(tunes), _TUNES_AHEAD):
            part = tunes[start : start + _TUNES_AHEAD]
            fresh = {work.abc for work in part if digest_of(work.abc) not in folder.records}
            made = dict(zip(fresh, threads.map(lambda abc: _convert(abc, program, strict), fresh), strict=True))
            for number, work in enumerate(part, start + 1):
                run.add(folder, work, made.get(work.abc))
                if progress is not None:
                    progress(number, len(tunes))
        folder.save()
        report = run.report(len(files), len(tunes))
        write_json(Path(output) / "report.json", {"options": options, **report.to_dict()})
    return report


class _Run:
    """What is known of all tunes so far."""

    def __init__(self, test_share: float, skips: SkipReport) -> None:
        self._test_share = test_share
        self._skips = skips
        self._music: dict[str, str] = {}
        self._seen: set[str] = set()
        self._records: list[Record] = []

    def take_up(self, folder: OutputFolder) -> None:
        self._music = {record["music"]: record["tune"] for record in folder.records.values() if record["files"]}

    def add(self, folder: OutputFolder, work: _Work, made: _Made | None) -> None:
        key = digest_of(work.abc)
        if key in self._seen:
            self._skips.count(work.told, "copy")
            return
        self._seen.add(key)
        record = folder.records.get(key)
        if record is None:
            assert made is not None
            record = self._write(folder, key, work, made)
        if record["reason"]:
            self._skips.count(f"{work.told} ({record['detail']})", record["reason"])
        else:
            self._records.append(record)

    def _write(self, folder: OutputFolder, key: str, work: _Work, made: _Made) -> Record:
        record: Record = {"key": key, "tune": work.told, "files": [], "music": made.music, "bytes": [0, 0]}
        record |= {"side": "", "complaint": made.complaint, "reason": "", "detail": ""}
        contents = []
        if made.error is not None:
            record |= {"reason": made.error.reason, "detail": made.error.detail}
        elif made.music in self._music:
            record |= {"reason": "sounds as an earlier tune", "detail": f"of {self._music[made.music]}"}
        else:
            self._music[made.music] = work.told
            title = title_key(work.tune.title)
            side = "test" if is_in_split((title or made.music).encode(), "eval", self._test_share) else "train"
            name = clean(title.replace(" ", "-").replace("_", "-") or "tune", 64)
            stem = f"{side}/{name}-{key[:12]}"
            contents = [(f"{stem}.abc", work.abc), (f"{stem}.mid", made.midi)]
            record |= {"side": side, "files": [name for name, _ in contents]}
            record["bytes"] = [len(work.abc), len(made.midi)]
        folder.add(record, contents)
        return record

    def report(self, collections: int, tunes: int) -> MusicReport:
        pairs = Counter(record["side"] for record in self._records)
        count = max(len(self._records), 1)
        abc, midi = (sum(record["bytes"][which] for record in self._records) for which in (0, 1))
        return MusicReport(
            collections=collections,
            tunes=tunes,
            pairs={side: pairs[side] for side in ("train", "test")},
            complaints=sum(bool(record["complaint"]) for record in self._records),
            mean_abc_bytes=abc / count,
            mean_midi_bytes=midi / count,
            in_context=sum(_patches(*record["bytes"]) <= BGPTConfig().patch_length for record in self._records) / count,
            skipped=dict(sorted(self._skips.by_reason.items())),
            first_skipped=self._skips.examples,
        )


def _patches(abc: int, midi: int) -> int:
    """Patches of a pair: an extension patch for each side, and one end of file."""
    S = BGPTConfig().patch_size
    return 3 - -abc // S - -midi // S


def _is_collection(file: FileEntry, skips: SkipReport) -> bool:
    if extension_of(file.path).lower() == "abc":
        return True
    skips.add(file.path, "no .abc file")
    return False


def _tunes(files: list[FileEntry], fields: Fields, skips: SkipReport) -> Iterator[_Work]:
    for file in files:
        if file.size > _MOST_BYTES:
            skips.add(file.path, "too large")
            continue
        try:
            with open(file.path, "rb") as stream:
                tunes = split_collection(stream.read())
        except MediaError as error:
            skips.add(file.path, error.reason)
            continue
        except OSError:
            skips.add(file.path, "unreadable")
            continue
        for tune in tunes:
            work = _Work(file.path, tune, tidy(tune, fields))
            if has_music(tune):
                yield work
            else:
                skips.count(work.told, "empty tune")


def _convert(abc: bytes, program: str, strict: bool) -> _Made:
    try:
        midi, complaint = abc_to_midi(abc, program)
        if strict and complaint:
            raise MediaError("abc2midi reports an error", complaint)
        notes = read_notes(midi)
        if not notes:
            raise MediaError("tune without a note")
        return _Made(midi, digest_of(repr(notes).encode()), complaint, None)
    except MediaError as error:
        return _Made(b"", "", "", error)
