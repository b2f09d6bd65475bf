"""Labelled text, images and audio from installed packages, and spectrograms of the audio.

The files are read from their packages, standardised as by `bgpt-fast data media`, and split by content (icons and
prompts by name). Nothing is downloaded, and the repository has no copy.

text: Debian's fortunes, by topic. image: scikit-learn's digits, by digit, and Tango's icons, for pre-training only.
audio: Asterisk's prompts, the same sentences in several languages, by language, which is also the speaker.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bgpt_fast.data import label_of
from bgpt_fast.tasks.media import MediaOptions, Plan, standardise

FORTUNES = Path("/usr/share/games/fortunes")
TOPICS = ("computers", "definitions", "people", "politics", "songs-poems", "zippy")
ICONS = Path("/usr/share/icons/Tango")
SOUNDS = Path("/usr/share/asterisk/sounds")
LANGUAGES = ("en", "es", "fr", "it", "ru")
MODALITIES = ("text", "image", "audio")
TASKS = (*MODALITIES, "spectrogram")
TEST_SHARE = 0.2
PACKAGES = {"text": ["sklearn"], "image": ["sklearn", "PIL"], "audio": ["sklearn", "PIL", "soundfile", "soxr"]}
"""Packages that a modality needs for its data and its baselines."""


class MissingDataError(RuntimeError):
    """A package with data is not installed; the message names it."""


@dataclass(frozen=True)
class Sizes:
    """Sizes and numbers of files.

    Args:
        image_side: pixels of an image's side.
        sample_rate: sampling rate of audio, in samples per second.
        clip_seconds: length of a clip.
        recordings: prompts of each language, spread over the alphabet; 0 means all.
        digits: images of digits; 0 means all 1,797.
        labelled: labelled training documents of each class of text, image, audio and spectrogram; 0 means all.
        held_out: test documents of each class; 0 means all.
        scored: files of each modality for bits per byte; 0 means all.
    """

    image_side: int = 16
    sample_rate: int = 4000
    clip_seconds: float = 0.5
    recordings: int = 120
    digits: int = 0
    labelled: tuple[int, int, int, int] = (150, 50, 100, 100)
    held_out: int = 100
    scored: int = 150


FULL = Sizes(
    image_side=32, sample_rate=8000, clip_seconds=1.0, recordings=0, labelled=(0, 0, 0, 0), held_out=0, scored=0
)
"""All files, in the paper's sizes."""


@dataclass(frozen=True)
class Labelled:
    """A classification task: indices of its classes, and paths of training and test files."""

    labels: dict[str, int]
    train: list[str]
    test: list[str]


@dataclass(frozen=True)
class Media:
    """The data: folders for pre-training, files for bits per byte, classification tasks, and counts."""

    pre_training: dict[str, Path]
    scored: dict[str, list[str]]
    tasks: dict[str, Labelled]
    described: dict[str, dict[str, int]]


def prepare(modalities: tuple[str, ...], sizes: Sizes, folder: Path) -> Media:
    """Makes standard files of the modalities, or uses those of an earlier run in `folder`.

    Raises:
        MissingDataError: names the missing package.
    """
    media = Media({}, {}, {}, {})
    for modality in modalities:
        missing = [name for name in PACKAGES[modality] if importlib.util.find_spec(name) is None]
        if missing:
            extras = "image,audio,baselines" if modality == "audio" else "image,baselines"
            raise MissingDataError(f"{modality}: no {', '.join(missing)}: pip install '.[{extras}]' in the repository")
    for modality in modalities:
        gather: Callable[[Sizes, Path], tuple[list[Path], str]] = {
            "text": _text,
            "image": _images,
            "audio": _audio,
        }[modality]
        inputs, group = gather(sizes, folder / "sources" / modality)
        output = folder / modality
        options = MediaOptions(
            kinds=(modality,),  # type: ignore[arg-type]
            image_size=(sizes.image_side, sizes.image_side),
            audio="both",
            sample_rate=sizes.sample_rate,
            clip_seconds=sizes.clip_seconds,
            text_separator="\\n%\\n",
        )
        report = standardise(inputs, output, options, Plan("folder", TEST_SHARE, group), workers=1)
        media.described[modality] = {"sources": report.sources, **report.files, **report.skipped}
        media.pre_training[modality] = output / "train" / modality
        media.scored[modality] = chosen(files_of(output / "test" / modality), sizes.scored)
        media.tasks[modality] = _task(modality, modality, output, sizes)
        if modality == "audio":
            media.tasks["spectrogram"] = _task("spectrogram", "image", output, sizes)
    return media


