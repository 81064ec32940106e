"""A whole training step of a fully connected head in integers, as the chip does it; and its twin in floating point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from torchdfa.feedback import lfsr
from torchdfa.feedback.bits import key_of
from torchdfa.hardware.model.depc import direct_errors
from torchdfa.hardware.model.fixed import Fixed, Format, Integers, product, quantize, requantize, rescale, shift_round
from torchdfa.hardware.model.momentum import DECAY_BITS, NEAREST, RATE_BITS, WIDTH, momentum
from torchdfa.hardware.model.softmax import softmax_error
from torchdfa.settings import demand, one_of, positive, share, whole

Floats = NDArray[np.float64]
Method = Literal["BP", "BDFA"]
Rounding = Literal["nearest", "stochastic"]


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """How a head learns.

    Args:
        method: ``"BP"``: errors by the transposed weights. ``"BDFA"``: by signs that the generator makes.
        activations: Format of activations and errors.
        guard: Bits that a stored weight has beyond the 16 which the arrays read, 0 to 16.
        rounding: Of the weights' updates: ``"nearest"``, or ``"stochastic"`` with bits from the generator.
        lr: Learning rate, above 0.
        momentum: μ, 0 to below 1.
        seed: Of the feedback.
        terms: Of the error propagation core, at least 1.

    Raises:
        ValueError: The method or the rounding is unknown, or a number is out of range.
    """

    method: Method = "BDFA"
    activations: Format = field(default_factory=Format)
    guard: int = 0
    rounding: Rounding = "nearest"
    lr: float = 0.05
    momentum: float = 0.9
    seed: int = 0
    terms: int = 16

    def __post_init__(self) -> None:
        demand(
            self,
            method=one_of(self.method, get_args(Method)),
            rounding=one_of(self.rounding, get_args(Rounding)),
            guard=(0 <= self.guard <= 16, "0 to 16 bits"),
            lr=positive(self.lr),
            momentum=share(self.momentum),
            terms=whole(self.terms),
        )


def feedback_signs(seed: int, name: str, errors: int, features: int, leap: int = lfsr.LEAP) -> NDArray[np.bool_]:
    """Return where the chip's feedback of a layer is +1, (K, H): that of ``BDFA(generator="lfsr", seed=seed)``."""
    key = torch.tensor(key_of(seed, name))
    return lfsr.signs(lfsr.seed_of(key), errors, features, leap).numpy()


class FloatHead:
    """The same head in float64, ReLU between its layers: what integers are held against.

    Args:
        layers: Weights (out, in) and biases (out,), lowest layer first.
        config: How it learns.
    """

    def __init__(self, layers: Sequence[tuple[Any, Any]], config: HeadConfig):
        self.config = config
        self.weights = [np.concatenate([w, b[:, None]], 1).astype(np.float64) for w, b in layers]
        self.velocities = [np.zeros_like(w) for w in self.weights]
        self.signs, self.scales = _feedback(self.weights, config)

    def forward(self, x: Floats) -> list[Floats]:
        """Return the layers' inputs, (N, in + 1) with a one at the end for the bias, and the logits."""
        found = [_with_one(x)]
        for weight in self.weights[:-1]:
            found.append(_with_one(np.maximum(found[-1] @ weight.T, 0)))
        return [*found, found[-1] @ self.weights[-1].T]

    def step(self, x: Floats, labels: Integers) -> None:
        """Train on one batch."""
        *inputs, logits = self.forward(x)
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        p[np.arange(len(p)), labels] -= 1
        output = error = p / len(p)
        for i in range(len(self.weights) - 1, -1, -1):
            gradient = error.T @ inputs[i]
            if i:
                if self.config.method == "BP":
                    error = error @ self.weights[i][:, :-1]
                else:
                    error = self.scales[i] * (output @ np.where(self.signs[i], 1.0, -1.0))
                error = error * (inputs[i][:, :-1] > 0)
            self.velocities[i] = self.config.momentum * self.velocities[i] + gradient
            self.weights[i] = self.weights[i] - self.config.lr * self.velocities[i]

    def predict(self, x: Floats) -> Integers:
        """Return the classes."""
        return self.forward(x)[-1].argmax(1)


