"""Text for language models: WikiText-2 by words, tiny Shakespeare by characters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from torchdfa.data.errors import DataError
from torchdfa.data.sources import damaged, data_root, missing, places, read_bytes

_END = "<eos>"
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
