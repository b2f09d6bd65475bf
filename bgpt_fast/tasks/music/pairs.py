"""ABC collections as a data set of pairs: NAME.abc and NAME.mid, train and test, with no leakage between them."""

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
from bgpt_fast.files import FileContentError, read_file, write_json
from bgpt_fast.journal import Record, content_digest
from bgpt_fast.tasks.media.errors import MediaError
from bgpt_fast.tasks.media.names import clean
from bgpt_fast.tasks.media.output import OutputFolder, find_outside
from bgpt_fast.tasks.music.abc2midi import abc_to_midi, find_abc2midi
from bgpt_fast.tasks.music.collections import Fields, Tune, has_music, split_collection, tidy, title_key
from bgpt_fast.tasks.music.midi import read_notes

_TUNES_AHEAD = 256
_MOST_BYTES = 1 << 28
_FIELDS = {"tune": str, "music": str, "bytes": list, "side": str, "complaint": str}
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class MusicReport:
    """Counts of a data set of pairs.

    Args:
        collections: number of ABC files.
        tunes: number of tunes with notes in them.
        pairs: number of pairs by split.
        complaints: number of pairs for which abc2midi wrote a MIDI file and reported an error.
        mean_abc_bytes, mean_midi_bytes: mean file sizes in the pairs.
        in_context: share of the pairs that fit into the paper's 512 patches of 16 bytes.
        skipped: number of skipped files and tunes, by reason.
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


class _Source(NamedTuple):
    """A tune, the path of its collection, and its ABC file in the data set."""

    path: str
    tune: Tune
    abc: bytes

    @property
    def description(self) -> str:
        return f"{self.path}, X:{self.tune.number} {self.tune.title}"


class _Converted(NamedTuple):
    """The conversion of an ABC file: MIDI, a digest of its notes, abc2midi's complaint, or the error."""

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
    """Writes OUTPUT/train and OUTPUT/test from ABC collections, for training on "abc&mid", and OUTPUT/report.json.

    Each tune becomes an ABC file and a MIDI file, by abc2midi, whose notes are read. All settings of a title are in the
    same split, and a tune with the same notes as an earlier one is skipped. Unusable tunes are skipped and counted.
    A repeated run resumes an interrupted one.

    Args:
        inputs: .abc files, and folders of them.
        output: a new or empty folder, or that of an earlier run with the same options.
        test_share: share of the titles in the test set.
        fields: "musical" removes titles, sources, lyrics and comments, as IrishMAN does; "all" keeps them.
        strict: skip tunes for which abc2midi reports an error, even if it writes a MIDI file.
        workers: number of abc2midi processes; 0 means one per core.
        progress: called with (tunes done, all tunes).

    Raises:
        DataError: no such path, or no ABC file.
        OSError: abc2midi is missing.
        FileExistsError: the output folder has other contents, or has other options.
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
    data_set = _DataSet(test_share, skips)
    with (
        OutputFolder(Path(output), "music", options, _FIELDS) as folder,
        ThreadPoolExecutor(workers or len(os.sched_getaffinity(0))) as threads,
    ):
        data_set.resume(folder)
        for start in range(0, len(tunes), _TUNES_AHEAD):
            chunk = tunes[start : start + _TUNES_AHEAD]
            fresh = {source.abc for source in chunk if content_digest(source.abc) not in folder.records}
            results = dict(zip(fresh, threads.map(lambda abc: _convert(abc, program, strict), fresh), strict=True))
            for number, source in enumerate(chunk, start + 1):
                data_set.add(folder, source, results.get(source.abc))
                if progress is not None:
                    progress(number, len(tunes))
        folder.save()
        report = data_set.report(len(files), len(tunes))
        write_json(Path(output) / "report.json", {"options": options, **report.to_dict()})
    return report


class _DataSet:
    """The tunes processed so far."""

    def __init__(self, test_share: float, skips: SkipReport) -> None:
        self._test_share = test_share
        self._skips = skips
        self._music: dict[str, str] = {}
        self._keys: set[str] = set()
        self._records: list[Record] = []

    def resume(self, folder: OutputFolder) -> None:
        earlier = (*folder.records.values(), *folder.incomplete.values())
        self._music = {record["music"]: record["tune"] for record in earlier if record["files"]}

    def add(self, folder: OutputFolder, source: _Source, result: _Converted | None) -> None:
        key = content_digest(source.abc)
        if key in self._keys:
            self._skips.count(source.description, "copy")
            return
        self._keys.add(key)
        record = folder.records.get(key)
        if record is None:
            assert result is not None
            record = self._write(folder, key, source, result)
        if record["reason"]:
            self._skips.count(f"{source.description} ({record['detail']})", record["reason"])
        else:
            self._records.append(record)

    def _write(self, folder: OutputFolder, key: str, source: _Source, result: _Converted) -> Record:
        record: Record = {"key": key, "tune": source.description, "files": {}, "music": result.music, "bytes": [0, 0]}
        record |= {"side": "", "complaint": result.complaint, "reason": "", "detail": ""}
        contents = []
        if key in folder.incomplete:
            self._music.pop(folder.incomplete[key]["music"], None)
        if result.error is not None:
            record |= {"reason": result.error.reason, "detail": result.error.detail}
        elif result.music in self._music:
            record |= {"reason": "sounds as an earlier tune", "detail": f"of {self._music[result.music]}"}
        else:
            self._music[result.music] = source.description
            title = title_key(source.tune.title)
            side = "test" if is_in_split((title or result.music).encode(), "eval", self._test_share) else "train"
            name = clean(title.replace(" ", "-").replace("_", "-") or "tune", 64)
            stem = f"{side}/{name}-{key[:12]}"
            contents = [(f"{stem}.abc", source.abc), (f"{stem}.mid", result.midi)]
            record |= {"side": side, "files": {name: content_digest(content) for name, content in contents}}
            record["bytes"] = [len(source.abc), len(result.midi)]
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
    """Returns the patches of a pair: its data, two extension patches and one end-of-file patch."""
    S = BGPTConfig().patch_size
    return 3 - -abc // S - -midi // S


def _is_collection(file: FileEntry, skips: SkipReport) -> bool:
    if extension_of(file.path).lower() == "abc":
        return True
    skips.add(file.path, "no .abc file")
    return False


def _tunes(files: list[FileEntry], fields: Fields, skips: SkipReport) -> Iterator[_Source]:
    for file in files:
        try:
            tunes = split_collection(read_file(file.path, _MOST_BYTES))
        except MediaError as error:
            skips.add(file.path, error.reason)
            continue
        except FileContentError:
            skips.add(file.path, "too large")
            continue
        except OSError:
            skips.add(file.path, "unreadable")
            continue
        for tune in tunes:
            try:
                source = _Source(file.path, tune, tidy(tune, fields))
            except MediaError as error:
                skips.count(_Source(file.path, tune, b"").description, error.reason)
                continue
            if has_music(tune):
                yield source
            else:
                skips.count(source.description, "empty tune")


def _convert(abc: bytes, program: str, strict: bool) -> _Converted:
    try:
        midi, complaint = abc_to_midi(abc, program)
        if strict and complaint:
            raise MediaError("abc2midi reports an error", complaint)
        notes = read_notes(midi)
        if not notes:
            raise MediaError("tune without a note")
        return _Converted(midi, content_digest(repr(notes).encode()), complaint, None)
    except MediaError as error:
        return _Converted(b"", "", "", error)