def files_of(folder: Path) -> list[str]:
    """All files of a folder, by name."""
    return sorted(str(path) for path in folder.iterdir())


def chosen(paths: list[str], count: int) -> list[str]:
    """`count` of the files, chosen by a hash of their names; 0 means all."""
    ranked = sorted(paths, key=lambda path: hashlib.blake2b(os.path.basename(path).encode()).digest())
    return sorted(ranked[: count or len(ranked)])


def _task(task: str, kind: str, output: Path, sizes: Sizes) -> Labelled:
    names = {
        "text": [f"{topic}.txt" for topic in TOPICS],
        "image": [f"{digit}.bmp" for digit in range(10)],
        "audio": [f"{language}.wav" for language in LANGUAGES],
        "spectrogram": [f"{language}.bmp" for language in LANGUAGES],
    }[task]
    limits = {"train": sizes.labelled[TASKS.index(task)], "test": sizes.held_out}
    by_side: dict[str, list[str]] = {}
    for side, limit in limits.items():
        files = files_of(output / side / kind)
        of_class = {name: [path for path in files if label_of(path) == name] for name in names}
        by_side[side] = [path for paths in of_class.values() for path in chosen(paths, limit)]
        names = [name for name, paths in of_class.items() if paths]
    return Labelled({name: index for index, name in enumerate(names)}, by_side["train"], by_side["test"])


def _text(sizes: Sizes, sources: Path) -> tuple[list[Path], str]:
    files = [] if not FORTUNES.is_dir() else [path for path in sorted(FORTUNES.iterdir()) if not path.suffix]
    if not {path.name for path in files} >= set(TOPICS):
        raise MissingDataError(f"text: expected fortunes in {FORTUNES}: apt-get install fortunes")
    for path in files:
        _link(path, sources / path.name / f"{path.name}.txt")
    return [sources], ""


def _images(sizes: Sizes, sources: Path) -> tuple[list[Path], str]:
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for number in range(sizes.digits or len(digits.target)):
        path = sources / str(digits.target[number]) / f"digit{number:04}.png"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            # 17 grey levels, black on white, as ink on paper.
            Image.fromarray((255 - digits.images[number] * 255 / 16).round().astype("uint8")).save(path)
    icons = [ICONS] if ICONS.is_dir() and not sizes.digits else []
    if not icons and not sizes.digits:
        print(f"image: digits alone, no icons in {ICONS}: apt-get install tango-icon-theme", file=sys.stderr)
    # An icon has the same name in all its sizes.
    return [sources, *icons], r"([^/]+)\.(?:png|svg|icon)$"


def _audio(sizes: Sizes, sources: Path) -> tuple[list[Path], str]:
    files: dict[str, dict[Path, Path]] = {}
    for language in LANGUAGES:
        for voice in sorted(SOUNDS.glob(f"{language}_*")):
            paths = {path.relative_to(voice): path for path in voice.rglob("*.wav") if path.parent.name != "silence"}
            if paths:
                files.setdefault(language, paths)
    if len(files) < 2:
        packages = " ".join(f"asterisk-core-sounds-{language}-wav" for language in LANGUAGES)
        raise MissingDataError(f"audio: expected prompts of two languages in {SOUNDS}: apt-get install {packages}")
    in_all = sorted(set.intersection(*(set(paths) for paths in files.values())))
    step = max(1, len(in_all) // sizes.recordings) if sizes.recordings else 1
    for language, paths in files.items():
        for prompt in in_all[::step][: sizes.recordings or None]:
            _link(paths[prompt], sources / language / "-".join(prompt.parts))
    # A prompt has the same name in all languages.
    return [sources], r"([^/]+)\.wav$"


def _link(target: Path, link: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink():
        link.symlink_to(target)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="modalities-") as temporary:
        print(prepare(MODALITIES, Sizes(), Path(temporary)).described)
