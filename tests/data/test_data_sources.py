import urllib.error
from pathlib import Path

import pytest

from torchdfa.data import DataError, load
from torchdfa.data.sources import data_root, download_folder, places, read_bytes


def test_data_root_in_order_of_precedence(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHDFA_DATA", str(tmp_path / "variable"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert data_root(tmp_path / "argument") == data_root(str(tmp_path / "argument")) == tmp_path / "argument"
    assert data_root() == tmp_path / "variable"
    monkeypatch.setenv("TORCHDFA_DATA", "")
    assert data_root() == tmp_path / "cache" / "torchdfa"
    monkeypatch.delenv("TORCHDFA_DATA")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_root() == tmp_path / ".cache" / "torchdfa"
    assert data_root("~/data") == tmp_path / "data"


def test_places():
    root = Path("/a/MNIST")
    assert places(root, ["mnist", "MNIST/raw"]) == [root / "mnist", root / "MNIST/raw", root / "raw"]
    assert places(root / "raw", ["MNIST/raw"]) == [root / "raw/MNIST/raw", root / "raw"]
    assert places(Path("/"), ["MNIST/raw"]) == [Path("/MNIST/raw")]


def test_unreadable_file(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_bytes(tmp_path)


def half(scratch, error):
    (Path(scratch) / "set").mkdir()
    (Path(scratch) / "set" / "part").write_bytes(b"half")
    raise error


@pytest.mark.parametrize("error", [urllib.error.URLError("no network"), RuntimeError("bad md5"), EOFError()])
def test_failed_download_leaves_nothing(tmp_path, error):
    with pytest.raises(DataError, match=f"The set could not be downloaded.*{type(error).__name__}") as caught:
        download_folder("The set", tmp_path / "root", "set", lambda scratch: half(scratch, error))
    assert str(tmp_path / "root" / "set") in str(caught.value) and "TORCHDFA_DATA" in str(caught.value)
    assert list((tmp_path / "root").iterdir()) == []


def test_interrupted_download_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        download_folder("The set", tmp_path, "set", lambda scratch: half(scratch, KeyboardInterrupt()))
    assert list(tmp_path.iterdir()) == []


def test_download_appears_only_when_complete(tmp_path):
    def download(scratch):
        folder = Path(scratch) / "Set" / "raw"
        folder.mkdir(parents=True)
        assert folder.parents[2] == tmp_path
        (folder / "file").write_bytes(b"whole")
        assert not (tmp_path / "Set").exists()

    assert download_folder("The set", tmp_path, "Set/raw", download) == tmp_path / "Set" / "raw"
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == [
        "Set",
        "Set/raw",
        "Set/raw/file",
    ]


def test_a_download_finished_by_another_process_is_taken(tmp_path):
    def download(scratch):
        for folder, content in ((Path(scratch) / "set", b"mine"), (tmp_path / "set", b"other")):
            folder.mkdir()
            (folder / "file").write_bytes(content)

    assert (download_folder("The set", tmp_path, "set", download) / "file").read_bytes() == b"other"
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_root_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="could not be downloaded"):
        download_folder("The set", tmp_path / "file", "set", lambda scratch: None)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "mnist", "fashion-mnist"])
def test_no_network_is_a_clear_error(tmp_path, monkeypatch, name):
    def refuse(*arguments, **options):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(DataError, match="could not be downloaded"):
        load(name, tmp_path)
    assert list(tmp_path.iterdir()) == []
