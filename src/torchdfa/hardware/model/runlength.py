"""Run-length coding of feature maps: only what is not zero is kept, with the number of zeros before it.

A code is a run of ``RUN_BITS`` bits and a value. It stands for that many zeros and then the value. A run that is full
and still goes on, and one that the tensor ends with, closes with a zero as its value; so codes need no end mark.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from torchdfa.hardware.model.fixed import Integers

RUN_BITS = 5


@dataclass(frozen=True)
class Codes:
    """A coded tensor.

    Attributes:
        runs: Zeros before each value.
        values: The values.
        shape: Of the tensor.
        run_bits: Bits of a run.
    """

    runs: Integers
    values: Integers
    shape: tuple[int, ...]
    run_bits: int = RUN_BITS

    def bits(self, width: int = 16) -> int:
        """Return the bits that the codes take, for values of ``width`` bits."""
        return len(self.runs) * (self.run_bits + width)

    def ratio(self, width: int = 16) -> float:
        """Return coded over plain size."""
        plain = int(np.prod(self.shape)) * width
        return self.bits(width) / plain if plain else 1.0


def encode(tensor: Integers, run_bits: int = RUN_BITS) -> Codes:
    """Code a tensor of any shape, its elements in C order."""
    flat = np.asarray(tensor, np.int64).ravel()
    places = np.arange(len(flat))
    # Zeros since the last value that is not zero, this one included.
    last = np.maximum.accumulate(np.where(flat != 0, places, -1)) if len(flat) else places
    zeros = places - last
    ends = (flat != 0) | (zeros % 2**run_bits == 0)
    ends[-1:] = True
    at = places[ends]
    runs = np.diff(at, prepend=-1) - 1
    return Codes(runs, flat[at], np.shape(tensor), run_bits)


def decode(codes: Codes) -> Integers:
    """Return the tensor.

    Raises:
        ValueError: The codes hold more or fewer elements than the shape, or a run is longer than its bits can say.
    """
    runs, values = np.asarray(codes.runs, np.int64), np.asarray(codes.values, np.int64)
    longest = 2**codes.run_bits - 1
    if runs.ndim != 1 or runs.shape != values.shape:
        raise ValueError(f"decode: {runs.shape} runs and {values.shape} values, expected as many of each, in a row.")
    if not 1 <= codes.run_bits <= 16 or (len(runs) and not 0 <= runs.min() <= runs.max() <= longest):
        raise ValueError(f"decode: found a run outside of 0..{longest}, which {codes.run_bits} bits (1 to 16) hold.")
    if any(side < 0 for side in codes.shape):
        raise ValueError(f"decode: the shape {codes.shape} has a negative side.")
    at = np.cumsum(runs + 1) - 1
    size = math.prod(int(side) for side in codes.shape)
    found = int(at[-1]) + 1 if len(at) else 0
    if found != size:
        raise ValueError(f"decode: the codes hold {found} elements, the shape {codes.shape} has {size}.")
    flat = np.zeros(size, np.int64)
    flat[at] = values
    return flat.reshape(codes.shape)
