"""Recurrent layers whose states are cut where they enter the recurrent weights, a run of steps at a time.

A state takes two ways into the next: through the recurrent matrix, and, in an LSTM's cell and a GRU's gate, entry by
entry. The first is what back-propagation through time spends its products on, and what is cut. The second stays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd import Function

from torchdfa.functional.recurrent import State, Weights
from torchdfa.ops import dense


class _Sums(Function):
    """What enters the gates of all steps, for its gradients alone: the value, known, is never read and takes no memory.

    The states before the steps get no error: here they are cut.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        inward: Tensor,
        across: Tensor,
        inward_bias: Tensor | None,
        across_bias: Tensor | None,
        known: tuple[Tensor, Tensor, Tensor],
        width: int,
    ) -> Tensor:
        ctx.save_for_backward(*known)
        ctx.biased = inward_bias is not None
        return known[0].new_zeros(()).expand(*x.shape[:-1], width)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        _once()
        (e,) = (g.flatten(0, -2) for g in grad_outputs)
        given, before, inward = ctx.saved_tensors
        x, h = given.flatten(0, -2), before.flatten(0, -2)
        turned = e.T.contiguous() if dense.faster(e.T, x.T) else e.T  # once for both products
        at_x, at_h = _apart(turned, len(inward))
        learns = ctx.needs_input_grad
        down = dense.through(e[:, : len(inward)], inward).view(given.shape) if learns[0] else None
        at_inward = dense.linear(at_x, x.T) if learns[1] else None
        at_across = dense.linear(at_h, h.T) if learns[2] else None
        biases = _apart(e.sum(0), len(inward)) if ctx.biased else (None, None)
        return down, at_inward, at_across, *biases, None, None


