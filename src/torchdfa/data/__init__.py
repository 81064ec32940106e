"""Image data sets: loading, choosing from, measuring and batching them; and texts for language models."""

from torchdfa.data.batches import Batches
from torchdfa.data.datasets import load, names
from torchdfa.data.errors import DataError
from torchdfa.data.images import Dataset, ImageSet, split, statistics, subset
from torchdfa.data.text import Corpus, Segments, load_text

__all__ = [
    "Batches",
    "Corpus",
    "DataError",
    "Dataset",
    "ImageSet",
    "Segments",
    "load",
    "load_text",
    "names",
    "split",
    "statistics",
    "subset",
]
