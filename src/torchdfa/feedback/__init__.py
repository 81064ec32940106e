"""What carries an error backward."""

from torchdfa.feedback.base import Feedback
from torchdfa.feedback.binary import BinaryFeedback, PackedFeedback, SeededFeedback
from torchdfa.feedback.conv import BinaryConvFeedback, ConvFeedback, Geometry
from torchdfa.feedback.dense import DenseFeedback
from torchdfa.feedback.sparse import BinarySparseFeedback, SparseFeedback

__all__ = [
    "BinaryConvFeedback",
    "BinaryFeedback",
    "BinarySparseFeedback",
    "ConvFeedback",
    "DenseFeedback",
    "Feedback",
    "Geometry",
    "PackedFeedback",
    "SeededFeedback",
    "SparseFeedback",
]
