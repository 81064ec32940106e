"""SGD on the layers of a head, which never stores a gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import SupportsFloat

import numpy as np
import torch
from torch import Tensor

from torchdfa.online.layers import Layer
from torchdfa.online.loss import NonFiniteLossError
from torchdfa.ops import sgd_update
from torchdfa.settings import wrong


class LayerSGD:
    """The optimizer of a head: its settings, which may be set between steps, its momentum, its update.

    ``V = μV + λW + Δᵀ X; W = W - ηV``: what ``torch.optim.SGD`` does, from a layer's error Δ and input X.

    Args:
        layers: Of the head, the first first.
        lr: Learning rate; one for all Linear layers, or one each.
        momentum: μ. 0 keeps none in memory.
        momentum_dtype: Type of the weights' momentum; None: the weights' own.
        weight_decay: λ, on all parameters.
        clip: Largest norm of the whole gradient; None: no limit.

    Raises:
        ValueError: A setting is out of range.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        *,
        lr: float | Sequence[float] | np.ndarray | Tensor,
        momentum: float,
        momentum_dtype: torch.dtype | None,
        weight_decay: float,
        clip: float | None,
    ):
        self._layers = layers
        kept = (None, self._weight.dtype, torch.bfloat16)
        if momentum_dtype not in kept:
            raise wrong(self, "momentum_dtype", momentum_dtype, f"one of {kept}")
        self.momentum_dtype = momentum_dtype
        self.momentum, self.weight_decay, self.clip, self.lr = momentum, weight_decay, clip, lr
        self._velocity: dict[str, Tensor] = {}

    @property
    def _weight(self) -> Tensor:
        return self._layers[0].linear.weight

    @property
    def lr(self) -> tuple[float, ...]:
        """Learning rate of each Linear layer. May be set to one number, or to one a layer."""
        return self._lr

    @lr.setter
    def lr(self, value: float | Sequence[float] | np.ndarray | Tensor) -> None:
        plain = value.tolist() if isinstance(value, (np.ndarray, Tensor)) else value
        rates = tuple(plain) if isinstance(plain, Sequence) else (plain,) * len(self._layers)
        right = len(rates) == len(self._layers) and all(
            isinstance(r, SupportsFloat) and 0 <= float(r) < math.inf for r in rates
        )
        if not right:
            what = f"a number of 0 or more, or {len(self._layers)} of them, one a Linear layer"
            raise wrong(self, "lr", value, what)
        self._lr = tuple(float(rate) for rate in rates)

    @property
    def momentum(self) -> float:
        """Of SGD, from 0 to below 1. May be set."""
        return self._momentum

    @momentum.setter
    def momentum(self, value: float) -> None:
        if not 0 <= value < 1:
            raise wrong(self, "momentum", value, "from 0 to below 1")
        self._momentum = float(value)

    @property
    def weight_decay(self) -> float:
        """L2 penalty on all parameters, 0 or more. May be set."""
        return self._weight_decay

    @weight_decay.setter
    def weight_decay(self, value: float) -> None:
        if not 0 <= value < math.inf:
            raise wrong(self, "weight_decay", value, "0 or more")
        self._weight_decay = float(value)

    @property
    def clip(self) -> float | None:
        """Largest norm of the whole gradient, above 0; None: no limit. May be set."""
        return self._clip

    @clip.setter
    def clip(self, value: float | None) -> None:
        if not (value is None or value > 0):
            raise wrong(self, "clip", value, "a positive number or None")
        self._clip = None if value is None else float(value)

    def _momentum_bytes(self) -> int:
        """Return the momentum's bytes, before the first step too."""
        coming = [
            p.numel() * self._velocity_dtype(p).itemsize
            for layer in self._layers
            for name, p in layer.linear.named_parameters(recurse=False)
            if self.momentum and p.requires_grad and f"{layer.name}.{name}" not in self._velocity
        ]
        return sum(v.numel() * v.element_size() for v in self._velocity.values()) + sum(coming)

    def reset_momentum(self) -> None:
        """Forget the momentum, as where a new task begins."""
        self._velocity.clear()

    def _shorten(self, errors: list[Tensor], inputs: list[Tensor], first: int) -> None:
        assert self.clip is not None
        learning = self._layers[first:]
        norm = gradient_norm(
            errors,
            inputs[first:],
            [layer.linear.weight.requires_grad for layer in learning],
            [layer.linear.bias is not None and layer.linear.bias.requires_grad for layer in learning],
        ).item()
        if not math.isfinite(norm):
            raise NonFiniteLossError(
                f"step: the gradient's norm is {norm}, which clip can't shorten, so nothing was updated. An error that "
                f"was sent back exceeds {self._weight.dtype}: a smaller scale of the feedback, or a wider dtype."
            )
        if norm > self.clip:
            for error in errors:
                error.mul_(self.clip / (norm + 1e-6))  # as torch.nn.utils.clip_grad_norm_

    def _update(self, i: int, error: Tensor, x: Tensor) -> None:
        layer, settings = self._layers[i], {"lr": self._lr[i], "momentum": self.momentum, "decay": self.weight_decay}
        weight, bias = layer.linear.weight, layer.linear.bias
        if weight.requires_grad:
            sgd_update(weight, self._velocity_of(f"{layer.name}.weight", weight), error, x, **settings)
        if bias is not None and bias.requires_grad:
            update_bias(bias, self._velocity_of(f"{layer.name}.bias", bias), error, **settings)

    def _velocity_of(self, name: str, parameter: Tensor) -> Tensor | None:
        if not self.momentum:
            return None
        if name not in self._velocity:
            self._velocity[name] = torch.zeros_like(parameter, dtype=self._velocity_dtype(parameter))
        velocity, expected = self._velocity[name], self._velocity_dtype(parameter)
        if (velocity.dtype, velocity.device) != (expected, parameter.device):
            raise ValueError(
                f"step: the momentum of {name!r} is {velocity.dtype} on {velocity.device}, expected {expected} on "
                f"{parameter.device}: the network was changed after a step. Call reset_momentum() first."
            )
        return velocity

    def _velocity_dtype(self, parameter: Tensor) -> torch.dtype:
        """Return the type of a parameter's momentum. Biases are few, and keep their own."""
        # As long as the weights' own, it is the type that they have now.
        short = self.momentum_dtype is torch.bfloat16 and parameter.ndim > 1
        return torch.bfloat16 if short else parameter.dtype


