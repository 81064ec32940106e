"""What carries an error backward."""

from torchdfa.feedback.base import Feedback
from torchdfa.feedback.binary import BinaryFeedback, PackedFeedback, SeededFeedback
from torchdfa.feedback.conv import BinaryConvFeedback, ConvFeedback, Geometry
from torchdfa.feedback.dense import DenseFeedback
from torchdfa.feedback.learned import KolenPollackConvFeedback, KolenPollackFeedback
from torchdfa.feedback.signs import SignConvFeedback, SignFeedback
from torchdfa.feedback.sparse import BinarySparseFeedback, SparseFeedback
from torchdfa.feedback.target import TargetFeedback

__all__ = [
    "BinaryConvFeedback",
    "BinaryFeedback",
    "BinarySparseFeedback",
    "ConvFeedback",
    "DenseFeedback",
    "Feedback",
    "Geometry",
    "KolenPollackConvFeedback",
    "KolenPollackFeedback",
    "PackedFeedback",
    "SeededFeedback",
    "SignConvFeedback",
    "SignFeedback",
    "SparseFeedback",
    "TargetFeedback",
]
