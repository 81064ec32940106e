"""A head of fully connected layers that learns sample by sample, without storing gradients."""

from torchdfa.online.head import OnlineHead
from torchdfa.online.loss import NonFiniteLossError

__all__ = ["NonFiniteLossError", "OnlineHead"]
