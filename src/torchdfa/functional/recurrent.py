"""Recurrent layers, one layer and direction at a time, and what a recurrent module does around them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

State = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class Weights:
    """One layer and direction of a recurrent module.

    Attributes:
        kind: ``"tanh"``, ``"relu"``, ``"lstm"`` or ``"gru"``.
        inward: From the input, shape (gates · H, I).
        across: From the state, shape (gates · H, H).
        inward_bias: Shape (gates · H,), or None.
        across_bias: Shape (gates · H,), or None.
    """

    kind: str
    inward: Tensor
    across: Tensor
    inward_bias: Tensor | None
    across_bias: Tensor | None

    @property
    def hidden(self) -> int:
        """H, the size of the state."""
        return self.across.shape[1]


def kind_of(layer: nn.Module) -> str:
    """Return the kind of a recurrent layer or cell."""
    if isinstance(layer, (nn.LSTM, nn.LSTMCell)):
        return "lstm"
    if isinstance(layer, (nn.GRU, nn.GRUCell)):
        return "gru"
    assert isinstance(layer, (nn.RNN, nn.RNNCell))
    return str(layer.nonlinearity)


def weights_of(layer: nn.Module, suffix: str) -> Weights:
    """Return the weights of one layer and direction (``"_l0"``, ``"_l0_reverse"``; ``""`` of a cell)."""
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    return Weights(kind_of(layer), *(getattr(layer, name + suffix, None) for name in names))  # type: ignore[arg-type]


def suffixes(layer: nn.Module) -> list[list[str]]:
    """Return the suffixes of the weights, a list of directions for each layer."""
    if isinstance(layer, (nn.RNNCell, nn.LSTMCell, nn.GRUCell)):
        return [[""]]
    assert isinstance(layer, nn.RNNBase)
    directions = ["", "_reverse"] if layer.bidirectional else [""]
    return [[f"_l{i}{direction}" for direction in directions] for i in range(layer.num_layers)]


def live_steps(w: Weights, x: Tensor, state: State) -> tuple[Tensor, Tensor | None]:
    """Run steps as torch does, with back-propagation through time; c is that after the last step, (1, N, H)."""
    parameters = [p for p in (w.inward, w.across, w.inward_bias, w.across_bias) if p is not None]
    biased = w.inward_bias is not None
    h, c = (None if s is None else s.unsqueeze(0) for s in state)
    if w.kind == "lstm":
        y, _, cell = torch.lstm(x, (h, c), parameters, biased, 1, 0.0, True, False, False)  # type: ignore[call-overload]
        return y, cell
    run = {"gru": torch.gru, "tanh": torch.rnn_tanh, "relu": torch.rnn_relu}[w.kind]
    return run(x, h, parameters, biased, 1, 0.0, True, False, False)[0], None  # type: ignore[call-overload]


# What runs one layer and direction: suffix, inputs (T, N, I), state, and after how many steps an LSTM's c is asked for;
# to the outputs (T, N, H), and these c.
Run = Callable[[str, Tensor, State, list[int]], tuple[Tensor, list[Tensor]]]


def run_layers(
    layer: nn.RNNBase, given: Tensor | PackedSequence, state: Any, run: Run
) -> tuple[Tensor | PackedSequence, Any]:
    """Do what a recurrent module does with its arguments, one layer and direction after another.

    Args:
        layer: ``nn.RNN``, ``nn.LSTM`` or ``nn.GRU``.
        given: Its input, of any form that it takes.
        state: Its initial state, or None.
        run: Runs one layer and direction.

    Returns:
        What the module returns.
    """
    lengths = order = None
    packed = isinstance(given, PackedSequence)
    if packed:
        x, lengths = pad_packed_sequence(given)
        order = given.sorted_indices
    else:
        x = given
    single = x.dim() == 2
    if single:
        x = x.unsqueeze(1)
    elif layer.batch_first and not packed:
        x = x.transpose(0, 1)
    directions = 2 if layer.bidirectional else 1
    size = (layer.num_layers * directions, x.shape[1], layer.hidden_size)
    lstm = isinstance(layer, nn.LSTM)
    states = (state if lstm else (state,)) if state is not None else (x.new_zeros(size),) * (2 if lstm else 1)
    states = tuple(s.unsqueeze(1) if s.dim() == 2 else s for s in states)
    for s in states:
        layer.check_hidden_size(s, size)  # type: ignore[arg-type]
    weight = next(layer.parameters()).dtype
    if x.dtype != weight and not torch.is_autocast_enabled(x.device.type):
        raise ValueError(f"the input is {x.dtype} and the weights are {weight}, expected one type.")
    ends: list[tuple[Tensor, Tensor | None]] = []
    for i, names in enumerate(suffixes(layer)):
        outputs = []
        for j, name in enumerate(names):
            k = i * directions + j
            entering = states[0][k], states[1][k] if lstm else None
            turned = _turn(x, lengths) if j else x
            y, h, c = _ended(run, name, turned, entering, lengths)
            outputs.append(_turn(y, lengths) if j else y)
            ends.append((h, c))
        x = torch.cat(outputs, -1) if directions == 2 else outputs[0]
        if i < layer.num_layers - 1:
            x = F.dropout(x, layer.dropout, layer.training)
    last: Any = torch.stack([h for h, _ in ends])
    if lstm:
        last = (last, torch.stack([c for _, c in ends if c is not None]))
    if single:
        x, last = x.squeeze(1), tuple(s.squeeze(1) for s in last) if lstm else last.squeeze(1)
    elif layer.batch_first and not packed:
        x = x.transpose(0, 1)
    if packed:
        assert lengths is not None
        whole = x if order is None else x.index_select(1, order)
        sizes = lengths if order is None else lengths[order.cpu()]
        data = pack_padded_sequence(whole, sizes)
        return PackedSequence(data.data, data.batch_sizes, given.sorted_indices, given.unsorted_indices), last
    return x, last


def _ended(
    run: Run, name: str, x: Tensor, entering: State, lengths: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Run one layer; return its outputs, and its state after the last step of every sequence."""
    stops = [len(x)] if lengths is None else lengths.unique().tolist()
    y, cells = run(name, x, entering, stops)
    if lengths is None:
        return y, y[-1], cells[0] if cells else None
    length = lengths.to(x.device).view(-1, 1)
    h = y.gather(0, (length - 1).expand(-1, y.shape[-1]).unsqueeze(0)).squeeze(0)
    c = None
    for stop, cell in zip(stops, cells, strict=False):
        c = cell if c is None else torch.where(length >= stop, cell, c)
    return y, h, c


def _turn(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Reverse every sequence of a batch (T, N, …), each within its own length."""
    if lengths is None:
        return x.flip(0)
    step = torch.arange(len(x), device=x.device).unsqueeze(1)
    length = lengths.to(x.device)
    source = torch.where(step < length, length - 1 - step, step)
    return x.gather(0, source.unsqueeze(-1).expand_as(x))
