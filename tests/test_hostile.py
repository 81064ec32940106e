"""Files that somebody else made: every parser over damaged, random and malicious input."""

import gzip
import os
import struct
import sys
import time
import tracemalloc
import warnings
import zipfile
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from torchdfa.data import DataError

FUZZ = Path(__file__).parents[1] / "fuzz"
sys.path.insert(0, str(FUZZ))
pytest.importorskip("PIL")
pytest.importorskip("yaml")
pytest.importorskip("cv2")

from targets import TARGETS, run  # noqa: E402

from torchdfa.hardware.cells import LibertyError  # noqa: E402
from torchdfa.hardware.functions import render  # noqa: E402
from torchdfa.hardware.liberty import read_liberty  # noqa: E402
from torchdfa.tracking.weights import read_weights  # noqa: E402

# Inputs a parser; the long form is TORCHDFA_FUZZ=10000.
COUNT = int(os.environ.get("TORCHDFA_FUZZ", 100))
every = pytest.mark.parametrize("name", TARGETS)


@every
def test_good_input_is_read(name):
    """The seeds are what the fuzzers start from: if none of them were read, they would try error paths alone."""
    for seed in TARGETS[name].seeds():
        run(name, seed)


@st.composite
def damaged(draw, seeds):
    """A good input with bytes changed, cut out, repeated or put in, or cut off."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        how = draw(st.sampled_from(["change", "cut", "put", "end", "repeat"]))
        piece = draw(st.binary(min_size=1, max_size=9) | st.sampled_from(SPECIAL))
        if how == "change":
            data[at : at + len(piece)] = piece
        elif how == "cut":
            del data[at : at + draw(st.integers(1, 200))]
        elif how == "put":
            data[at:at] = piece
        elif how == "end":
            del data[at:]
        else:
            data[at:at] = data[at : at + 50] * draw(st.integers(1, 40))
    return bytes(data)


SPECIAL = [b"\xff" * 8, b"\0" * 8, b"-1", b"1e999", b"nan", b"9" * 400, b"[" * 300, b"\x7f\xff\xff\xff", "²".encode()]


@every
def test_damaged_input_is_read_or_refused(name):
    seeds = TARGETS[name].seeds()

    @settings(
        max_examples=COUNT // 20 if TARGETS[name].slow else COUNT,
        deadline=None,
        database=None,
        derandomize=COUNT == 100,
        suppress_health_check=list(HealthCheck),
    )
    @given(damaged(seeds) | st.binary(max_size=300) | st.text(max_size=100).map(lambda t: t.encode(errors="replace")))
    def check(data):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow and torch, on what they can't make sense of
            run(name, data)

    check()


def test_what_once_was_a_crash():
    for path in sorted(FUZZ.glob("corpus/*/*")):  # where fuzz/run.py puts what it finds
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run(path.parent.name, path.read_bytes())


# What is small and claims to be large, or names what it must not: refused, and before memory is taken or code is run.


@contextmanager
def little_memory(most=64 << 20):
    """Check that no more than so many bytes are allocated by Python at any time."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04Nr\xff\xff\xff\xff\x82\x01.",  # an index of 2**32 into the memo, and then an extension
        b"\x80\x04\x8e" + (1 << 40).to_bytes(8, "little") + b"x.",  # a terabyte of bytes
        b"\x80\x04\x8d" + (1 << 40).to_bytes(8, "little") + b"x.",  # of text
        b"\x80\x04\x96" + (1 << 40).to_bytes(8, "little") + b"x.",  # of a bytearray
        b"\x80\x04\x95" + (1 << 40).to_bytes(8, "little") + b"x.",  # a frame
        b"\x80\x02cnumpy\nndarray\n}X\x07\x00\x00\x00__new__c_codecs\nencode\nsN\x86b.",  # sets our stand-in's code
        b"\x80\x02c_codecs\nencode\nN}X\x0c\x00\x00\x00__defaults__(X\x06\x00\x00\x00latin1tsb\x86b.",
    ],
)
def test_a_pickle_that_claims_or_sets_what_it_must_not(tmp_path, content):
    from torchdfa.data.pickles import _ArrayType, _encode, read_pickle

    (tmp_path / "x").write_bytes(content)
    before = dict(vars(_ArrayType)), _encode.__defaults__
    with little_memory(), pytest.raises(DataError, match="broken or unsafe"):
        read_pickle(tmp_path / "x")
    assert (dict(vars(_ArrayType)), _encode.__defaults__) == before