def update_bias(
    bias: Tensor, velocity: Tensor | None, error: Tensor, *, lr: float, momentum: float, decay: float
) -> None:
    """Take a step of SGD in place on a bias, shape (O,); its gradient is the sum of the error (N, O) over the batch."""
    gradient = error.sum(0)
    if decay:
        gradient.add_(bias, alpha=decay)
    if velocity is not None:
        gradient = velocity.mul_(momentum).add_(gradient)
    bias.sub_(gradient, alpha=lr)


def gradient_norm(errors: list[Tensor], inputs: list[Tensor], weights: list[bool], biases: list[bool]) -> Tensor:
    """Return the norm of the whole gradient from the errors and inputs of the layers, without making it.

    ``‖Δᵀ X‖² = Σ_{n,m} (Δ Δᵀ)_{nm} (X Xᵀ)_{nm}``: two N × N matrices a layer. They are made of rows over their largest
    entries, in float32 at least, so that no square overflows or vanishes.

    Args:
        errors: Δ of each layer, shape (N, O).
        inputs: X of each layer, shape (N, I).
        weights: Whether each layer's weight learns, and so counts.
        biases: Whether each layer's bias does.
    """
    total = errors[0].new_zeros((), dtype=torch.float64)
    for delta, x, weight, bias in zip(errors, inputs, weights, biases, strict=True):
        if weight:
            (first, large), (second, larger) = _gram(delta), _gram(x)
            scale = large * larger
            total += scale @ (first * second).double() @ scale
        if bias:
            total += delta.sum(0, dtype=torch.float64).square().sum()
    return total.clamp_(min=0).sqrt()


def _gram(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the products (N, N) of rows (N, D), each over its largest entry; and those entries (N,), float64."""
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    largest = torch.linalg.vector_norm(rows, torch.inf, dim=1, keepdim=True).clamp_(min=torch.finfo(rows.dtype).tiny)
    rows = rows / largest
    return rows @ rows.t(), largest[:, 0].double()