class IntegerHead:
    """The head as the chip trains it.

    Weights and velocities have a fraction a layer; activations, errors and gradients one a tensor and step, chosen from
    the accumulators' largest magnitude. Where the error comes from the feedback, its scale is a factor of the layer's
    learning rate, so that the core only adds. So is 1/N of the loss. Fractions follow their layer's range by one bit a
    step: a weight's goes down where the largest fills its bits, a velocity's up and down.

    Args:
        layers: Weights (out, in) and biases (out,), real, lowest layer first.
        config: How it learns.
    """

    def __init__(self, layers: Sequence[tuple[Any, Any]], config: HeadConfig):
        self.config = config
        real = [np.concatenate([w, b[:, None]], 1).astype(np.float64) for w, b in layers]
        self.signs, self.scales = _feedback(real, config)
        self.width = 16 + config.guard
        self.weights: list[Fixed] = []
        for w in real:
            # One bit of headroom: weights may double before their fraction follows.
            fraction = Format().fit(2 * float(np.abs(w).max())) + config.guard
            self.weights.append(quantize(w, Format(width=self.width, fraction=fraction)))
        self.velocities: list[Fixed | None] = [None] * len(real)
        self.noise = lfsr.seed_of(torch.tensor(key_of(config.seed, "noise")))

    def read(self, i: int) -> Fixed:
        """Return the weights of layer ``i`` as the arrays read them, 16 bits."""
        stored, guard = self.weights[i], self.config.guard
        return Fixed(rescale(stored.values, guard, 16), stored.fraction - guard)

    def forward(self, x: Fixed) -> list[Fixed]:
        """Return the layers' inputs, (N, in), and the logits."""
        found = [x]
        for i in range(len(self.weights)):
            total = _affine(found[-1], self.read(i))
            if i < len(self.weights) - 1:
                total = Fixed(np.maximum(total.values, 0), total.fraction)
            found.append(requantize(total, self.config.activations, finest=31))  # so that biases fit the sums they join
        return found

    def step(self, x: Floats, labels: Integers) -> dict[str, Fixed]:
        """Train on one batch and return its tensors, by name.

        Raises:
            ValueError: On the first batch: the learning rate is out of the momentum unit's range.
        """
        *inputs, logits = self.forward(quantize(x, self.config.activations))
        output = error = softmax_error(logits, labels)
        tensors = {"output error": output}
        for i in range(len(self.weights) - 1, -1, -1):
            h, scale = inputs[i], 1.0 / len(labels)
            if i < len(self.weights) - 1 and self.config.method == "BDFA":
                scale *= self.scales[i + 1]
            total = Fixed(product(error.values.T, h.values), error.fraction + h.fraction)
            bias = Fixed(error.values.sum(0)[:, None], error.fraction)
            both = np.concatenate([total.values, _align(bias, total.fraction)], 1)
            tensors[f"input {i}"], tensors[f"error {i}"] = h, error
            if i:  # through the weights as they were
                error = self._below(i, error, output, h)
            self._update(i, Fixed(both, total.fraction), scale)
        return tensors

    def predict(self, x: Floats) -> Integers:
        """Return the classes."""
        return self.forward(quantize(x, self.config.activations))[-1].values.argmax(1)

    def _below(self, i: int, error: Fixed, output: Fixed, h: Fixed) -> Fixed:
        """Return the error at the sums below layer ``i``, whose input is ``h``."""
        if self.config.method == "BP":
            weight = self.read(i)
            total = Fixed(product(error.values, weight.values[:, :-1]), error.fraction + weight.fraction)
        else:
            total = Fixed(direct_errors(output.values, self.signs[i], self.config.terms), output.fraction)
        return requantize(Fixed(np.where(h.values > 0, total.values, 0), total.fraction), self.config.activations)

    def _update(self, i: int, gradient: Fixed, scale: float) -> None:
        weight, velocity = self.weights[i], self.velocities[i]
        coarsen = int(weight.largest >= 2 ** (self.width - 2))
        rate, places = self._rate(scale)
        first = velocity is None
        if velocity is None:  # with momentum 0.9 a velocity grows to ten gradients: three bits of headroom
            velocity = Fixed(np.zeros_like(gradient.values), requantize(gradient, Format()).fraction - 3)
        apply = velocity.fraction + places - (weight.fraction - coarsen)
        # A dead layer's first gradient may be as small as it likes: the rate is judged by one of 2^-9 at least.
        least = apply - max(0, velocity.fraction - 20)
        if first and (apply < 1 or (rate and not rate >> max(0, least - 32))):
            raise ValueError(
                f"layer {i}: the learning rate {self.config.lr:g} is out of the momentum unit's range: found a right "
                f"shift of {least} places, expected 1 to 47; choose a {'smaller' if apply < 1 else 'larger'} one."
            )
        largest = velocity.largest
        # Only as far as the unit shifts; beyond, a velocity so small moves nothing, and one so large saturates.
        change = -1 if largest >= 2**14 and apply > 1 else 1 if 0 < largest < 2**12 and apply < 32 else 0
        apply += change
        if apply > 32:  # too small a step for the unit's shift: fewer bits of the rate, at last none
            rate, apply = rate >> (apply - 32), 32
        point = velocity.fraction + DECAY_BITS
        g = requantize(gradient, Format(), finest=point)
        if g.fraction < point - 31:
            g = Fixed(rescale(g.values, g.fraction - (point - 31), WIDTH), point - 31)
        noise: Any = NEAREST
        if self.config.rounding == "stochastic":
            states = lfsr.states(self.noise, weight.values.size + 1, leap=32)
            self.noise = states[-1]
            noise = states[:-1].numpy().reshape(weight.values.shape)
        values, moved = momentum(
            weight.values,
            velocity.values,
            g.values,
            decay=min(round(self.config.momentum * 2**DECAY_BITS), 2**DECAY_BITS - 1),
            rate=rate,
            align=point - g.fraction,
            narrow=DECAY_BITS - change,
            apply=apply,
            coarsen=coarsen,
            noise=noise,
            weight_width=self.width,
        )
        self.weights[i] = Fixed(values, weight.fraction - coarsen)
        self.velocities[i] = Fixed(moved, velocity.fraction + change)

    def _rate(self, scale: float) -> tuple[int, int]:
        """Return the learning rate times a scale as 16 bits, and how many lie behind the point."""
        mantissa, exponent = np.frexp(self.config.lr * scale)
        return min(round(mantissa * 2**RATE_BITS), 2**RATE_BITS - 1), RATE_BITS - int(exponent)


def _feedback(weights: Sequence[Floats], config: HeadConfig) -> tuple[list[Any], list[float]]:
    """Return the signs of the feedback to each layer's input, and its scale: the mean of |W_L … W_i|, as "matched"."""
    signs, scales = [], []
    above = np.eye(len(weights[-1]))
    for i in range(len(weights) - 1, -1, -1):
        above = above @ weights[i][:, :-1]
        k, features = above.shape
        signs.insert(0, feedback_signs(config.seed, str(i), k, features) if config.method == "BDFA" and i else None)
        scales.insert(0, float(np.abs(above).mean()))
    return signs, scales


def _affine(x: Fixed, weight: Fixed) -> Fixed:
    """Return ``x Wᵀ + b``, exact; the last column of the weight is b."""
    fraction = x.fraction + weight.fraction
    total = product(x.values, weight.values[:, :-1].T)
    return Fixed(total + _align(Fixed(weight.values[:, -1], weight.fraction), fraction), fraction)


def _align(x: Fixed, fraction: int) -> Integers:
    return shift_round(x.values, x.fraction - fraction)


def _with_one(x: Floats) -> Floats:
    return np.concatenate([x, np.ones((len(x), 1))], 1)