def test_files_that_are_larger_than_any_of_their_kind(tmp_path, monkeypatch):
    from torchdfa.data import idx
    from torchdfa.data.cifar import Binary
    from torchdfa.data.pickles import read_pickle

    for read in (
        lambda p: read_pickle(p, 1000),
        lambda p: Binary("f", ("a",), ("b",), "n", 1).read_records(p, 2),
        lambda p: idx.read_idx(p, 3),
    ):
        with open(tmp_path / "x", "wb") as file:
            file.truncate(1 << 40)  # a terabyte of nothing
        with little_memory(), pytest.raises(DataError, match=r"1,099,511,627,776 bytes, expected at most"):
            read(tmp_path / "x")
    monkeypatch.setattr(idx, "LARGEST", 1 << 20)
    monkeypatch.setattr("torchdfa.hardware.liberty._LARGEST", 1 << 20)
    for name, parse in (("x.gz", lambda p: idx.read_idx(p, 3)), ("x.lib.gz", read_liberty)):
        (tmp_path / name).write_bytes(gzip.compress(bytes(200 << 20)))
        with little_memory(), pytest.raises(ValueError, match="more than 1,048,576 bytes"):
            parse(tmp_path / name)


def test_idx_headers_beyond_all_memory(tmp_path):
    (tmp_path / "x").write_bytes(struct.pack(">4I", 0x803, *[(1 << 32) - 1] * 3) + bytes(10))
    with little_memory(), pytest.raises(DataError, match="10 bytes of data"):
        from torchdfa.data.idx import read_idx

        read_idx(tmp_path / "x", 3)


@pytest.mark.parametrize("dtype, shape", [("<f8", (1 << 40,)), ("<f8", (1 << 20, 1 << 20, 1 << 20)), ("|O", (1,))])
def test_npz_headers_are_checked(tmp_path, dtype, shape):
    from torchdfa.data.arrays import read_arrays

    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("a.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(8))
    with little_memory(), pytest.raises(DataError, match="cannot be read as arrays of numbers"):
        read_arrays(tmp_path / "x.npz")


def test_an_npz_that_unpacks_to_too_much(tmp_path):
    from torchdfa.data.arrays import read_arrays

    np.savez_compressed(tmp_path / "x.npz", np.zeros(20 << 20, np.uint8))
    with little_memory(), pytest.raises(DataError, match="20,971,520 bytes in all of 1,000,000"):
        read_arrays(tmp_path / "x.npz", 1_000_000)
    assert read_arrays(tmp_path / "x.npz")["arr_0"].shape == (20 << 20,)


class Call:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    "content, message",
    [
        (Call(bytearray, 1 << 40), "bytearray"),
        (Call(torch.Tensor, 1 << 40), "torch"),
        (Call(os.mkdir, "/tmp/torchdfa-was-here"), "mkdir"),
        ({"x": 1 << 50}, "1125899906842624"),
    ],
)
def test_foreign_weights_that_name_other_things(tmp_path, old, content, message):
    torch.save({"a": content}, tmp_path / "x.pth", _use_new_zipfile_serialization=not old)
    with little_memory(), pytest.raises(DataError, match=message):
        read_weights(tmp_path / "x.pth")
    assert not os.path.exists("/tmp/torchdfa-was-here")


