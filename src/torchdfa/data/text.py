"""Text for language models: WikiText-2 by words, tiny Shakespeare by characters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from torchdfa.data.batches import generator
from torchdfa.data.errors import DataError
from torchdfa.data.sources import damaged, data_root, missing, places, read_bytes

_END, _UNKNOWN = "<eos>", "<unk>"
# Shares of tiny Shakespeare that are held out, at its end: for validation, for the test.
_HELD_OUT = 20


@dataclass(frozen=True)
class Corpus:
    """A text in three parts, as indices of its tokens.

    Attributes:
        name: Of the text.
        vocabulary: The tokens, by index.
        train: Tokens to learn from, int64 (T,).
        validation: Tokens to choose settings by.
        test: Tokens to report on.
    """

    name: str
    vocabulary: tuple[str, ...]
    train: Tensor
    validation: Tensor
    test: Tensor

    def most_frequent(self, count: int) -> Corpus:
        """Return the text with a vocabulary of the training part's most frequent tokens, all others being ``<unk>``.

        Args:
            count: Of tokens, ``<unk>`` being one.

        Raises:
            DataError: The count is below 2.
        """
        if count < 2:
            raise DataError(f"vocabulary={count}, expected 2 or more tokens")
        if count >= len(self.vocabulary):
            return self
        often = torch.bincount(self.train, minlength=len(self.vocabulary)).argsort(descending=True, stable=True)
        kept = [i for i in often.tolist() if self.vocabulary[i] != _UNKNOWN][: count - 1]
        index = torch.zeros(len(self.vocabulary), dtype=torch.int64)
        index[kept] = torch.arange(1, count)
        words = (_UNKNOWN, *(self.vocabulary[i] for i in kept))
        return replace(
            self, vocabulary=words, train=index[self.train], validation=index[self.validation], test=index[self.test]
        )


def load_text(name: str, root: Path | str | None = None) -> Corpus:
    """Load a text into memory.

    Args:
        name: ``"wikitext-2"``: words, a line's end being one, with the vocabulary of the training part. Or
            ``"tiny-shakespeare"``: characters, of which the last twentieth is the test part and the one before it the
            validation part.
        root: Folder of all data, as :func:`torchdfa.data.load` takes it.

    Raises:
        DataError: The name is unknown, or the files are missing or damaged.
    """
    if name not in TEXTS:
        raise DataError(f"unknown text {name!r}; expected one of {', '.join(TEXTS)}")
    return TEXTS[name](data_root(root))


def _wikitext(root: Path) -> Corpus:
    files = ("train.txt", "valid.txt", "test.txt")
    folder = _folder("WikiText-2", root, ("wikitext-2",), files, "They are its parts as text, one paragraph a line.")
    parts = [[[*line.split(), _END] for line in _read(folder / file).splitlines()] for file in files]
    vocabulary = tuple(dict.fromkeys(word for line in parts[0] for word in line))
    index = {word: i for i, word in enumerate(vocabulary)}
    tokens = []
    for file, lines in zip(files, parts, strict=True):
        unknown = next((w for line in lines for w in line if w not in index), None)
        if unknown is not None:
            raise damaged(folder / file, f"the word {unknown!r}", "words of the training part (rare ones as <unk>)")
        tokens.append(torch.tensor([index[word] for line in lines for word in line]))
    return Corpus("wikitext-2", vocabulary, *tokens)


def _shakespeare(root: Path) -> Corpus:
    folder = _folder(
        "tiny Shakespeare", root, ("tinyshakespeare", "tiny-shakespeare"), ("input.txt",), "It is one text."
    )
    text = _read(folder / "input.txt")
    if len(text) < 2 * _HELD_OUT:
        raise damaged(folder / "input.txt", f"{len(text)} characters", "a text of about a million")
    vocabulary = tuple(sorted(set(text)))
    index = {character: i for i, character in enumerate(vocabulary)}
    tokens = torch.tensor([index[character] for character in text])
    held = len(tokens) // _HELD_OUT
    return Corpus("tiny-shakespeare", vocabulary, *tokens.split([len(tokens) - 2 * held, held, held]))


TEXTS: dict[str, Callable[[Path], Corpus]] = {"wikitext-2": _wikitext, "tiny-shakespeare": _shakespeare}

# How many tokens their vocabularies have.
VOCABULARIES = {"wikitext-2": 33278, "tiny-shakespeare": 65}


def _folder(title: str, root: Path, names: tuple[str, ...], files: tuple[str, ...], hint: str) -> Path:
    searched = places(root, names)
    for folder in searched:
        if (folder / files[0]).is_file():
            return folder
    raise missing(title, searched, ", ".join(files), hint)


def _read(path: Path) -> str:
    try:
        return read_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise damaged(path, f"bytes that are not UTF-8 text ({error.reason})", "text") from error


class Segments:
    """A text cut into segments that follow one another, many streams side by side.

    The text is divided into as many streams as a batch has rows; batch ``i`` holds the ``i``-th ``steps`` tokens of
    each, so that a recurrent model's state can be handed on from batch to batch. A batch is a function of its index.

    Args:
        tokens: The text, int64 (T,).
        batch_size: Streams.
        steps: Tokens a segment; the last segment may be shorter.

    Raises:
        ValueError: The text is too short for one step of every stream.
    """

    def __init__(self, tokens: Tensor, batch_size: int, steps: int):
        if batch_size < 1 or steps < 1:
            raise ValueError(f"batch_size={batch_size} and steps={steps}, expected positive numbers")
        length = (len(tokens) - 1) // batch_size
        if length < 1:
            raise ValueError(f"{len(tokens)} tokens make no batch of {batch_size} streams")
        self.steps, self.length = steps, length
        self._inputs = tokens[: batch_size * length].view(batch_size, length)
        self._targets = tokens[1 : batch_size * length + 1].view(batch_size, length)

    def __len__(self) -> int:
        """Return the number of batches."""
        return -(-self.length // self.steps)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return the tokens and the ones that follow each, both (batch_size, steps)."""
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        part = slice(index * self.steps, (index + 1) * self.steps)
        return self._inputs[:, part], self._targets[:, part]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Go through the batches in order."""
        return (self[i] for i in range(len(self)))


class TextBatches:
    """Batches of a text for a training loop: a function of seed, epoch and index alone, as :class:`Batches`.

    Ordered, the batches of an epoch follow one another as :class:`Segments` do. Shuffled, they are windows of the text
    that don't overlap, in an order and from a beginning that each epoch draws anew.

    Args:
        tokens: The text, int64 (T,).
        batch_size: Streams or windows a batch, over all ranks together.
        sequence: Tokens of each.
        shuffle: Whether to draw windows.
        seed: Of the windows.
        device: Of the batches.
        rank: Index of this process, which takes the rows ``rank::world_size``.
        world_size: Number of processes.

    Raises:
        ValueError: A number is out of range, or the text is too short for a batch.
    """

    def __init__(
        self,
        tokens: Tensor,
        batch_size: int,
        sequence: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
    ):
        if not 0 <= rank < world_size:
            raise ValueError(f"rank={rank}, expected one of 0..{world_size - 1}, as world_size={world_size}")
        if sequence < 1:
            raise ValueError(f"sequence={sequence}, expected 1 or more tokens")
        if batch_size < world_size:
            raise ValueError(f"batch_size={batch_size}, expected a stream for each of {world_size} processes or more")
        self._tokens, self._sequence, self._seed = tokens.to(device), sequence, seed
        self._batch_size, self._mine = batch_size, slice(rank, None, world_size)
        self._segments = None if shuffle else Segments(self._tokens, batch_size, sequence)
        # One window less than the text holds, so that all may begin later; the token after the last is a target.
        self._windows = (len(tokens) - 1) // sequence - 1
        if shuffle and self._windows < batch_size:
            raise ValueError(f"{len(tokens)} tokens make no batch of {batch_size} windows of {sequence} tokens")

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return self._windows // self._batch_size if self._segments is None else len(self._segments)

    def count(self, index: int) -> int:
        """Return how many tokens are to be told in a batch, over all ranks together."""
        if self._segments is None:
            return self._batch_size * self._sequence
        return self._batch_size * min(self._sequence, self._segments.length - index * self._sequence)

    def epoch(self, number: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Go through an epoch, from batch ``start`` on.

        Returns:
            Iterator over pairs: tokens (B, T), and the ones that follow each, (B · T,).
        """
        if self._segments is not None:
            pairs = (self._segments[i] for i in range(start, len(self)))
        else:
            draw = generator(self._seed, number)
            begin = int(torch.randint(self._sequence, (), generator=draw))
            order = torch.randperm(self._windows, generator=draw)
            pairs = (self._window(begin, order, i) for i in range(start, len(self)))
        return ((x[self._mine], y[self._mine].flatten()) for x, y in pairs)

    def _window(self, begin: int, order: Tensor, index: int) -> tuple[Tensor, Tensor]:
        chosen = order[index * self._batch_size : (index + 1) * self._batch_size] * self._sequence + begin
        places = (chosen[:, None] + torch.arange(self._sequence)).to(self._tokens.device)
        return self._tokens[places], self._tokens[places + 1]
