"""Sources of training batches."""

from bgpt_fast.data.files import FileSource
from bgpt_fast.data.source import DataError, Source

__all__ = ["DataError", "FileSource", "Source"]
