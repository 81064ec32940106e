"""Image data sets: loading, choosing from, measuring and batching them."""

from torchdfa.data.batches import Batches
from torchdfa.data.datasets import load, names
from torchdfa.data.errors import DataError
from torchdfa.data.images import Dataset, ImageSet, split, statistics, subset

__all__ = ["Batches", "DataError", "Dataset", "ImageSet", "load", "names", "split", "statistics", "subset"]
