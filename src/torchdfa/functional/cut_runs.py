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
        learns = ctx.needs_input_grad
        # Turned once for both products, where there are any.
        turned = e.T.contiguous() if (learns[1] or learns[2]) and dense.faster(e.T, x.T) else e.T
        at_x, at_h = _apart(turned, len(inward))
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
        # A graph of all steps takes long to compile, and is no faster: compiled code calls them as one operator.
        steps = _operator if torch.compiler.is_compiling() else _steps
        hs, *rest = steps(w.kind, given, inward, matrix, inward_bias, bias, h, c)
    cs, kept = (None, rest) if c is None else (rest[0], rest[1:])
    parameters = w.inward, w.across, w.inward_bias, w.across_bias
    entering = _Sums.apply(x, *parameters, (given, hs[:-1], inward), cell.sums * w.hidden).split(length)
    return [
        CutRun(w.kind, part, matrix, (*(_states(s, i * length, length) for s in (hs, cs)), *values))
        for i, (part, *values) in enumerate(zip(entering, *(k.split(length) for k in kept), strict=True))
    ]


def _steps(
    kind: str,
    x: Tensor,
    inward: Tensor,
    across: Tensor,
    inward_bias: Tensor | None,
    across_bias: Tensor | None,
    h: Tensor,
    c: Tensor | None,
) -> list[Tensor]:
    """Take all steps: h before the first and after each, shape (T + 1, N, H); an LSTM's c; and what cells keep."""
    cell = _CELLS[kind]
    gates = dense.linear(x.flatten(0, -2), inward, inward_bias).view(*x.shape[:-1], len(inward))
    packed = dense.pack(across, len(h))
    # Steps write into tensors of all steps: gradients are taken of these, and putting them together costs time.
    states = [torch.cat([s.unsqueeze(0), s.new_empty(len(x), *s.shape)]) for s in (h, c) if s is not None]
    kept = [gates, torch.empty_like(states[0][1:])] if cell.keeps else []
    for t in range(len(x)):
        added = dense.linear(states[0][t], packed, across_bias)
        cell.step(gates[t], added, *(s[t : t + 2] for s in states), *(k[t] for k in kept[1:]))
    return [*states, *kept]


_LIBRARY = torch.library.Library("torchdfa", "FRAGMENT")
_LIBRARY.define(
    "cut_steps(str kind, Tensor x, Tensor inward, Tensor across, Tensor? inward_bias, Tensor? across_bias, Tensor h, "
    "Tensor? c) -> Tensor[]"
)
_LIBRARY.impl("cut_steps", _steps, "CompositeExplicitAutograd")
_operator = torch.ops.torchdfa.cut_steps.default


@torch.library.register_fake("torchdfa::cut_steps", lib=_LIBRARY)
def _shapes(kind: str, x: Tensor, inward: Tensor, across: Tensor, _: Any, __: Any, h: Tensor, c: Any) -> list[Tensor]:
    states = [h.new_empty(len(x) + 1, *h.shape) for _ in range(1 if c is None else 2)]
    if not _CELLS[kind].keeps:
        return states
    return [*states, x.new_empty(*x.shape[:-1], len(inward)), h.new_empty(len(x), *h.shape)]


def _states(all_steps: Tensor | None, begin: int, length: int) -> Tensor | None:
    """Return the state that enters a run, and those after each of its steps."""
    return None if all_steps is None else all_steps[begin : begin + length + 1]


_Back = tuple[Tensor, Tensor | None, Tensor | None]
_through_sigmoid = torch.ops.aten.sigmoid_backward.grad_input
_through_tanh = torch.ops.aten.tanh_backward.grad_input


