import pytest
import torch

from torchdfa.data import DataError, Segments, load_text
from torchdfa.data.sources import data_root


def write(root, folder, **parts):
    (root / folder).mkdir()
    for name, text in parts.items():
        (root / folder / f"{name}.txt").write_text(text)


def test_words(tmp_path):
    write(tmp_path, "wikitext-2", train="a b <unk>\n\n c a\n", valid="c\n", test="a <unk>\nb")
    corpus = load_text("wikitext-2", tmp_path)
    words = lambda tokens: " ".join(corpus.vocabulary[i] for i in tokens)  # noqa: E731
    assert corpus.vocabulary == ("a", "b", "<unk>", "<eos>", "c")
    assert words(corpus.train) == "a b <unk> <eos> <eos> c a <eos>"
    assert words(corpus.validation) == "c <eos>"
    assert words(corpus.test) == "a <unk> <eos> b <eos>"


def test_characters(tmp_path):
    text = "To be, or not to be.\n" * 20
    write(tmp_path, "tinyshakespeare", input=text)
    corpus = load_text("tiny-shakespeare", tmp_path)
    assert [len(t) for t in (corpus.train, corpus.validation, corpus.test)] == [378, 21, 21]
    assert "".join(corpus.vocabulary[i] for t in (corpus.train, corpus.validation, corpus.test) for i in t) == text


def test_what_is_missing_or_damaged_is_said(tmp_path):
    with pytest.raises(DataError, match=r"unknown text 'moby'.*wikitext-2, tiny-shakespeare"):
        load_text("moby", tmp_path)
    with pytest.raises(DataError, match=r"WikiText-2 not found. Searched: .*wikitext-2.*train.txt, valid.txt"):
        load_text("wikitext-2", tmp_path)
    write(tmp_path, "wikitext-2", train="a\n", valid="b\n", test="a\n")
    with pytest.raises(DataError, match=r"valid.txt: found the word 'b'"):
        load_text("wikitext-2", tmp_path)
    (tmp_path / "wikitext-2/valid.txt").unlink()
    with pytest.raises(DataError, match=r"valid.txt: found no such file"):
        load_text("wikitext-2", tmp_path)
    (tmp_path / "tinyshakespeare").mkdir()
    (tmp_path / "tinyshakespeare/input.txt").write_bytes(b"\xff" * 100)
    with pytest.raises(DataError, match="not UTF-8"):
        load_text("tiny-shakespeare", tmp_path)


def test_segments_follow_one_another():
    segments = Segments(torch.arange(24), 2, 4)
    assert len(segments) == 3 and segments.length == 11
    whole = [torch.cat(part, 1) for part in zip(*segments, strict=True)]
    assert whole[0].tolist() == [list(range(11)), list(range(11, 22))]
    assert whole[1].tolist() == [list(range(1, 12)), list(range(12, 23))]
    assert segments[2][0].shape == (2, 3)
    with pytest.raises(IndexError):
        segments[3]
    for bad in ((torch.arange(2), 2, 4), (torch.arange(9), 0, 4), (torch.arange(9), 2, 0)):
        with pytest.raises(ValueError):
            Segments(*bad)


@pytest.mark.parametrize(
    ("name", "vocabulary", "tokens"),
    [("wikitext-2", 33278, [2_088_628, 217_646, 245_569]), ("tiny-shakespeare", 65, [1_003_856, 55_769, 55_769])],
)
def test_the_real_texts(name, vocabulary, tokens):
    folder = {"wikitext-2": "wikitext-2", "tiny-shakespeare": "tinyshakespeare"}[name]
    if not (data_root() / folder).is_dir():
        pytest.skip(f"no {folder} in {data_root()}")
    corpus = load_text(name)
    assert len(corpus.vocabulary) == vocabulary
    assert [len(t) for t in (corpus.train, corpus.validation, corpus.test)] == tokens
