"""What carries an error backward."""

from torchdfa.feedback.base import Feedback
from torchdfa.feedback.binary import BinaryFeedback, PackedFeedback, SeededFeedback
from torchdfa.feedback.conv import ConvFeedback
from torchdfa.feedback.dense import DenseFeedback

__all__ = ["BinaryFeedback", "ConvFeedback", "DenseFeedback", "Feedback", "PackedFeedback", "SeededFeedback"]