class _LSTM:
    """A step of an LSTM, which keeps its gates and tanh(c)."""

    sums, keeps = 4, True

    @staticmethod
    def step(gates: Tensor, across: Tensor, h: Tensor, c: Tensor, squashed: Tensor) -> None:
        i, f, g, o = gates.add_(across).chunk(4, -1)
        for gate in (i, f, o):
            gate.sigmoid_()
        torch.mul(i, g.tanh_(), out=c[1]).addcmul_(f, c[0])
        torch.mul(o, torch.tanh(c[1], out=squashed), out=h[1])

    @staticmethod
    def back(dy: Tensor, dc: Tensor, hs: Tensor, cs: Tensor, gates: Tensor, squashed: Tensor) -> _Back:
        i, f, g, o = gates.chunk(4, -1)
        sums = torch.empty_like(gates)
        di, df, dg, do = sums.chunk(4, -1)
        dc = _accumulated(torch.ops.aten.tanh_backward(dy * o, squashed).add_(dc), f)
        _through_sigmoid(dc * g, i, grad_input=di)
        _through_sigmoid(dc * cs[:-1], f, grad_input=df)
        _through_tanh(dc * i, g, grad_input=dg)
        _through_sigmoid(dy * squashed, o, grad_input=do)
        return sums, None, dc[0] * f[0]


class _GRU:
    """A step of a GRU, which keeps its gates and what the state adds to the last of them."""

    sums, keeps = 4, True

    @staticmethod
    def step(gates: Tensor, across: Tensor, h: Tensor, added: Tensor) -> None:
        (r, z, n), (hr, hz, hn) = gates.chunk(3, -1), across.chunk(3, -1)
        r.add_(hr).sigmoid_()
        z.add_(hz).sigmoid_()
        n.addcmul_(r, added.copy_(hn)).tanh_()
        torch.lerp(n, h[0], z, out=h[1])

    @staticmethod
    def back(dy: Tensor, dc: None, hs: Tensor, cs: None, gates: Tensor, added: Tensor) -> _Back:
        r, z, n = gates.chunk(3, -1)
        sums = gates.new_empty(*gates.shape[:-1], 4 * dy.shape[-1])
        dr, dz, dn, dhn = sums.chunk(4, -1)
        dh = _accumulated(dy, z)
        _through_tanh(dh * (1 - z), n, grad_input=dn)
        _through_sigmoid(dn * added, r, grad_input=dr)
        _through_sigmoid(dh * (hs[:-1] - n), z, grad_input=dz)
        torch.mul(dn, r, out=dhn)
        return sums, dh[0] * z[0], None


@dataclass(frozen=True)
class _Plain:
    """A step of a plain recurrent layer: its activation, in place, and the error through it, of its value."""

    squash: Callable[[Tensor], Tensor]
    through: Callable[[Tensor, Tensor], Tensor]
    sums: ClassVar[int] = 1
    keeps: ClassVar[bool] = False

    def step(self, gates: Tensor, across: Tensor, h: Tensor) -> None:
        self.squash(torch.add(gates, across, out=h[1]))

    def back(self, dy: Tensor, dc: None, hs: Tensor, cs: None) -> _Back:
        return self.through(dy, hs[1:]), None, None


# ``step`` takes what the inputs, (N, gates · H), and the state add to the gates, and h and an LSTM's c before and
# after, (2, N, H), of which it writes the latter; where it ``keeps`` them, it leaves the gates' values in place of the
# former, and writes another (N, H). ``back`` takes the errors at a run's outputs and c's, (T, N, H), the h and c before
# its first step and after each, (T + 1, N, H), and what was kept; to the errors at the sums, and at the h and c before,
# but for the recurrent weights. ``sums`` counts the blocks of H numbers that enter the gates: one a gate, and one more
# where they are not added.
_CELLS = {
    "lstm": _LSTM,
    "gru": _GRU,
    "tanh": _Plain(torch.tanh_, torch.ops.aten.tanh_backward),
    "relu": _Plain(torch.relu_, lambda dy, y: dy * (y > 0)),
}


def _accumulated(errors: Tensor, passed: Tensor) -> Tensor:
    """Return ``d_t = errors_t + passed_{t+1} d_{t+1}``: the errors at states of which a share passes to the next."""
    total = [errors[-1]]
    for t in range(len(errors) - 2, -1, -1):
        total.append(torch.addcmul(errors[t], passed[t + 1], total[-1]))
    return torch.stack(total[::-1])
