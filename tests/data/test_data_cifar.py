import dataclasses
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from torchdfa.data import DataError, load
from torchdfa.data.cifar import CIFAR10, CIFAR100, TINY_IMAGENET100_32, Pickled, load_cifar

LAYOUTS = {
    layout.title: dataclasses.replace(layout, train_count=20, test_count=4)
    for layout in (CIFAR10, CIFAR100, TINY_IMAGENET100_32)
}
SMALL = LAYOUTS["CIFAR-10"]
VERSIONS = [(layout, version) for layout in LAYOUTS.values() for version in layout.versions]
PYTHON, BINARY = SMALL.versions


def write_version(root, layout, version, seed=0):
    """Write a set and return what must be read: pixels and labels of the training and test images."""
    generator = np.random.default_rng(seed)
    folder = root / version.folder
    folder.mkdir(parents=True)
    names = [f"name {index}" for index in range(layout.classes)]
    if isinstance(version, Pickled):
        (folder / version.names).write_bytes(pickle.dumps({version.names_key: names}, protocol=2))
    else:
        (folder / version.names).write_text("\n".join(names) + "\n\n")
    written = []
    for files, total in ((version.train, layout.train_count), (version.test, layout.test_count)):
        count = total // len(files)
        parts = []
        for file in files:
            pixels = generator.integers(0, 256, (count, 3072), dtype=np.uint8)
            labels = generator.integers(0, layout.classes, count)
            parts.append((pixels, labels))
            if isinstance(version, Pickled):
                content = {"data": pixels, version.label_key: labels.tolist(), "filenames": ["x.png"] * count}
                (folder / file).write_bytes(pickle.dumps(content, protocol=2))
            else:
                coarse = np.full((count, version.label_bytes - 1), 99)
                records = np.concatenate([coarse, labels[:, None], pixels], axis=1).astype(np.uint8)
                (folder / file).write_bytes(records.tobytes())
        written.append(tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
    return written


@pytest.mark.parametrize(("layout", "version"), VERSIONS, ids=[version.folder for _, version in VERSIONS])
@pytest.mark.parametrize("direct", [False, True])
def test_reads_every_version(tmp_path, layout, version, direct):
    written = write_version(tmp_path, layout, version)
    read = load_cifar(layout, tmp_path / version.folder if direct else tmp_path, download=False)
    for (pixels, labels), images in zip(written, read, strict=True):
        assert images.shape == (3, 32, 32)
        assert np.array_equal(images.images.numpy(), pixels.reshape(-1, 3, 32, 32))
        assert images.labels.tolist() == labels.tolist()
        assert images.classes == tuple(f"name {index}" for index in range(layout.classes))


def test_prefers_the_python_version(tmp_path):
    (_, labels), _ = write_version(tmp_path, SMALL, PYTHON, seed=1)
    write_version(tmp_path, SMALL, BINARY, seed=2)
    assert load_cifar(SMALL, tmp_path, False)[0].labels.tolist() == labels.tolist()


def test_reads_pickles_of_python_2(tmp_path):
    """The official files hold byte strings as text and a dtype whose flags are integers."""
    write_version(tmp_path, SMALL, PYTHON)
    pixels = np.arange(4 * 3072, dtype=np.int64).astype(np.uint8).reshape(4, 3072)
    raw = pixels.tobytes()
    stream = b"".join(
        [
            b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R",
            b"(K\x01K\x04M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R",
            b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb",
            b"\x89T" + len(raw).to_bytes(4, "little") + raw + b"tb",
            b"U\x06labels](K\x01K\x02K\x03K\x04eu.",
        ]
    )
    for name in PYTHON.train:
        (tmp_path / PYTHON.folder / name).write_bytes(stream)
    train, _ = load_cifar(SMALL, tmp_path, False)
    assert np.array_equal(train.images[:4].numpy().reshape(4, 3072), pixels)
    assert train.labels[:8].tolist() == [1, 2, 3, 4, 1, 2, 3, 4]


class Payload:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("name", [PYTHON.train[2], PYTHON.test[0], PYTHON.names])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_refuses_a_malicious_pickle_without_running_it(tmp_path, name, protocol):
    write_version(tmp_path, SMALL, PYTHON)
    evidence = tmp_path / "executed"
    path = tmp_path / PYTHON.folder / name
    path.write_bytes(pickle.dumps({"labels": Payload(os.mkdir, str(evidence))}, protocol=protocol))
    with pytest.raises(DataError, match=r"reference to \w+\.mkdir") as caught:
        load_cifar(SMALL, tmp_path, False)
    assert str(path) in str(caught.value)
    assert not evidence.exists()
    # The same file does harm when it is read without care, so that the check above means something.
    pickle.loads(path.read_bytes())
    assert evidence.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cnumpy\nload\n(S'x'\ntR.",
        b"cnumpy.core.multiarray\nscalar\n.",
        b"c_codecs\nencode\n(S'x'\nS'rot13'\ntR.",
        b"cnumpy\ndtype\n(S'O'\ntR.",
        b"cnumpy\nndarray\n(tR.",
        b"cnumpy\nndarray\n)\x81.",
        b"Pidentifier\n.",
        b"\x82\x01.",
        b"",
        b"garbage",
        b"]\x00",
    ],
)
def test_refuses_other_pickles(tmp_path, content):
    write_version(tmp_path, SMALL, PYTHON)
    (tmp_path / PYTHON.folder / PYTHON.test[0]).write_bytes(content)
    with pytest.raises(DataError, match="test_batch: found a pickle that is broken or unsafe"):
        load_cifar(SMALL, tmp_path, False)


