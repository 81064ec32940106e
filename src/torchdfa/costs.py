"""What carrying errors backward costs under a rule, layer by layer, beside back-propagation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from torchdfa.convert import conversion_of, watching
from torchdfa.feedback import Feedback
from torchdfa.feedback.time import Feedbacks
from torchdfa.functional.recurrent import suffixes, weights_of
from torchdfa.structure import LAYERS, call, undisturbed
from torchdfa.structure.base import RECURRENT, input_of
from torchdfa.table import align


@dataclass(frozen=True)
class Cost:
    """What it costs to carry an error to the input of one layer.

    Attributes:
        layer: Its name.
        kind: Its type.
        rule: Its rule's name.
        bp_products: Multiply-adds of back-propagation: those of the error with the transposed weights.
        products: Multiply-adds under the rule.
        bp_nbytes: Bytes that back-propagation moves: the weights and the error at the layer's output are read, the
            error at its input is written, each once, errors as float32.
        nbytes: Bytes moved under the rule: the feedback and the error of its scope are read, the error is written.
    """

    layer: str
    kind: str
    rule: str
    bp_products: int
    products: int
    bp_nbytes: int
    nbytes: int


@dataclass(frozen=True)
class Costs:
    """The cost of error propagation in all layers to whose input an error goes; ``print`` it to read it."""

    rows: tuple[Cost, ...]

    @property
    def bp_products(self) -> int:
        """Multiply-adds of back-propagation."""
        return sum(row.bp_products for row in self.rows)

    @property
    def products(self) -> int:
        """Multiply-adds under the rules."""
        return sum(row.products for row in self.rows)

    @property
    def bp_nbytes(self) -> int:
        """Bytes moved by back-propagation."""
        return sum(row.bp_nbytes for row in self.rows)

    @property
    def nbytes(self) -> int:
        """Bytes moved under the rules."""
        return sum(row.nbytes for row in self.rows)

    def __str__(self) -> str:
        whole = Cost("total", "", "", self.bp_products, self.products, self.bp_nbytes, self.nbytes)
        head = ("layer", "type", "rule", "BP products", "products", "ratio", "BP bytes", "bytes", "ratio")
        return align([head, *(_cells(row) for row in (*self.rows, whole))], left=3)


def costs(model: nn.Module, example: Any) -> Costs:
    """Return what it costs to carry errors to the layers of a converted model, beside back-propagation.

    Gradients of the weights, norms and activations cost the same under every rule and are left out. Products with
    binary feedback are counted like any others, though they are signed sums.

    >>> import torch, torchdfa as dfa
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 16), torch.nn.ReLU(),
    ...                             torch.nn.Linear(16, 2))
    >>> print(dfa.costs(dfa.convert(model, dfa.DFA()), torch.zeros(1, 4)))
    layer  type    rule  BP products  products  ratio  BP bytes  bytes  ratio
    2      Linear  DFA           256        32  0.125      1152    200  0.174
    4      Linear  DFA            32        32  1.000       200    200  1.000
    total                        288        64  0.222      1352    400  0.296

    Args:
        model: A converted model.
        example: An input like those of training, as :func:`torchdfa.convert` takes it; one of a single sample gives
            the cost of a sample.

    Raises:
        ValueError: The model is not converted.
    """
    conversion = conversion_of(model)
    sent: dict[int, tuple[int, int]] = {}
    # Multiply-adds and bytes under back-propagation, and what a rule leaves of them in a recurrent layer.
    calls: dict[str, tuple[int, int, int, int]] = {}

    def record(output: Tensor, feedbacks: Sequence[Feedback], hidden: Sequence[Tensor]) -> Tensor:
        for feedback, h in zip(feedbacks, hidden, strict=True):
            products, moved = sent.get(id(feedback), (0, feedback.nbytes))
            size = 4 * (output.numel() + h.numel())
            sent[id(feedback)] = products + feedback.products(output.shape, h.shape), moved + size
        return output

    def count(name: str, layer: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
        given = input_of(name, layer, arguments, keywords)
        h = given.data if isinstance(given, PackedSequence) else given
        if isinstance(layer, RECURRENT):
            rule = conversion.rules.get(name)
            found = _recurrent(layer, given, h, rule if _feedbacks(layer) else None)
            before = calls.get(name, (0, 0, 0, 0))
            calls[name] = before[0] + found[0], before[1] + found[1], before[2] + found[2], before[3] + found[3]
            return
        if not (h.requires_grad or _feedbacks(layer)):
            return
        y = output
        while isinstance(y, tuple):
            y = y[0]
        products, moved, *_ = calls.get(name, (0, _nbytes(layer.weight)))
        calls[name] = products + _products(layer, y), moved + 4 * (y.numel() + h.numel()), 0, 0

    with ExitStack() as stack:
        stack.enter_context(undisturbed(model))
        stack.enter_context(torch.enable_grad())
        for name, module in model.named_modules():
            if isinstance(module, LAYERS):
                hook = module.register_forward_hook(
                    lambda m, a, k, y, name=name: count(name, m, a, k, y), with_kwargs=True
                )
                stack.callback(hook.remove)
        stack.enter_context(watching(conversion, record))
        model.eval()
        call(model, example)

    rows = []
    for name, module in model.named_modules():
        rule = type(conversion.rules[name]).__name__ if name in conversion.rules else "BP"
        fed = [sent[id(f)] for f in _feedbacks(module) if id(f) in sent]
        products, nbytes = sum(p for p, _ in fed), sum(b for _, b in fed)
        if name in calls:
            bp, moved, live, read = calls[name]
            products, nbytes = (products + live, nbytes + read) if fed else (bp, moved)
            rows.append(Cost(name, type(module).__name__, rule, bp, products, moved, nbytes))
        elif fed:  # a module's input: its layers' own products remain
            rows.append(Cost(name, type(module).__name__, rule, 0, products, 0, nbytes))
    return Costs(tuple(rows))


def _feedbacks(module: nn.Module) -> list[Feedback]:
    child = module._modules.get("feedback")
    if isinstance(child, Feedbacks):
        return [feedback for feedback in child.values() if isinstance(feedback, Feedback)]
    return [child] if isinstance(child, Feedback) else []


def _products(layer: nn.Module, y: Tensor) -> int:
    """Return the multiply-adds of carrying a layer's error to its input by its transposed weights."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if isinstance(layer, nn.Linear):
        return y.numel() // layer.out_features * weight.numel()
    return y.numel() * math.prod(weight.shape[1:])


