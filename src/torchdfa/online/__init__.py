"""A head of fully connected layers that learns sample by sample, without storing gradients."""

from torchdfa.online.head import NonFiniteLossError, OnlineHead

__all__ = ["NonFiniteLossError", "OnlineHead"]