def _once() -> None:
    """Refuse ``create_graph=True``: the values that gradients are made of are not known to autograd."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(
            "second derivatives (create_graph=True) can't be taken through recurrent layers whose states are cut; go "
            "inside torchdfa.backprop(model) for them."
        )


def _apart(errors: Tensor, gates: int) -> tuple[Tensor, Tensor]:
    """Return the errors at what the inputs and at what the states add to the gates: (gates · H, …) of (… · H, …).

    They are the same, but in a GRU, whose last gate takes its two sums apart: the second comes last.
    """
    if len(errors) == gates:
        return errors, errors
    hidden = len(errors) - gates
    return errors[:gates], torch.cat([errors[: 2 * hidden], errors[gates:]])


class _Gates(Function):
    """The steps of a run, their values known, as a function of what enters their gates and of the state before them.

    The error of that state comes entry by entry and, if ``live``, through the recurrent weights.
    """

    @staticmethod
    def forward(
        ctx: Any,
        kind: str,
        live: bool,
        sums: Tensor,
        h: Tensor,
        c: Tensor | None,
        matrix: Tensor,
        hs: Tensor,
        cs: Tensor | None,
        *kept: Tensor,
    ) -> tuple[Tensor, Tensor | None]:
        ctx.kind, ctx.live = kind, live
        ctx.save_for_backward(matrix, hs, cs, *kept)
        # Copies, which what follows may change in place.
        return hs[1:].clone(), None if cs is None else cs[1:].clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        _once()
        matrix, *known = ctx.saved_tensors
        sums, h, c = _CELLS[ctx.kind].back(*grad_outputs, *known)
        if ctx.live and ctx.needs_input_grad[3]:
            down = dense.through(_apart(sums[0].T, len(matrix))[1].T, matrix)
            h = down if h is None else h + down
        return None, None, sums, h, c, *(None for _ in range(1 + len(known)))


@dataclass(frozen=True)
class CutRun:
    """A run of steps whose states are cut where they enter the recurrent weights; see :func:`cut_runs`."""

    kind: str
    sums: Tensor
    matrix: Tensor
    known: tuple[Tensor | None, ...]

    def __call__(self, state: State, *, live: bool) -> tuple[Tensor, Tensor | None]:
        """Take the steps.

        Args:
            state: That enters the first step: h and, of an LSTM, c; shapes (N, H). Its values are those known.
            live: Whether this state's error passes the recurrent weights, as all errors do in back-propagation.

        Returns:
            The outputs, shape (T, N, H); and, of an LSTM, c after every step, of the same shape.
        """
        h, c = (None if s is None else s.to(self.sums.dtype) for s in state)
        return _Gates.apply(self.kind, live, self.sums, h, c, self.matrix, *self.known)


def cut_runs(w: Weights, x: Tensor, state: State, length: int) -> list[CutRun]:
    """Compute steps whose states are cut where they enter the recurrent weights, and divide them into runs.

    Cuts change no value, so that all steps are computed here, one after another; products for gradients are taken of
    all steps at once. What is left to a run, once the state that enters it is known to autograd, is entry by entry.

    Args:
        w: Weights.
        x: Inputs, shape (T, N, I).
        state: That enters the first step: h and, of an LSTM, c; shapes (N, H).
        length: Steps of a run; the last may have fewer.
    """
    cell, device = _CELLS[w.kind], x.device.type
    lowered = torch.is_autocast_enabled(device) and x.dtype != torch.float64
    dtype = torch.get_autocast_dtype(device) if lowered else x.dtype
    with torch.no_grad(), torch.autocast(device, enabled=False):
        given, inward, matrix, h = (t.to(dtype) for t in (x, w.inward, w.across, state[0]))
        inward_bias, bias, c = (None if t is None else t.to(dtype) for t in (w.inward_bias, w.across_bias, state[1]))
        sums = dense.linear(given.flatten(0, -2), inward, inward_bias).view(*x.shape[:-1], len(inward))
        packed = dense.pack(matrix, len(h))
        states, steps = [(h, c)], []
        for now in sums.unbind():
            h, c, *kept = cell.step(now, dense.linear(h, packed, bias), h, c)
            states.append((h, c))
            steps.append(kept)
        hs = torch.stack([h for h, _ in states])
        cs = None if c is None else torch.stack([c for _, c in states if c is not None])
        kept = [torch.stack(k).split(length) for k in zip(*steps, strict=True)]
    parameters = w.inward, w.across, w.inward_bias, w.across_bias
    entering = _Sums.apply(x, *parameters, (given, hs[:-1], inward), cell.sums * w.hidden).split(length)
    return [
        CutRun(w.kind, part, matrix, (*(_states(s, i * length, length) for s in (hs, cs)), *values))
        for i, (part, *values) in enumerate(zip(entering, *kept, strict=True))
    ]


def _states(all_steps: Tensor | None, begin: int, length: int) -> Tensor | None:
    """Return the state that enters a run, and those after each of its steps."""
    return None if all_steps is None else all_steps[begin : begin + length + 1]


_Back = tuple[Tensor, Tensor | None, Tensor | None]
_through_sigmoid = torch.ops.aten.sigmoid_backward
_through_tanh = torch.ops.aten.tanh_backward


class _LSTM:
    """A step of an LSTM: h, c, and what the derivative of a run of them asks for."""

    sums = 4

    @staticmethod
    def step(x: Tensor, across: Tensor, h: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        assert c is not None
        gates = x + across
        i, f, g, o = gates.chunk(4, -1)
        for gate in (i, f, o):
            gate.sigmoid_()
        g.tanh_()
        c = torch.addcmul(i * g, f, c)
        squashed = c.tanh()
        return o * squashed, c, gates, squashed

    @staticmethod
    def back(dy: Tensor, dc: Tensor, hs: Tensor, cs: Tensor, gates: Tensor, squashed: Tensor) -> _Back:
        i, f, g, o = gates.chunk(4, -1)
        dc = _accumulated(dc + _through_tanh(dy * o, squashed), f)
        parts = (
            _through_sigmoid(dc * g, i),
            _through_sigmoid(dc * cs[:-1], f),
            _through_tanh(dc * i, g),
            _through_sigmoid(dy * squashed, o),
        )
        return torch.cat(parts, -1), None, dc[0] * f[0]


class _GRU:
    """A step of a GRU: h, no c, and what the derivative of a run of them asks for."""

    sums = 4

    @staticmethod
    def step(x: Tensor, across: Tensor, h: Tensor, c: None) -> tuple[Tensor, None, Tensor, Tensor, Tensor, Tensor]:
        (xr, xz, xn), (hr, hz, hn) = x.chunk(3, -1), across.chunk(3, -1)
        r, z = (xr + hr).sigmoid(), (xz + hz).sigmoid()
        n = torch.addcmul(xn, r, hn).tanh()
        return torch.lerp(n, h, z), None, r, z, n, hn

    @staticmethod
    def back(dy: Tensor, dc: None, hs: Tensor, cs: None, r: Tensor, z: Tensor, n: Tensor, hn: Tensor) -> _Back:
        dh = _accumulated(dy, z)
        dn = _through_tanh(dh * (1 - z), n)
        dr, dz = _through_sigmoid(dn * hn, r), _through_sigmoid(dh * (hs[:-1] - n), z)
        return torch.cat([dr, dz, dn, dn * r], -1), dh[0] * z[0], None


@dataclass(frozen=True)
class _Plain:
    """A step of a plain recurrent layer: its activation, and the error through it from the one at its value."""

    squash: Callable[[Tensor], Tensor]
    through: Callable[[Tensor, Tensor], Tensor]
    sums: ClassVar[int] = 1

    def step(self, x: Tensor, across: Tensor, h: Tensor, c: None) -> tuple[Tensor, None]:
        return self.squash(x + across), None

    def back(self, dy: Tensor, dc: None, hs: Tensor, cs: None) -> _Back:
        return self.through(dy, hs[1:]), None, None


# ``step`` takes what the inputs and the state add to the gates, (N, gates · H), and the state before. ``back`` takes
# the errors at a run's outputs and c's, (T, N, H), the h and c before its first step and after each, (T + 1, N, H), and
# what its steps gave besides; to the errors at the sums, and at the h and c before, but for the recurrent weights.
# ``sums`` counts the blocks of H numbers that enter the gates: one a gate, and one more where they are not added.
_CELLS = {
    "lstm": _LSTM,
    "gru": _GRU,
    "tanh": _Plain(torch.tanh, _through_tanh),
    "relu": _Plain(torch.relu, lambda dy, y: dy * (y > 0)),
}


def _accumulated(errors: Tensor, passed: Tensor) -> Tensor:
    """Return ``d_t = errors_t + passed_{t+1} d_{t+1}``: the errors at states of which a share passes to the next."""
    total = [errors[-1]]
    for own, share in zip(errors[:-1].flip(0), passed[1:].flip(0), strict=True):
        total.append(torch.addcmul(own, share, total[-1]))
    return torch.stack(total[::-1])
