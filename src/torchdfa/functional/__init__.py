"""The mechanism: one autograd node, and its slow twin."""

from torchdfa.functional.broadcast import broadcast
from torchdfa.functional.reference import reference_broadcast

__all__ = ["broadcast", "reference_broadcast"]
