"""OnlineHead: fully connected layers and their optimizer in one."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from torchdfa.convert import conversion_of, convert, is_converted, revert
from torchdfa.feedback import Feedback
from torchdfa.hooks import cut_of
from torchdfa.online.layers import Activation, build_network, read_layers
from torchdfa.online.loss import NonFiniteLossError, cross_entropy
from torchdfa.online.sgd import LayerSGD
from torchdfa.ops.dense import linear, through
from torchdfa.rules import Rule
from torchdfa.settings import wrong


class OnlineHead(LayerSGD):
    """A stack of fully connected layers that learns one sample or a small batch at a time, by BP, DFA or BDFA.

    A step does what ``loss.backward()`` on the converted network and ``torch.optim.SGD`` do, to rounding, without
    autograd and without storing a gradient: ``V = μV + λW + Δᵀ X; W = W - ηV``, the product going straight into the
    momentum. The rules differ in nothing but where the error Δ of a hidden layer comes from.

    >>> import torch, torchdfa as dfa
    >>> head = dfa.OnlineHead((8, 16, 16, 3), rule=dfa.BDFA(init="product"), lr=0.1, momentum=0.9)
    >>> x, y = torch.eye(8)[:3], torch.arange(3)
    >>> losses = [head.step(x, y) for _ in range(30)]
    >>> losses[-1] < 0.1 * losses[0], head.predict(x).tolist()
    (True, [0, 1, 2])

    The layers belong to ``head.net``, an ``nn.Sequential`` of Linear, activation (ReLU, LeakyReLU, Tanh, Sigmoid) and
    Dropout. It is made from sizes, or it is a part of a trained network and stays one: its weights are trained where
    they are.

    >>> from torchdfa.models import VGG16
    >>> vgg = VGG16(width=0.1).build((3, 32, 32), classes=10)
    >>> head = dfa.OnlineHead(vgg.get_submodule("classifier"), rule=dfa.DFA(), lr=0.01)
    >>> with torch.no_grad():
    ...     features = vgg.get_submodule("features")(torch.zeros(2, 3, 32, 32))
    >>> loss = head.step(features, torch.tensor([3, 7]))

    The rule is put on ``net`` as :func:`torchdfa.convert` does: its feedback is ``net[i].feedback``, ``summary`` and
    ``alignment`` can be asked about it, ``revert(head.net)`` takes it off, autograd trains ``net`` by the same rule.

    Args:
        net: Sizes from the input to the K classes, or the ``nn.Sequential`` to train, on the device where it stays.
        rule: One rule, or one a pattern of layer names, as in :func:`torchdfa.convert`. None: the feedback that the
            layers have already, or BP.
        lr: Learning rate; one for all Linear layers, or one each, the first first.
        momentum: Of SGD. 0 keeps no momentum in memory.
        momentum_dtype: Type in which the weights' momentum is kept: ``torch.bfloat16`` takes half of float32's memory,
            and is rounded once a step. None: the weights' own.
        weight_decay: L2 penalty on all parameters.
        clip: Largest norm of the whole gradient; longer ones are shortened to it. None: no limit.
        class_weights: A factor of the loss of each class's samples. The loss is the mean over the batch of these
            weighted losses; it is not divided by their sum, which would make a weight meaningless for one sample.
        activation: With sizes: ``"relu"``, ``"leaky_relu"``, ``"tanh"`` or ``"sigmoid"``.
        dropout: With sizes: share of each hidden layer that is dropped.
        seed: Of the weights, with sizes, and of dropout. A rule's own seed is apart.
        device: With sizes: where the layers are made.
        dtype: With sizes: type of the weights, torch's default type by default.

    Attributes:
        net: The network, in the order of its layers.
        layers: Its Linear layers, the first first.
        momentum_dtype: As given.

    Raises:
        ValueError: A setting is out of range, the network has other layers, or the rule does not fit it.
    """

    def __init__(
        self,
        net: nn.Sequential | Sequence[int],
        *,
        rule: Rule | Mapping[str, Rule] | None = None,
        lr: float | Sequence[float] | np.ndarray | Tensor,
        momentum: float = 0.0,
        momentum_dtype: torch.dtype | None = None,
        weight_decay: float = 0.0,
        clip: float | None = None,
        class_weights: Tensor | np.ndarray | Sequence[float] | None = None,
        activation: Activation | None = None,
        dropout: float | None = None,
        seed: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        if isinstance(net, nn.Module):
            made = {"activation": activation, "dropout": dropout, "device": device, "dtype": dtype}
            if given := [name for name, value in made.items() if value is not None]:
                raise ValueError(f"OnlineHead: {given[0]} is for a head made from sizes; this network has its own.")
        else:
            net = build_network(net, activation or "relu", dropout or 0.0, seed, device, dtype)
        super().__init__(
            read_layers(net),
            lr=lr,
            momentum=momentum,
            momentum_dtype=momentum_dtype,
            weight_decay=weight_decay,
            clip=clip,
        )
        self._flattens = [module for module in net.modules() if isinstance(module, nn.Flatten)]
        self.net = net
        self.class_weights = class_weights
        self._generator = torch.Generator(self._weight.device).manual_seed(seed)
        if rule is not None:
            if not is_converted(net) and any(cut_of(layer) for layer in self.layers):
                raise ValueError(
                    "OnlineHead: these layers have feedback of a rule on the network around them. Leave out rule= to "
                    "keep it, or revert that network."
                )
            convert(net, rule)
        try:
            self._check_feedback()
        except ValueError:
            if rule is not None:
                revert(net)
            raise

    def __repr__(self) -> str:
        shape = "-".join(map(str, self.sizes))
        return f"OnlineHead({shape}, lr={self.lr}, momentum={self.momentum}, weight_decay={self.weight_decay})"

    # -------------------------------------------------------------------------------------------- what it consists of

    @property
    def layers(self) -> list[nn.Linear]:
        """The Linear layers, the first first."""
        return [layer.linear for layer in self._layers]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Features of the input, of every hidden layer, and the number of classes."""
        return (self.layers[0].in_features, *(layer.out_features for layer in self.layers))

    @property
    def class_weights(self) -> Tensor | None:
        """Factor of the loss of each class's samples, shape (K,). May be set."""
        return self._class_weights

    @class_weights.setter
    def class_weights(self, value: Tensor | np.ndarray | Sequence[float] | None) -> None:
        weights = None if value is None else torch.as_tensor(value).to(self._weight)
        if weights is not None:
            right = weights.shape == (self.sizes[-1],) and bool(((weights >= 0) & weights.isfinite()).all())
            if not right:
                what = f"{self.sizes[-1]} finite numbers of 0 or more, one a class"
                raise wrong(self, "class_weights", value, what)
        self._class_weights = weights

    @property
    def nbytes(self) -> int:
        """Bytes of all that it keeps between steps: parameters, momentum (before the first step too), feedback."""
        return sum(t.numel() * t.element_size() for t in self.net.state_dict().values()) + self._momentum_bytes()

    # ----------------------------------------------------------------------------------------------- learn and predict

    @torch.no_grad()
    def step(self, x: Tensor | np.ndarray, y: Tensor | np.ndarray | int) -> float:
        """Learn from one sample or a batch, and return its loss before the step: softmax cross-entropy.

        Args:
            x: Features, shape (N, D), or (D,) for one sample; a tensor or an array.
            y: Class indices, shape (N,), or one index.

        Raises:
            ValueError: A shape or a label does not fit.
            NonFiniteLossError: The loss, or the norm that ``clip`` needs, is infinite or no number. As with
                ValueError, nothing was updated.
        """
        with torch.autocast(self._weight.device.type, enabled=False):
            features = self._features(x)
            labels = torch.as_tensor(y, device=features.device).reshape(-1)
            inputs, values, masks = self._forward(features)
            loss, error = cross_entropy(values.pop(), labels, self._class_weights)
            # Activations that saturate can hide an infinite feature from the loss, but not from a gradient.
            if not (math.isfinite(loss) and features.isfinite().all()):
                raise NonFiniteLossError(
                    f"step: the loss is {loss}, so nothing was updated. The features are not finite, or the head has "
                    "diverged: a smaller lr, or clip=."
                )
            first = next((i for i, layer in enumerate(self._layers) if layer.learns), None)
            if first is None:
                return loss
            errors = self._errors(error, values, masks, first)
            del values, masks
            if self.clip is not None:
                self._shorten(errors, inputs, first)
            while errors:  # from the last layer down, each layer's activation freed behind it
                self._update(first + len(errors) - 1, errors.pop(), inputs.pop())
        return loss

    def _forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor | None]]:
        """Return each layer's input, the value of its activation, and the dropout mask of its input."""
        inputs: list[Tensor] = []
        values: list[Tensor] = []
        masks: list[Tensor | None] = []
        for layer in self._layers:
            mask = layer.mask(x, self._generator)
            x = x if mask is None else x * mask
            inputs.append(x)
            masks.append(mask)
            x = layer.activate(linear(x, layer.linear.weight, layer.linear.bias))
            values.append(x)
        return inputs, values, masks

    def _errors(self, e: Tensor, values: list[Tensor], masks: list[Tensor | None], first: int) -> list[Tensor]:
        """Return the error at the sums of each layer from ``first`` on: where the rules differ."""
        errors = [e]
        for i in range(len(self._layers) - 1, first, -1):
            here, mask = self._layers[i].linear, masks[i]
            cut = cut_of(here)
            if cut is None:
                error = through(errors[-1], here.weight)
            else:
                feedback, local = cut
                error = feedback(errors[-1] if local else e)
            if mask is not None:
                error = error * mask
            errors.append(self._layers[i - 1].before_activation(error, values[i - 1]))
        return errors[::-1]

    @torch.no_grad()
    def logits(self, x: Tensor | np.ndarray) -> Tensor:
        """Return the logits, shape (N, K), or (K,) for one sample of shape (D,); without dropout."""
        single = x.ndim == 1
        with torch.autocast(self._weight.device.type, enabled=False):
            h = self._features(x)
            for layer in self._layers:
                h = layer.activate(linear(h, layer.linear.weight, layer.linear.bias))
        return h[0] if single else h

    def predict_proba(self, x: Tensor | np.ndarray) -> Tensor:
        """Return the classes' probabilities, shape (N, K), or (K,) for one sample."""
        return self.logits(x).softmax(-1)

    def predict(self, x: Tensor | np.ndarray) -> Tensor:
        """Return the most probable classes, shape (N,), or a 0-dimensional index for one sample."""
        return self.logits(x).argmax(-1)

    # -------------------------------------------------------------------------------------------------- feedback, state

    def reset_feedback(self) -> None:
        """Make the feedback anew from the weights as they are now.

        For ``init="product"`` and matched scales after weights were changed from outside, as where a last layer
        begins anew for each sequence of a tracker.

        Raises:
            ValueError: The rule was put on a network around this head; or the feedback can't be made, which then
                stays as it was.
        """
        if not is_converted(self.net):
            if any(cut_of(layer) for layer in self.layers):
                raise ValueError(
                    "reset_feedback: the feedback belongs to the network around this head; revert and convert that one."
                )
            return
        learns = [(p, p.requires_grad) for p in self.net.parameters()]
        # A twin that shares the parameters: if the feedback can't be made, this network has not been touched.
        twin = copy.deepcopy(self.net, {id(p): p for p, _ in learns})
        try:
            convert(revert(twin), conversion_of(self.net).rules)
        finally:
            for p, requires_grad in learns:
                p.requires_grad_(requires_grad)
        for (_, layer), (_, other) in zip(self.net.named_modules(), twin.named_modules(), strict=True):
            if "feedback" in layer._modules:
                layer.add_module("feedback", other._modules["feedback"])

    def state_dict(self) -> dict[str, Tensor]:
        """Return all that the head's future depends on, but its settings: parameters, feedback, momentum, dropout.

        As a module's, it holds the tensors themselves, no copies.
        """
        state = {f"net.{name}": value for name, value in self.net.state_dict().items()}
        state |= {f"momentum.{name}": value for name, value in self._velocity.items()}
        return {**state, "generator": self._generator.get_state()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load what :meth:`state_dict` returned into a head of the same layers and rule.

        Raises:
            ValueError: The tensors are another head's; the message names them. The head is then as it was.
        """
        own = {f"net.{name}": value for name, value in self.net.state_dict().items()}
        own["generator"] = self._generator.get_state()
        names = {f"{layer.name}.{n}": p for layer in self._layers for n, p in layer.linear.named_parameters()}
        optional = {f"momentum.{name}": p for name, p in names.items()}
        expected = {**own, **{name: p for name, p in optional.items() if name in state}}
        strange = [n for n in {**expected, **state} if n not in expected or n not in state]
        # A generator's state is its device's: that of another kind can't go on, the rest can.
        strange += [n for n in expected if n in state and n != "generator" and expected[n].shape != state[n].shape]
        if strange:
            shapes = [
                f"{n} (here {tuple(expected[n].shape) if n in expected else 'none'}, "
                f"there {tuple(state[n].shape) if n in state else 'none'})"
                for n in strange[:5]
            ]
            raise ValueError(f"load_state_dict: the state is another head's or rule's: {', '.join(shapes)}.")
        if state["generator"].shape == own["generator"].shape:
            try:
                self._generator.set_state(state["generator"].cpu())
            except (TypeError, RuntimeError) as error:
                raise ValueError(f"load_state_dict: the generator's state is none ({error}).") from error
        self.net.load_state_dict({n.removeprefix("net."): state[n] for n in own if n != "generator"})
        self._velocity = {
            name.removeprefix("momentum."): state[name].detach().to(p.device, self._velocity_dtype(p), copy=True)
            for name, p in optional.items()
            if name in state
        }

    def save(self, path: str | Path) -> None:
        """Write state, settings, layers and rule to a safetensors file; needs the package safetensors.

        Raises:
            ValueError: The rule was put on a network around this head, whose weights are then the ones to save.
        """
        from torchdfa.online.files import save_head

        save_head(self, Path(path))

    @classmethod
    def load(cls, path: str | Path, *, rule: Rule | Mapping[str, Rule] | None = None) -> OnlineHead:
        """Read a head that :meth:`save` wrote; it goes on as the one that was saved would have.

        Args:
            path: Of the file.
            rule: The rule that it was made with, if that is none of torchdfa's: a file can't name code to run.

        Raises:
            ValueError: The file can't be read, or is no head.
        """
        from torchdfa.online.files import load_head

        return load_head(Path(path), rule)

    # ----------------------------------------------------------------------------------------------------------- checks

    def _features(self, x: Tensor | np.ndarray) -> Tensor:
        features = torch.as_tensor(x)
        if features.ndim > 2:
            for flatten in self._flattens:
                features = flatten(features)
        if features.ndim == 1:
            features = features.unsqueeze(0)
        wide = features.ndim == 2 and features.shape[1] == self.sizes[0]
        if not (wide and len(features) and features.is_floating_point()):
            raise ValueError(
                f"features of shape {tuple(features.shape)} and type {features.dtype}, expected (N, {self.sizes[0]}) "
                f"or ({self.sizes[0]},), N at least 1, of a floating-point type."
            )
        return features.detach().to(self._weight)

    def _check_feedback(self) -> None:
        rules = conversion_of(self.net).rules.values() if is_converted(self.net) else ()
        if modular := next((type(rule).__name__ for rule in rules if rule.modular), None):
            raise ValueError(
                f"OnlineHead: {modular} sends errors within modules; expected BP, FA, DFA, BDFA, CDFA, CBDFA."
            )
        for layer in self._layers[1:]:
            cut = cut_of(layer.linear)
            if cut is None:
                continue
            feedback, local = cut
            if type(feedback).reads is not Feedback.reads:
                raise ValueError(
                    f"OnlineHead: the feedback at {layer.name!r}, a {type(feedback).__name__}, learns or reads weights "
                    "or outputs. Expected a rule of fixed feedback: BP, FA, DFA, BDFA, CDFA, CBDFA."
                )
            outputs = layer.linear.out_features if local else self.sizes[-1]
            if (feedback.errors, feedback.features) != (outputs, layer.linear.in_features):
                raise ValueError(
                    f"OnlineHead: the feedback at {layer.name!r} goes from {feedback.errors} to {feedback.features} "
                    f"entries, expected {outputs} to {layer.linear.in_features}: it was made for the output of a "
                    "network around these layers, not for theirs."
                )
