"""Files are whole, or as they were before."""

import math
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from torchdfa.files import write_atomically, write_csv, write_rows


def names(folder):
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failed_write_leaves_the_old_file(tmp_path, error):
    def fail(file):
        file.write(b"half")
        raise error

    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(error):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old" and names(tmp_path) == ["file"]
    write_atomically(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new" and names(tmp_path) == ["file"]


def test_a_file_is_on_disk_before_it_takes_the_others_place(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(os, "fsync", lambda number: calls.append("fsync"))
    monkeypatch.setattr(os, "replace", lambda a, b: calls.append(("replace", Path(a).read_bytes(), Path(b).name)))
    write_atomically(tmp_path / "file", lambda file: file.write(b"whole"))
    assert calls == ["fsync", ("replace", b"whole", "file")]


def test_a_csv_quotes_what_needs_it(tmp_path):
    write_csv(tmp_path / "a.csv", ("name", "n"), [{"name": "a, ±b", "n": 1}, {"name": 'say "c"', "n": ""}])
    assert (tmp_path / "a.csv").read_bytes() == 'name,n\n"a, ±b",1\n"say ""c""",\n'.encode()


def test_rows_are_a_data_class_s_fields(tmp_path):
    @dataclass
    class Row:
        name: str
        n: int
        x: float

    rows = [Row("a", 12345678, 1 / 3), Row("b", 0, math.nan)]
    write_rows(tmp_path / "a.csv", Row, rows)
    assert (tmp_path / "a.csv").read_text() == "name,n,x\na,12345678,0.333333\nb,0,nan\n"
    write_rows(tmp_path / "a.csv", Row, rows, digits=2, nan="")
    assert (tmp_path / "a.csv").read_text() == "name,n,x\na,12345678,0.33\nb,0,\n"
    write_rows(tmp_path / "a.csv", Row, [])
    assert (tmp_path / "a.csv").read_text() == "name,n,x\n"


def test_an_error_without_a_number_keeps_its_words(tmp_path):
    def fails(file):
        raise OSError("encoder error")

    with pytest.raises(OSError, match="encoder error"):
        write_atomically(tmp_path / "x", fails)