RIGHT = {"data": np.zeros((4, 3072), np.uint8), "labels": [0, 1, 2, 3]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "pickled list"),
        ({"labels": [0] * 4}, r"keys \['labels'\], expected 'data'"),
        ({"data": RIGHT["data"]}, "expected 'labels'"),
        (RIGHT | {"data": [1]}, "'data' of list"),
        (RIGHT | {"data": np.zeros((3, 3072), np.uint8)}, r"shape \(3, 3072\)"),
        (RIGHT | {"data": np.zeros((4, 3072), np.float32)}, "dtype 'f4'"),
        (RIGHT | {"data": np.zeros((3072, 4), np.uint8).T}, "C order"),
        (RIGHT | {"labels": [0, 1, 2]}, "no list of 4 integers"),
        (RIGHT | {"labels": [0, 1, 2, "3"]}, "no list of 4 integers"),
        (RIGHT | {"labels": [0, 1, 2, 10]}, "label 10 at image 3"),
        (RIGHT | {"labels": [-1, 1, 2, 9]}, "label -1 at image 0"),
        (RIGHT | {"labels": [0, 1, 2, 1 << 70]}, "beyond 64 bits"),
    ],
)
def test_checks_what_a_pickle_holds(tmp_path, content, message):
    write_version(tmp_path, SMALL, PYTHON)
    path = tmp_path / PYTHON.folder / PYTHON.test[0]
    path.write_bytes(pickle.dumps(RIGHT, protocol=2))
    load_cifar(SMALL, tmp_path, False)
    path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(DataError, match=message) as caught:
        load_cifar(SMALL, tmp_path, False)
    assert str(path) in str(caught.value)


def test_array_made_without_its_state_is_refused(tmp_path):
    write_version(tmp_path, SMALL, PYTHON)
    bare = b"}(S'data'\ncnumpy.core.multiarray\n_reconstruct\n)\x81S'labels'\n]u."
    (tmp_path / PYTHON.folder / PYTHON.test[0]).write_bytes(bare)
    with pytest.raises(DataError, match=r"'data' of shape \(\)"):
        load_cifar(SMALL, tmp_path, False)


def test_any_damage_to_a_pickle_is_an_error_or_changes_only_values(tmp_path):
    """Bit flips and truncation raise DataError or nothing, whatever byte they hit."""
    write_version(tmp_path, SMALL, PYTHON)
    path = tmp_path / PYTHON.folder / PYTHON.test[0]
    whole = path.read_bytes()
    head, tail = 400, len(whole) - 200
    refused = 0
    for position in [*range(head), *range(tail, len(whole))]:
        flipped = bytearray(whole)
        flipped[position] ^= 1 << position % 8
        for content in (bytes(flipped), whole[:position]):
            path.write_bytes(content)
            try:
                PYTHON.read_records(path, 4)
            except DataError:
                refused += 1
            else:
                assert content == bytes(flipped), "a truncated pickle was read"
    assert refused > 700