def test_compressed_weights_are_refused(tmp_path):
    torch.save({"a": torch.zeros(1000)}, tmp_path / "x.pth")
    with (
        zipfile.ZipFile(tmp_path / "x.pth") as old,
        zipfile.ZipFile(tmp_path / "y.pth", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for entry in old.namelist():
            new.writestr(entry, old.read(entry))
    assert read_weights(tmp_path / "x.pth")["a"].shape == (1000,)
    with pytest.raises(DataError, match="compressed"):
        read_weights(tmp_path / "y.pth")


def test_a_head_that_claims_more_weights_than_it_has(tmp_path):
    import torchdfa as dfa
    from torchdfa.online import OnlineHead

    path = tmp_path / "head.safetensors"
    OnlineHead((3, 4, 2), rule=dfa.BDFA(), lr=0.1).save(path)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].replace(b'in_features\\": 3', b'in_features\\": 999999999999')
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
    with little_memory(), pytest.raises(ValueError, match=r"0\.weight of shape \(4, 999999999999\), .*\(4, 3\)"):
        OnlineHead.load(path)


@pytest.mark.parametrize("part", [b"/* ", b'"', b"a(", b"a (b) {", b"a : b "])
def test_liberty_takes_no_more_than_linear_time(tmp_path, part):
    (tmp_path / "x.lib").write_bytes(b"library (x) { " + part * 100_000)
    started = time.process_time()
    with pytest.raises(LibertyError):
        read_liberty(tmp_path / "x.lib")
    assert time.process_time() - started < 20  # by the square it would be an hour


@pytest.mark.parametrize(
    "function", ["__import__('os')", "A & B; x", "(" * 5000, "A if B else C", "lambda: 0", "n[0]\\"]
)
def test_a_liberty_function_is_no_python(function):
    """What comes of it is compiled: only pins, by the name that the caller gives them, brackets and operators."""
    try:
        text = render(function, lambda pin: "n", lambda x: f"(M ^ {x})")
    except LibertyError:
        return
    assert not set(text) - set("nM()&|^ ")


@pytest.mark.parametrize(
    "text, message",
    [
        ("base: me", "base: 'me', expected one of"),
        ("base: /etc/passwd", "base: '/etc/passwd', expected one of"),
        ("base: bdfa-65nm\nclock_mhz: .nan", "clock_mhz=nan"),
        ("base: bdfa-65nm\nmac: {rows: 0, columns: 1}", "mac.rows=0"),
        ("base: bdfa-65nm\nclock_mhz: .inf", "clock_mhz=inf"),
        ("!!python/object/apply:os.mkdir [/tmp/torchdfa-was-here]", "no YAML"),
        ("a: [" * 5000, "no YAML"),
        ("&a [*a]", "no mapping"),
    ],
)
def test_chips_that_are_none(tmp_path, monkeypatch, text, message):
    from torchdfa.hardware.chip import load_chip

    monkeypatch.chdir(tmp_path)
    (tmp_path / "me").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_chip("me")
    assert not os.path.exists("/tmp/torchdfa-was-here")


@pytest.mark.parametrize("option", [["--config", "c.yaml"], ["--config=c.yaml"]])
@pytest.mark.parametrize(
    "text",
    [
        "rule: evil_module.X",
        "rule: {class_path: evil_module.X}",
        "rule: {'features.*': evil_module.X}",
        "model: {class_path: evil_module.X, init_args: {}}",
        "rule.class_path: evil_module.X",
        "rule: other.yaml",
    ],
)
def test_a_configuration_does_not_import(tmp_path, monkeypatch, capsys, option, text):
    from torchdfa.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "evil_module.py").write_text("import pathlib\npathlib.Path('was-here').touch()\nclass X: pass\n")
    (tmp_path / "other.yaml").write_text("class_path: evil_module.X\n")
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(SystemExit):
        main(["train", *option, "--print-config"])
    assert "expected one of torchdfa's" in capsys.readouterr().err and not (tmp_path / "was-here").exists()
    if text.startswith("rule: evil"):
        monkeypatch.setenv("TORCHDFA_TRUST", "evil_module")
        monkeypatch.delitem(sys.modules, "evil_module", raising=False)
        with pytest.raises(SystemExit):
            main(["train", *option, "--print-config"])  # it is no rule; but it was looked at
        assert (tmp_path / "was-here").exists()


def test_links_in_circles_end(tmp_path):
    from PIL import Image

    from torchdfa.data.folder import load_folder

    for part in ("train", "test"):
        (tmp_path / part / "cat").mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / part / "cat" / "a.png")
        for name in ("x", "y", "z"):
            (tmp_path / part / "cat" / name).symlink_to(tmp_path / part / "cat")
    train, test = load_folder(tmp_path)
    assert len(train) == len(test) == 1


def test_a_picture_of_more_pixels_than_memory(tmp_path):
    from torchdfa.data.folder import _decode

    for side in (10_000, 60_000):
        chunk = b"IHDR" + struct.pack(">2I5B", side, side, 8, 2, 0, 0, 0)
        data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
        (tmp_path / "x.png").write_bytes(data + b"\0\0\0\0IDAT" + struct.pack(">I", zlib.crc32(b"IDAT")))
        with little_memory(), pytest.raises(DataError, match="decompression bomb"):
            _decode(tmp_path / "x.png", None)
