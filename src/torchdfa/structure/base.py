"""What must be known of a model before it is cut: the order of its layers, their shapes, the chain to its output."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from torchdfa.feedback.init import NoProductError
from torchdfa.structure.outputs import PartName, describe, joined_shape

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
CUTTABLE = (nn.Linear, *CONVOLUTIONS)
RECURRENT = (nn.RNN, nn.LSTM, nn.GRU, nn.RNNCell, nn.LSTMCell, nn.GRUCell)
LAYERS = (*CUTTABLE, *RECURRENT)


@dataclass(frozen=True)
class Structure:
    """What is read off a model.

    Attributes:
        order: Names of the Linear, convolution and recurrent layers that the forward calls, in the order of their first
            call.
        fed: Those whose input depends on a parameter. The others are first layers: nothing below them needs an error.
        above: Those whose input depends on another layer, not on the parameters of norms or embeddings alone.
        leading: Those that lead to the scope's output, whose error is therefore also theirs.
        end: The module whose output is the scope's; "" for what the model returns.
        errors: K, the width of the error there, where a Linear layer makes it.
        output: Shape of the scope's output; None without an example.
        inputs: Shape of the input of each layer in ``order``; empty without an example.
        chain: Names of the Linear layers that lead to the output without a branch, the last first.
        chain_end: Why the chain goes no further.
        parts: Where the scope's output is several parts: what is known of each, seen from it alone.
        astray: Layers whose cut would send errors where they don't belong, and why, with what to do.
    """

    order: tuple[str, ...]
    fed: frozenset[str]
    leading: frozenset[str]
    end: str
    errors: int | None
    output: torch.Size | None = None
    inputs: Mapping[str, torch.Size] = field(default_factory=dict)
    chain: tuple[str, ...] = ()
    chain_end: str = ""
    above: frozenset[str] = frozenset()
    parts: Mapping[PartName, Structure] = field(default_factory=dict)
    astray: Mapping[str, str] = field(default_factory=dict)

    def joined(self, parts: Mapping[PartName, Structure]) -> Structure:
        """Return this structure, seen from several parts of the output at once."""
        outputs = [part.output for part in parts.values() if part.output is not None]
        errors = [part.errors for part in parts.values()]
        unknown = (f"in its part {key!r} {part.chain_end}" for key, part in parts.items() if part.errors is None)
        return replace(
            self,
            leading=frozenset().union(*(part.leading for part in parts.values())),
            errors=None if None in errors else sum(n for n in errors if n is not None),
            output=joined_shape(outputs) if outputs else None,
            chain_end=next(unknown, ""),
            parts=parts,
            astray={name: why for part in parts.values() for name, why in part.astray.items()},
        )

    def toward(self, name: str) -> Structure:
        """Return the structure, seen from the parts of the output that a layer leads to; as it is, without parts."""
        if not self.parts:
            return self
        return self.joined({key: part for key, part in self.parts.items() if name in part.leading})

    def product(self, model: nn.Module, name: str) -> Tensor:
        """Return ``W_L … W_{i+1}`` (eq. 7 of Han & Yoo 2019), shape (K, H), float64, for the cut at ``name``'s input.

        Raises:
            NoProductError: What leads from ``name`` to the output is no chain of Linear layers.
        """
        if self.parts:
            return torch.cat([part.product(model, name) for part in self.parts.values()])
        if name not in self.chain:
            raise NoProductError(
                f"init='product' for {name!r}: no product of forward weights leads from the output to its input, since "
                f"{self.chain_end}. Use init='random', or a rule that cuts the Linear layers of the head only (CDFA, "
                "CBDFA)."
            )
        weights = [model.get_submodule(n).weight for n in self.chain[: self.chain.index(name) + 1]]
        result, *rest = (w.detach().double() for w in weights if isinstance(w, Tensor))
        for weight in rest:
            result = result @ weight
        return result


@dataclass(frozen=True)
class Arguments:
    """What a module is called with."""

    positional: tuple[Any, ...]
    keywords: Mapping[str, Any]

    def copy(self) -> Arguments:
        """Copy them: a forward may change lists, or caches of keys and values, that it is given."""
        try:
            return deepcopy(self)
        except Exception:  # they may be anything; what can't be copied is seldom changed
            return self


def call(model: nn.Module, example: Any) -> Any:
    """Call a model on an example: a tensor, a tuple of arguments, a dict of keyword arguments, or both of these."""
    if isinstance(example, Arguments):
        given = example.copy()
        return model(*given.positional, **given.keywords)
    if isinstance(example, Mapping):
        return model(**example)
    return model(*(example if isinstance(example, (tuple, list)) else (example,)))


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Restore afterwards what a forward, or a trace of it, may change in a model, and the random state."""
    attributes = [(m, dict(m.__dict__), dict(m._buffers)) for m in model.modules()]
    buffers = [(b, b.detach().clone()) for b in model.buffers()]
    flags = [(p, p.requires_grad) for p in model.parameters()]
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            for module, before, own in attributes:
                module.__dict__.clear()
                module.__dict__.update(before)
                module._buffers.clear()
                module._buffers.update(own)
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)
            for p, requires_grad in flags:
                p.requires_grad_(requires_grad)


def _first(module: nn.Module) -> str:
    """Return the name of the first argument that a module's forward takes."""
    return next(iter(inspect.signature(module.forward).parameters), "input")


def input_of(name: str, module: nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> Any:
    """Return the first argument of a call of a module, also where it is passed by its name.

    Raises:
        ValueError: It is not passed, or is no tensor.
    """
    if not arguments and (first := _first(module)) not in keywords:
        raise ValueError(
            f"{name!r} is cut at its input, and is called without it: with {', '.join(keywords)}. Pass its input as "
            f"the first argument, or as {first}=."
        )
    given = arguments[0] if arguments else keywords[_first(module)]
    if not (isinstance(given, Tensor) or (isinstance(given, PackedSequence) and isinstance(module, RECURRENT))):
        raise ValueError(
            f"{name!r} is cut at its input, which is {describe(given)}, expected a tensor. Give it the rule BP, or "
            "choose other modules."
        )
    return given


def with_input(
    module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], value: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments and keywords of a call of a module, with another value for the first argument."""
    return ((value, *arguments[1:]), keywords) if arguments else ((), {**keywords, _first(module): value})