def _recurrent(layer: nn.Module, given: Any, h: Tensor, rule: Any) -> tuple[int, int, int, int]:
    """Return a recurrent layer's multiply-adds and bytes under back-propagation, and what is left of both."""
    rows = h.numel() // h.shape[-1]
    steps = 1
    if isinstance(given, PackedSequence):
        steps = len(given.batch_sizes)
    elif isinstance(layer, nn.RNNBase):
        steps = h.shape[1 if layer.batch_first and h.dim() == 3 else 0]
    batches = given.batch_sizes.tolist() if isinstance(given, PackedSequence) else [rows // steps] * steps
    first = sum(batches[:: (rule and rule.chunk) or steps])
    live = {None: rows, "inner": first, "first": rows - first, "all": 0}[rule and rule.steps]
    made = layer._modules.get("feedback")
    total = [0, 0, 0, 0]

    def add(matrix: Tensor, all_rows: int, left: int) -> None:
        for place, count in ((0, all_rows), (2, left)):
            if count:
                total[place] += count * matrix.numel()
                total[place + 1] += _nbytes(matrix) + 4 * count * sum(matrix.shape)

    for i, names in enumerate(suffixes(layer)):
        for suffix in names:
            w = weights_of(layer, suffix)
            add(w.across, rows, live)
            if i or h.requires_grad:
                add(w.inward, rows, 0 if isinstance(made, Feedbacks) and f"input{suffix}" in made else rows)
    return total[0], total[1], total[2], total[3]


def _nbytes(weight: Any) -> int:
    return weight.numel() * weight.element_size()


def _cells(row: Cost) -> tuple[str, ...]:
    def ratio(a: int, b: int) -> str:
        return f"{a / b:.3f}" if b else ""

    return (
        *(row.layer, row.kind, row.rule),
        *(str(row.bp_products), str(row.products), ratio(row.products, row.bp_products)),
        *(str(row.bp_nbytes), str(row.nbytes), ratio(row.nbytes, row.bp_nbytes)),
    )
