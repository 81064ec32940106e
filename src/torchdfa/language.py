"""Language models: recurrent ones, and a small GPT. A model is data; its ``build`` makes a plain module.

>>> import torch
>>> net = GPT(layers=2, heads=2, width=16, context=8).build(10)
>>> net(torch.zeros(1, 8, dtype=torch.int64)).shape
torch.Size([1, 8, 10])
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchdfa.settings import demand, one_of, share, whole

Kind = Literal["lstm", "gru", "rnn"]


@dataclass(frozen=True, kw_only=True)
class LanguageModel:
    """What all language models have in common: ``build`` makes a module whose last layer is ``head``.

    Attributes:
        stateful: The module takes a state beside the tokens, and returns one beside the logits.
    """

    stateful: ClassVar[bool] = False

    @property
    def longest(self) -> int | None:
        """Most tokens that the module takes; None for any number."""
        return None

    def build(self, vocabulary: int) -> nn.Module:
        """Make the model, its weights drawn from torch's global random generator.

        Args:
            vocabulary: Number of tokens.
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class RecurrentLM(LanguageModel):
    """Embedding, recurrent layers, a Linear layer (Zaremba et al. 2014).

    Args:
        kind: Of the layers.
        layers: Their number.
        width: Of the embedding and the states.
        dropout: Share of what is dropped before, between and after the layers.
    """

    kind: Kind = "lstm"
    layers: int = 2
    width: int = 200
    dropout: float = 0.0

    stateful = True

    def __post_init__(self) -> None:
        demand(
            self,
            kind=one_of(self.kind, get_args(Kind)),
            layers=whole(self.layers),
            width=whole(self.width),
            dropout=share(self.dropout),
        )

    def build(self, vocabulary: int) -> nn.Module:
        """Make the model: tokens (N, T), and a state or None, to logits (N, T, vocabulary) and the state."""
        return _Recurrent(self, vocabulary)


@dataclass(frozen=True, kw_only=True)
class GPT(LanguageModel):
    """A small transformer decoder (Radford et al. 2019): norms first, learned positions, untied head.

    Args:
        layers: Blocks.
        heads: Attention heads of a block.
        width: Of the embedding.
        context: Most tokens that it takes.
        dropout: Share of what is dropped behind the embedding and each branch.
    """

    layers: int = 4
    heads: int = 4
    width: int = 128
    context: int = 128
    dropout: float = 0.0

    def __post_init__(self) -> None:
        sizes = {name: whole(getattr(self, name)) for name in ("layers", "heads", "width", "context")}
        demand(self, **sizes, dropout=share(self.dropout))
        demand(self, width=(self.width % self.heads == 0, f"a multiple of heads={self.heads}"))

    @property
    def longest(self) -> int:
        """Most tokens that the module takes."""
        return self.context

    def build(self, vocabulary: int) -> nn.Module:
        """Make the model: tokens (N, T) to logits (N, T, vocabulary)."""
        return _Transformer(self, vocabulary)


class _Recurrent(nn.Module):
    def __init__(self, config: RecurrentLM, vocabulary: int):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, config.width)
        self.dropout = nn.Dropout(config.dropout)
        make = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[config.kind]
        between = config.dropout if config.layers > 1 else 0.0
        self.recurrent = make(config.width, config.width, config.layers, batch_first=True, dropout=between)
        self.head = nn.Linear(config.width, vocabulary)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)

    def forward(self, tokens: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        y, state = self.recurrent(self.dropout(self.embedding(tokens)), state)
        return self.head(self.dropout(y)), state


class Block(nn.Module):
    """A block of a transformer: causal self-attention and a two-layer perceptron, each behind a norm, each residual.

    Args:
        width: Of its input and output.
        heads: Attention heads.
        dropout: Share of each branch that is dropped.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, of the shape of x, (N, T, width)."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.dropout(self.mix(seen))
        return x + self.dropout(self.down(F.gelu(self.up(self.norm2(x)))))


class _Transformer(nn.Module):
    def __init__(self, config: GPT, vocabulary: int):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, config.width)
        self.position = nn.Parameter(torch.zeros(config.context, config.width))
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config.width, config.heads, config.dropout) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, vocabulary, bias=False)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for block in self.blocks:  # a residual stream sums 2 · layers branches
            assert isinstance(block, Block)
            for last in (block.mix, block.down):
                nn.init.normal_(last.weight, std=0.02 * (2 * config.layers) ** -0.5)
        nn.init.normal_(self.position, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        if tokens.shape[1] > len(self.position):
            raise ValueError(
                f"GPT: the input has {tokens.shape[1]} tokens, expected at most context={len(self.position)}. Give it "
                "the last of them alone, or build the model with a larger context."
            )
        x = self.dropout(self.embedding(tokens) + self.position[: tokens.shape[1]])
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))
