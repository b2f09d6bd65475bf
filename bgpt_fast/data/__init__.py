"""Sources of training batches."""

from bgpt_fast.data.arrow import ArrowSource
from bgpt_fast.data.files import FileSource
from bgpt_fast.data.labelled import LabelledBatch, LabelledSource, label_of
from bgpt_fast.data.mixed import MixedSource
from bgpt_fast.data.packing import best_fit
from bgpt_fast.data.pairs import PairSource
from bgpt_fast.data.prefetch import Prefetcher, WorkerError
from bgpt_fast.data.source import BatchSource, DataError, Source

__all__ = [
    "ArrowSource",
    "BatchSource",
    "DataError",
    "FileSource",
    "LabelledBatch",
    "LabelledSource",
    "MixedSource",
    "PairSource",
    "Prefetcher",
    "Source",
    "WorkerError",
    "best_fit",
    "label_of",
]
