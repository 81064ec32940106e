"""Every rule and every kind of model once: what the tests run over."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torchdfa as dfa
from torchdfa.structure import pick

RULES = {
    "BP": dfa.BP(),
    "Frozen": dfa.Frozen(),
    "FA-random": dfa.FA(),
    "FA-product": dfa.FA(init="product"),
    "DFA-random": dfa.DFA(),
    "DFA-product": dfa.DFA(init="product"),
    "BDFA-packed": dfa.BDFA(),
    "BDFA-seeded": dfa.BDFA(storage="seeded"),
    "BDFA-lfsr": dfa.BDFA(storage="seeded", generator="lfsr"),
    "BDFA-product": dfa.BDFA(init="product"),
    "BDFA-center": dfa.BDFA(center=True),
    "BDFA-unit": dfa.BDFA(scale="unit"),
    "CDFA-random": dfa.CDFA(),
    "CDFA-product": dfa.CDFA(init="product"),
    "CDFA-chain": dfa.CDFA(trunk="chain"),
    "CBDFA-random": dfa.CBDFA(),
    "CBDFA-product": dfa.CBDFA(init="product"),
    "CBDFA-seeded": dfa.CBDFA(storage="seeded"),
    "CBDFA-center": dfa.CBDFA(init="product", center=True),
    "CBDFA-chain": dfa.CBDFA(trunk="chain"),
    "ModuleDFA-random": dfa.ModuleDFA(),
    "ModuleDFA-product": dfa.ModuleDFA(init="product", groups=2, upsample="nearest"),
    "ModuleDFA-binary": dfa.ModuleDFA(binary=True, groups=2),
    "ModuleDFA-network": dfa.ModuleDFA(source="network"),
    "KolenPollack": dfa.KolenPollack(),
    "KolenPollack-direct": dfa.KolenPollack(direct=True),
    "WeightMirror": dfa.WeightMirror(),
    "WeightMirror-direct": dfa.WeightMirror(direct=True, init="product"),
    "uSF": dfa.SignSymmetry(),
    "frSF": dfa.SignSymmetry(magnitude="fixed"),
    "brSF": dfa.SignSymmetry(magnitude="batch"),
    "DRTP": dfa.DRTP(),
    "HybridDFA-random": dfa.HybridDFA(),
    "HybridDFA-product": dfa.HybridDFA(init="product", dilation=1),
    "HybridDFA-binary": dfa.HybridDFA(init="product", binary=True, groups=2),
    "HybridDFA-sparse": dfa.HybridDFA(density=0.5),
    "HybridDFA-sparse-binary": dfa.HybridDFA(density=0.5, binary=True, init="product"),
}
# Rules that need a network of several modules.
BETWEEN = {"HybridDFA-between": dfa.HybridDFA(direct="between")}
rules = pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 4))

    def forward(self, x: Tensor) -> Any:
        return self.net(x)


class ConvNet(nn.Module):
    """Convolutions with batch norm under a head of three Linear layers with dropout."""

    def __init__(self, dropout: float = 0.5):
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
            *(nn.Conv2d(4, 6, 3, stride=2, bias=False), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        )
        self.classifier = nn.Sequential(
            *(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(dropout)),
            *(nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 4)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


class Block(nn.Module):
    """A residual block of two convolutions."""

    def __init__(self, below: int, channels: int, stride: int = 1):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(below, channels, 3, stride, 1), nn.Conv2d(channels, channels, 3, padding=1)
        self.short = nn.Identity() if below == channels and stride == 1 else nn.Conv2d(below, channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv2(self.conv1(x).relu()) + self.short(x))


class Stages(nn.Module):
    """Two convolutions in a row, pooling, and two residual blocks of which the first has a stride."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU(inplace=True)),
            *(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.ReLU(), nn.MaxPool2d(2)),
            nn.Sequential(Block(4, 6, 2), Block(6, 6)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        )
        self.mix, self.head = nn.Linear(6, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mix(self.features(x)).tanh())


class Tokens(nn.Module):
    """Linear layers on (N, T, D), each token by itself in the feedback, mixed by attention with shared inputs."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Linear(5, 6), nn.LayerNorm(6)
        self.q, self.k, self.v = (nn.Linear(6, 6) for _ in range(3))
        self.mlp, self.head = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.embed(x))
        h = F.scaled_dot_product_attention(self.q(h), self.k(h), self.v(h))
        return self.head(F.gelu(self.mlp(h)))


class Pooled(nn.Module):
    """Tokens under a mean: the feedback covers all tokens of a sample."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix, self.head = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mix(self.embed(x).tanh()).tanh().mean(1))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.up, self.down, self.head = (nn.Linear(*s) for s in ((5, 6), (6, 8), (8, 6), (6, 4)))

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x).tanh()
        return self.head(h + self.down(self.up(h).relu()))


class Tied(nn.Module):
    """One layer called twice, and two layers with one weight."""

    def __init__(self):
        super().__init__()
        self.stem, self.again, self.twin, self.head = (nn.Linear(*s) for s in ((5, 6), (6, 6), (6, 6), (6, 4)))
        self.twin.weight = self.again.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x).tanh()
        h = self.again(input=self.again(h).tanh()).tanh()
        return self.head(self.twin(h).tanh())


class Point(NamedTuple):
    logits: Tensor
    hidden: Tensor


@dataclass
class Record:
    logits: Tensor
    hidden: Tensor


@dataclass(frozen=True)
class FrozenRecord:
    logits: Tensor
    hidden: Tensor


