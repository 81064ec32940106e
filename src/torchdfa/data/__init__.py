"""Image data sets: loading, choosing from, measuring and batching them; and texts for language models."""

from torchdfa.data.batches import Batches
from torchdfa.data.datasets import load, load_any, names
from torchdfa.data.errors import DataError
from torchdfa.data.images import Dataset, ImageSet, split, statistics, subset
from torchdfa.data.text import TEXTS, Corpus, Segments, TextBatches, load_text

__all__ = [
    "TEXTS",
    "Batches",
    "Corpus",
    "DataError",
    "Dataset",
    "ImageSet",
    "Segments",
    "TextBatches",
    "load",
    "load_any",
    "load_text",
    "names",
    "split",
    "statistics",
    "subset",
]
