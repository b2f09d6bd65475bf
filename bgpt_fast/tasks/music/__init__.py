"""ABC notation and MIDI: collections as pairs to train on, and files as notes."""

from bgpt_fast.tasks.music.abc2midi import abc_to_midi, find_abc2midi
from bgpt_fast.tasks.music.collections import irish_collections, split_collection, tidy
from bgpt_fast.tasks.music.midi import Note, read_notes
from bgpt_fast.tasks.music.pairs import MusicReport, make_pairs

__all__ = [
    "MusicReport",
    "Note",
    "abc_to_midi",
    "find_abc2midi",
    "irish_collections",
    "make_pairs",
    "read_notes",
    "split_collection",
    "tidy",
]