class Returning(MLP):
    """An MLP that returns its logits within something."""

    def __init__(self, wrap: Callable[[Tensor], Any]):
        super().__init__()
        self.wrap = wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.net(x))


# What a dict holds is the module's own output; of the others the part is computed outside any module.
def as_dict(y: Tensor) -> dict[str, Tensor]:
    return {"hidden": y.detach(), "logits": y}


def as_tuple(y: Tensor) -> tuple[Tensor, Tensor]:
    return y.detach(), y.clone()


def as_point(y: Tensor) -> Point:
    return Point(y.clone(), y.detach())


def as_record(y: Tensor) -> Record:
    return Record(y.clone(), y.detach())


def as_frozen_record(y: Tensor) -> FrozenRecord:
    return FrozenRecord(y.clone(), y.detach())


@dataclass(frozen=True)
class Net:
    """A kind of model.

    Attributes:
        build: Makes one.
        shape: Of one sample.
        output: As convert takes it.
        chained: Whether a product of weights leads to all Linear layers above the first.
        convolutional: Whether it has convolutions.
        runs: Whether it has modules of several layers.
        parts: Whether it has several modules.
        last: Name of the layer that makes the output.
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    last: str
    output: str | int | None = None
    chained: bool = True
    convolutional: bool = False
    runs: bool = True
    parts: bool = False

    def x(self, n: int = 5) -> Tensor:
        return torch.randn(n, *self.shape)

    def logits(self, value: Any) -> Tensor:
        part = 1 if self.output == "net" else self.output
        return value if part is None else pick(value, part)

    def has(self, rule: dfa.Rule) -> bool:
        """Tell whether the rule can be put on it: products lead through chains of Linear layers only."""
        if isinstance(rule, dfa.HybridDFA) and not (self.runs if rule.direct == "inside" else self.parts):
            return False
        if getattr(rule, "init", None) != "product" or not rule.wide:
            return True
        return self.chained and not (self.convolutional and nn.Conv2d in rule.chooses)

    def convert(self, model: nn.Module, rule: Any) -> nn.Module:
        return dfa.convert(model, rule, output=self.output, example=self.x(2).to(next(model.parameters()).dtype))


NETS = {
    "mlp": Net(MLP, (5,), "net.4"),
    "mlp-3d": Net(MLP, (3, 5), "net.4"),
    "conv": Net(ConvNet, (2, 7, 7), "classifier.6", convolutional=True, parts=True),
    "stages": Net(Stages, (2, 9, 8), "head", chained=False, convolutional=True, parts=True),
    "tokens": Net(Tokens, (3, 5), "head", chained=False, runs=False, parts=True),
    "pooled": Net(Pooled, (3, 5), "head", chained=False, runs=False, parts=True),
    "residual": Net(Residual, (5,), "head", chained=False, runs=False, parts=True),
    "tied": Net(Tied, (5,), "head", chained=False, runs=False, parts=True),
    "dict": Net(lambda: Returning(as_dict), (5,), "net.4", output="logits"),
    "tuple": Net(lambda: Returning(as_tuple), (5,), "net.4", output=1),
    "namedtuple": Net(lambda: Returning(as_point), (5,), "net.4", output="logits"),
    "record": Net(lambda: Returning(as_record), (5,), "net.4", output="logits"),
    "frozen-record": Net(lambda: Returning(as_frozen_record), (5,), "net.4", output="logits"),
    "module": Net(lambda: Returning(as_tuple), (5,), "net.4", output="net"),
}
nets = pytest.mark.parametrize("net", NETS.values(), ids=NETS.keys())
pairs = pytest.mark.parametrize(
    ("rule", "net"),
    [pytest.param(r, n, id=f"{i}-{j}") for i, r in {**RULES, **BETWEEN}.items() for j, n in NETS.items() if n.has(r)],
)


def fresh(net: Net, rule: Any = None, seed: int = 0) -> nn.Module:
    """Build a net with weights of a seed, and convert it."""
    torch.manual_seed(seed)
    model = net.build()
    return model if rule is None else net.convert(model, rule)


def gradients(
    model: nn.Module, net: Net, x: Tensor, loss: Callable[[Tensor], Tensor] | None = None, seed: int = 1
) -> dict[str, Tensor]:
    """Return the gradients of one forward and backward pass by name, None for a parameter that got none."""
    model.zero_grad()
    torch.manual_seed(seed)  # of the dropout
    out = model(x)
    (loss or squared)(net.logits(out)).backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def squared(y: Tensor) -> Tensor:
    """Return a loss of no symmetry: mean square distance from a ramp."""
    return (y - torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).square().mean()


def same(a: dict[str, Tensor], b: dict[str, Tensor], rtol: float = 1e-9, atol: float = 1e-11) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=rtol, atol=atol, msg=lambda m, name=name: f"{name}: {m}")


def away(a: Tensor, b: Tensor) -> float:
    """Return the relative difference."""
    return ((a - b).norm() / b.norm()).item()


def fingerprint(model: nn.Module) -> dict[str, Any]:
    """Describe all of a model that converting it could change."""
    return {
        "state": {k: v.clone().tolist() for k, v in model.state_dict().items()},
        "learns": {n: p.requires_grad for n, p in model.named_parameters()},
        "grads": {n: p.grad is None for n, p in model.named_parameters()},
        "modules": {
            n: (type(m), m.training, tuple(m.__dict__), *(len(getattr(m, h)) for h in _HOOKS))
            for n, m in model.named_modules()
        },
    }


_HOOKS = ("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks", "_forward_hooks_with_kwargs")
