import pytest
import torch

from torchdfa.data import Corpus, DataError, Segments, TextBatches, load_text
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


def test_the_most_frequent_tokens_are_kept():
    text = torch.tensor([0, 1, 1, 2, 2, 2, 3, 4])
    corpus = Corpus("t", ("a", "b", "c", "<unk>", "d"), text, torch.tensor([3, 2, 4]), torch.tensor([1, 0]))
    few = corpus.most_frequent(3)
    assert few.vocabulary == ("<unk>", "c", "b")
    assert [part.tolist() for part in (few.train, few.validation, few.test)] == [
        [0, 2, 2, 1, 1, 1, 0, 0], [0, 1, 0], [2, 0]
    ]  # fmt: skip
    assert corpus.most_frequent(5) is corpus
    with pytest.raises(DataError, match="vocabulary=1, expected 2 or more"):
        corpus.most_frequent(1)


TEXT = torch.arange(1000)


def test_ordered_batches_are_the_segments_and_every_token_is_counted():
    batches, segments = TextBatches(TEXT, 3, 40), Segments(TEXT, 3, 40)
    assert len(batches) == len(segments) == 9
    for i, ((x, y), (a, b)) in enumerate(zip(batches.epoch(5), segments, strict=True)):
        assert torch.equal(x, a) and torch.equal(y, b.flatten()) and batches.count(i) == len(y)
    assert torch.equal(next(batches.epoch(0, 8))[0], segments[8][0])


def test_windows_lie_apart_and_are_drawn_anew_every_epoch():
    batches = TextBatches(TEXT, 4, 30, shuffle=True, seed=1)
    pairs = list(batches.epoch(0))
    assert len(pairs) == len(batches) == 8 and {batches.count(i) for i in range(8)} == {120}
    seen = torch.cat([x.flatten() for x, _ in pairs])
    assert len(seen.unique()) == len(seen) == 960
    for x, y in pairs:
        assert torch.equal(y.view(4, 30), x + 1) and torch.equal(x[:, 1:], x[:, :-1] + 1)
    again, later = list(batches.epoch(0, 3)), list(batches.epoch(1))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(pairs[3:], again, strict=True))
    first = lambda batch: {int(row[0]) % 30 for row in batch[0]}  # noqa: E731
    assert first(pairs[0]) != first(later[0]) and first(later[0]) == first(later[1])
    other = TextBatches(TEXT, 4, 30, shuffle=True, seed=2)
    assert not torch.equal(next(other.epoch(0))[0], pairs[0][0])


@pytest.mark.parametrize("shuffle", [False, True])
def test_ranks_share_the_rows_of_a_batch(shuffle):
    whole = TextBatches(TEXT, 5, 30, shuffle=shuffle)
    parts = [TextBatches(TEXT, 5, 30, shuffle=shuffle, rank=r, world_size=2) for r in range(2)]
    for (x, y), (a, _), (b, target) in zip(whole.epoch(0), *(p.epoch(0) for p in parts), strict=True):
        assert torch.equal(x[::2], a) and torch.equal(x[1::2], b)
        assert torch.equal(y.view(x.shape)[1::2].flatten(), target)


def test_texts_that_are_too_short():
    with pytest.raises(ValueError, match="10 tokens make no batch of 3 windows of 4 tokens"):
        TextBatches(TEXT[:10], 3, 4, shuffle=True)
    for shuffle in (False, True):
        with pytest.raises(ValueError, match=r"^sequence=0, expected 1 or more"):
            TextBatches(torch.arange(100), 2, 0, shuffle=shuffle)
        for rank in (-1, 2, 5):
            with pytest.raises(ValueError, match=rf"^rank={rank}, expected one of 0\.\.1"):
                TextBatches(torch.arange(100), 2, 4, shuffle=shuffle, rank=rank, world_size=2)
    with pytest.raises(ValueError, match="batch_size=1, expected a stream for each of 2 processes"):
        TextBatches(TEXT, 1, 4, world_size=2)