@pytest.mark.parametrize("change", [-1, 1, -3073, 3073])
def test_binary_of_another_size_is_refused(tmp_path, change):
    write_version(tmp_path, SMALL, BINARY)
    path = tmp_path / BINARY.folder / BINARY.train[1]
    content = path.read_bytes()
    path.write_bytes((content + bytes(3073))[: len(content) + change])
    with pytest.raises(DataError, match=f"found {12292 + change:,} bytes, expected 12,292 bytes") as caught:
        load_cifar(SMALL, tmp_path, False)
    assert str(path) in str(caught.value)


def test_binary_label_out_of_range_is_refused(tmp_path):
    write_version(tmp_path, SMALL, BINARY)
    path = tmp_path / BINARY.folder / BINARY.train[1]
    content = bytearray(path.read_bytes())
    content[2 * 3073] = 10
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"data_batch_2\.bin: found label 10 at image 2, expected labels in 0\.\.9"):
        load_cifar(SMALL, tmp_path, False)


@pytest.mark.parametrize("version", SMALL.versions)
@pytest.mark.parametrize("part", ["train", "names"])
def test_incomplete_folder_names_the_missing_file(tmp_path, version, part):
    write_version(tmp_path, SMALL, version)
    name = version.names if part == "names" else version.train[3]
    (tmp_path / version.folder / name).unlink()
    with pytest.raises(DataError, match=f"{name}: found no such file"):
        load_cifar(SMALL, tmp_path, download=True)


@pytest.mark.parametrize(("content", "message"), [(b"a\nb\n", "2 class names, expected 10"), (b"\xff\xfe", "UTF-8")])
def test_wrong_class_names(tmp_path, content, message):
    write_version(tmp_path, SMALL, BINARY)
    (tmp_path / BINARY.folder / BINARY.names).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_cifar(SMALL, tmp_path, False)


def test_pickled_class_names_must_be_names(tmp_path):
    write_version(tmp_path, SMALL, PYTHON)
    (tmp_path / PYTHON.folder / PYTHON.names).write_bytes(pickle.dumps({"label_names": [1] * 10}))
    with pytest.raises(DataError, match="no list of names"):
        load_cifar(SMALL, tmp_path, False)


def test_missing_data_says_where_and_how(tmp_path):
    with pytest.raises(DataError) as caught:
        load("cifar10", tmp_path, download=False)
    for word in ("cifar-10-batches-py", "cifar-10-batches-bin", str(tmp_path), "--data-root", "TORCHDFA_DATA"):
        assert word in str(caught.value)


def test_the_stand_in_has_no_download_and_is_not_called_cifar(tmp_path):
    with pytest.raises(DataError, match=r"no download") as caught:
        load("tiny-imagenet100-32", tmp_path, download=True)
    assert not str(caught.value).startswith("CIFAR")


def test_download_is_read_with_the_restricted_reader(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10 as SOURCE

    calls = []

    def fake(url, download_root, filename, md5):
        calls.append((url, filename, md5))
        write_version(Path(download_root), SMALL, PYTHON)
        (Path(download_root) / filename).write_bytes(b"archive")

    monkeypatch.setattr("torchvision.datasets.utils.download_and_extract_archive", fake)
    train, test = load_cifar(SMALL, tmp_path / "new", download=True)
    assert (len(train), len(test)) == (20, 4)
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == [PYTHON.folder]
    load_cifar(SMALL, tmp_path / "new", download=True)
    assert calls == [(SOURCE.url, SOURCE.filename, SOURCE.tgz_md5)]


def test_real_cifar10(real_data):
    dataset = load("cifar10", real_data("cifar-10-batches-bin"), download=False)
    assert (len(dataset.train), len(dataset.test)) == (50_000, 10_000)
    assert torch.bincount(dataset.train.labels).tolist() == [5000] * 10
    assert dataset.train.classes[:3] == ("airplane", "automobile", "bird")


def test_real_tiny_imagenet(real_data):
    dataset = load("tiny-imagenet100-32", real_data("tiny-imagenet100-32"), download=False)
    assert torch.bincount(dataset.train.labels).tolist() == [500] * 100
    assert torch.bincount(dataset.test.labels).tolist() == [50] * 100
