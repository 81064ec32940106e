"""The weight mirror: feedback learns from noise that is sent forward (Akrout et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from torchdfa.baselines import WeightMirror
from torchdfa.convert import conversion_of, watching
from torchdfa.feedback import ConvFeedback, DenseFeedback, Feedback
from torchdfa.structure import call, undisturbed
from torchdfa.structure.base import input_of, with_input


def mirror(
    model: nn.Module, x: Any, *, rate: float = 0.1, noise: float = 0.1, generator: torch.Generator | None = None
) -> None:
    """Move the feedback of a model under :class:`torchdfa.WeightMirror` towards its weights, without a loss.

    Noise ``ξ`` of standard deviation ``σ`` is given to a layer, and ``B ← (1 - rate) B + rate · yᵀξ / (N σ²)``, where
    ``y`` is what comes of it: at the layer's own output, or, with ``direct=True``, the change of the network's output,
    all layers at once. The expectation of that term is the layer's weight, or the network's mean Jacobian there.
    Weights, gradients, other buffers and the random state (but for one draw, without a generator) stay as they are.

    Args:
        model: A converted model.
        x: A batch, as the model takes it: a tensor, a tuple of arguments or a dict of keyword arguments.
        rate: Share of the feedback that is replaced.
        noise: Standard deviation of the noise. It matters with ``direct=True``, where the network is not linear.
        generator: Of the noise, on the CPU; by default one seeded from torch's own.

    Raises:
        ValueError: No layer of the model is under WeightMirror; a number is out of range.
    """
    conversion = conversion_of(model)
    mirrored = [name for name, rule in conversion.rules.items() if isinstance(rule, WeightMirror)]
    if not mirrored:
        raise ValueError("mirror: no layer of the model has the rule torchdfa.WeightMirror.")
    if not (0 < rate <= 1 and noise > 0):
        raise ValueError(f"mirror: rate={rate} and noise={noise}, expected a rate in (0, 1] and positive noise.")
    if generator is None:
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
    layers = {name: model.get_submodule(name) for name in mirrored if "feedback" in model.get_submodule(name)._modules}
    owners = {id(layer.feedback): name for name, layer in layers.items()}
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def record(output: Tensor, feedbacks: Sequence[Feedback], hidden: Sequence[Tensor]) -> Tensor:
        for feedback, h in zip(feedbacks, hidden, strict=True):
            if id(feedback) in owners:
                seen[owners[id(feedback)]] = output.detach(), h.detach()
        return output

    def run() -> dict[str, tuple[Tensor, Tensor]]:
        with watching(conversion, record), undisturbed(model), torch.enable_grad():
            model.eval()
            call(model, x)
        found = dict(seen)
        seen.clear()
        return found

    def draw(like: Tensor) -> Tensor:
        return noise * torch.randn(like.shape, generator=generator, dtype=torch.float32).to(like)

    plain = run()
    sent = {name: draw(plain[name][1]) for name in layers if name in plain}
    direct = [name for name in sent if not conversion.rules[name].local]
    noisy: dict[str, tuple[Tensor, Tensor]] = {}
    if direct:
        with ExitStack() as stack:
            for name in direct:
                hook = layers[name].register_forward_pre_hook(_Add(sent[name]), with_kwargs=True)
                stack.callback(hook.remove)
            noisy = run()
    with torch.no_grad():
        for name, xi in sent.items():
            layer, feedback = layers[name], layers[name].feedback
            y = (
                noisy[name][0] - plain[name][0]
                if name in noisy
                else layer.forward(xi) - layer.forward(torch.zeros_like(xi))
            )
            assert isinstance(feedback, (DenseFeedback, ConvFeedback))
            feedback.weight.lerp_(_correlation(feedback, y, xi).to(feedback.weight) / noise**2, rate)


class _Add:
    """A hook that adds noise to a layer's input."""

    def __init__(self, noise: Tensor):
        self.noise = noise

    def __call__(self, layer: nn.Module, arguments: Any, keywords: dict[str, Any]) -> Any:
        return with_input(layer, arguments, keywords, input_of("", layer, arguments, keywords) + self.noise)


def _correlation(feedback: DenseFeedback | ConvFeedback, y: Tensor, xi: Tensor) -> Tensor:
    """Return the mean product of an output with the noise it came of, in the shape of the feedback's weight."""
    if isinstance(feedback, ConvFeedback):
        # How often each tap met the map: less often at the borders.
        spatial = len(feedback.geometry.stride)
        groups = feedback.geometry.groups
        ones = [t.new_ones(*t.shape[: -spatial - 1], groups, *t.shape[-spatial:]) for t in (y, xi)]
        return feedback.correlate(y, xi) / feedback.correlate(*ones)[0].clamp(min=1)
    rows = y.reshape(-1, feedback.errors)
    return rows.T @ xi.reshape(-1, feedback.features).to(rows.dtype) / len(rows)
