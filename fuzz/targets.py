"""Every parser of the project as a function of bytes, with good inputs to start from: what fuzzing and tests run over.

A parser may return, or raise its own error, which names the file. Anything else is a bug: another exception, a crash,
memory or time out of proportion to the input, or a value that it must not let through.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import hashlib
import io
import json
import math
import pickle
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import torchdfa as dfa
from torchdfa.data import DataError
from torchdfa.data.arrays import read_arrays
from torchdfa.data.cifar import Binary, Pickled
from torchdfa.data.folder import _decode
from torchdfa.data.idx import read_idx
from torchdfa.experiments.layers import read_angles
from torchdfa.experiments.results import Cell, Results, rows_of
from torchdfa.hardware.cells import LibertyError
from torchdfa.hardware.chip import load_chip
from torchdfa.hardware.functions import render
from torchdfa.hardware.liberty import read_liberty
from torchdfa.hardware.model.runlength import Codes, decode, encode
from torchdfa.online import OnlineHead
from torchdfa.tracking.follow import parse_box
from torchdfa.tracking.pretrain import videos_of
from torchdfa.tracking.sequences import _attributes, list_images, read_boxes
from torchdfa.tracking.weights import read_weights
from torchdfa.training import CheckpointError, EpochResult, TrainConfig
from torchdfa.training.loop import _demand_fits
from torchdfa.training.sealed import _MAGIC, SealError, seal, unseal


@dataclass(frozen=True)
class Target:
    """A parser.

    Attributes:
        run: Calls it on bytes, by a file in the folder that it is given where it reads files; raises what is a bug.
        seeds: Good inputs.
        slow: Whether a call takes more than some milliseconds.
    """

    run: Callable[[bytes, Path], None]
    seeds: Callable[[], list[bytes]]
    slow: bool = False


_FOLDER = Path(tempfile.mkdtemp(prefix="torchdfa-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))


def run(name: str, data: bytes) -> None:
    """Call a parser on an input."""
    TARGETS[name].run(data, _FOLDER)


def _file(name: str, parse: Callable[[Path], object], *errors: type[Exception]) -> Callable[[bytes, Path], None]:
    """Make a target of a parser of files, which raises these errors, and names the file in them."""

    def call(data: bytes, folder: Path) -> None:
        path = folder / name
        path.write_bytes(data)
        try:
            parse(path)
        except errors as error:
            assert str(path.parent) in str(error), f"the error does not name the file: {error}"

    return call


# ------------------------------------------------------------------------------------------------------------- training


def _config(data: bytes, folder: Path) -> None:
    """Read a configuration as ``torchdfa train --config`` does."""
    from torchdfa.cli import main

    path = folder / "config.yaml"
    path.write_bytes(data)
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            status = main(["train", "--config", str(path), "--print-config"])
        except SystemExit as stop:
            status = stop.code
    assert status in (0, 2), f"it ended with {status}"
    assert "Traceback" not in said.getvalue(), said.getvalue()


def _stored(path: Path) -> None:
    _demand_fits(path.parent, {"lr": 0.1, "model": {"class_path": "torchdfa.models.MLP"}}, True)


def _unseal(data: bytes, folder: Path) -> None:
    with contextlib.suppress(SealError):
        unseal(data)


def _resealed(data: bytes, folder: Path) -> None:
    """Give the reader what has a right checksum: the checks behind it are to be tried, too."""
    _unseal(_MAGIC + hashlib.sha256(data).hexdigest().encode() + b"\n" + data, folder)


def _sealed_seeds() -> list[bytes]:
    return [seal({"w": torch.ones(2, 3), "place": {"step": 3, 0: (None, [1.5, "x", True])}}), seal({})]


# ----------------------------------------------------------------------------------------------------------------- data

_BINARY = Binary("f", ("a",), ("b",), "names", 1)
_PICKLED = Pickled("f", ("a",), ("b",), "names", "labels", "label_names")


def _binary(path: Path) -> None:
    pixels, labels = _BINARY.read_records(path, 2)
    assert pixels.shape == (2, 3072) and labels.shape == (2,)


def _names(path: Path) -> None:
    assert all(isinstance(name, str) and name for name in _BINARY.read_names(path))


def _pickled(path: Path) -> None:
    # Read as class names first, then as images.
    with contextlib.suppress(DataError):
        assert all(isinstance(name, str) for name in _PICKLED.read_names(path))
    pixels, labels = _PICKLED.read_records(path, 1)
    assert pixels.shape == (1, 3072) and pixels.dtype == np.uint8 and labels.dtype == np.int64


def _pickle_seeds() -> list[bytes]:
    content = {"data": np.zeros((1, 3072), np.uint8), "labels": [3], "filenames": ["a.png"], "label_names": ["x", "y"]}
    return [pickle.dumps(content, protocol=p) for p in range(pickle.HIGHEST_PROTOCOL + 1)]


def _idx(path: Path) -> None:
    assert read_idx(path, 3).ndim == 3


def _idx_seeds() -> list[bytes]:
    return [struct.pack(">4I", 0x803, n, 2, 3) + bytes(6 * n) for n in (1, 4)]


def _npz(*arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, *arrays)
    return file.getvalue()


def _image(path: Path) -> None:
    assert _decode(path, None).shape[0] == 3


def _image_seeds() -> list[bytes]:
    from PIL import Image

    found = []
    for kind in ("PNG", "JPEG", "BMP", "PPM", "TIFF", "WEBP"):
        file = io.BytesIO()
        Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(file, kind)
        found.append(file.getvalue())
    return found


# ---------------------------------------------------------------------------------------------------------- experiments


def _results(path: Path) -> None:
    runs = Results(path).read()
    for key, rows in runs.items():
        assert rows and all(row.key == key for row in rows)
        assert rows[-1].problem or [row.epoch for row in rows] == list(range(1, rows[-1].epochs + 1))


def _results_seeds() -> list[bytes]:
    cell = Cell("e", "BP", "final", TrainConfig(epochs=2))
    history = [EpochResult(e, *[math.nan] * 4, *[50.0 + e] * 8) for e in (1, 2)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "results.csv"
        Results(path).add(rows_of(cell, history, "", 100))
        Results(path).add(rows_of(dataclasses.replace(cell, config=TrainConfig(lr=1.0)), [], "diverged", 100))
        return [path.read_bytes()]


def _angles(path: Path) -> None:
    path.replace(path.parent / "angles.csv")
    for row in read_angles(path.parent):
        assert set(row) == {"method", "seed", "epoch", "parameter", "degrees"}


# --------------------------------------------------------------------------------------------------------------- online


def _head(path: Path) -> None:
    head = OnlineHead.load(path)
    assert sum(p.numel() for p in head.net.parameters()) < 1 << 24


def _head_seeds() -> list[bytes]:
    found = []
    for rule in (dfa.BDFA(), dfa.BP()):
        path = _FOLDER / "seed.safetensors"
        OnlineHead((3, 4, 2), rule=rule, lr=0.1).save(path)
        found.append(path.read_bytes())
    return found


# ------------------------------------------------------------------------------------------------------------- tracking


def _boxes(path: Path) -> None:
    boxes = read_boxes(path)
    assert boxes.ndim == 2 and boxes.shape[1] == 4 and np.isfinite(boxes).all()


def _box(data: bytes, folder: Path) -> None:
    with contextlib.suppress(ValueError):
        assert len(parse_box(data.decode("latin1"))) == 4


def _attributes_file(path: Path) -> None:
    path.replace(path.parent / "attrs.txt")
    assert all(isinstance(a, str) for a in _attributes(path.parent))


def _image_names(data: bytes, folder: Path) -> None:
    below = folder / "names"
    below.mkdir(exist_ok=True)
    names = {n for part in data.split(b"\n") if (n := part.replace(b"/", b"").replace(b"\0", b"")[:200].strip(b". "))}
    paths = []
    for name in names:
        with contextlib.suppress(OSError, ValueError):
            paths.append(below / (name.decode(errors="replace") + ".png"))
            paths[-1].touch()
    assert {p.name for p in list_images(below)} <= {p.name for p in paths}
    for path in below.iterdir():
        path.unlink()


def _safetensors(metadata: dict[str, str]) -> bytes:
    from safetensors.torch import save

    return save({"fc4.weight": torch.ones(2, 2)}, metadata)


def _pth_seeds() -> list[bytes]:
    found = []
    for old in (False, True):
        file = io.BytesIO()
        state = {"fc4.weight": torch.ones(2, 3), "n": torch.arange(4)}
        torch.save({"state_dict": state}, file, _use_new_zipfile_serialization=not old)
        found.append(file.getvalue())
    return found


# ------------------------------------------------------------------------------------------------------------- hardware


def _run_length(data: bytes, folder: Path) -> None:
    """Take the first bytes as the shape and the bits of a run, the rest as runs and values."""
    if len(data) < 5:
        return
    side, other, bits, width = (int.from_bytes(data[:2], "big", signed=True), *struct.unpack("bbB", data[2:5]))
    rest = np.frombuffer(data[5 : 5 + (len(data) - 5) // 4 * 4], np.int16).reshape(-1, 2).astype(np.int64)
    runs, values = (rest[:, 0] << width % 60), rest[:, 1]
    try:
        tensor = decode(Codes(runs, values, (side, other), bits))
    except ValueError as error:
        assert str(error).startswith("decode: "), error
        return
    assert tensor.shape == (side, other) and tensor.size <= 2**16 * max(1, len(rest))
    again = encode(tensor, bits)
    assert np.array_equal(decode(again), tensor) and len(again.runs) <= len(rest)


def _run_length_seeds() -> list[bytes]:
    found = []
    for shape in ((2, 3), (1, 40)):
        codes = encode(np.eye(*shape, dtype=np.int64))
        pairs = np.stack([codes.runs, codes.values], 1).astype(np.int16)
        found.append(struct.pack(">hbbB", *shape, codes.run_bits, 0) + pairs.tobytes())
    return found


_LIBERTY = b"""library (tiny) {
  time_unit : "1ns"; capacitive_load_unit (1, pf); nom_voltage : 1.8; leakage_power_unit : "1nW";
  lu_table_template (t) { variable_1 : input_net_transition; variable_2 : total_output_net_capacitance;
    index_1 ("0.1, 0.2"); index_2 ("0.01, 0.02"); } /* a comment */
  cell (NAND2) { area : 4; cell_leakage_power : 0.1;
    pin (A) { direction : input; capacitance : 0.01; }
    pin (B) { direction : input; capacitance : 0.01; }
    pin (Y) { direction : output; function : "!(A & B)";
      timing () { related_pin : "A"; cell_rise (t) { values ("1, 2", "3, 4"); } } } }
  cell (DFF) { ff (IQ, IQN) { next_state : "D"; clocked_on : "C"; } pin (Q) { direction : output; function : "IQ"; } }
}
"""


def _liberty(path: Path) -> None:
    library = read_liberty(path)
    assert library.farads > 0 and library.volts > 0
    for cell in library.cells.values():
        for function in (cell.next_state, *(pin.function for pin in cell.pins.values() if pin.function)):
            with contextlib.suppress(LibertyError):
                # What is rendered is compiled: nothing but these may come of it, whatever the function says.
                text = render(function, lambda pin: "n", lambda x: f"(M ^ {x})")
                assert not set(text) - set("nM()&|^ "), text
        for pin in cell.pins.values():
            for arc in (*pin.timing, *pin.power):
                for table in arc.tables.values():
                    table(0.15, 0.015)


def _chip(path: Path) -> None:
    chip = load_chip(path)
    assert chip.rows > 0 and chip.columns > 0 and math.isfinite(chip.dram_bandwidth) and chip.dram_bandwidth > 0


def _chip_seeds() -> list[bytes]:
    from importlib import resources

    folder = resources.files("torchdfa.hardware").joinpath("chips")
    return [f.read_bytes() for f in folder.iterdir() if f.name.endswith(".yaml")]


TARGETS: dict[str, Target] = {
    "stored-config": Target(
        _file("config.json", _stored, CheckpointError),
        lambda: [b'{"lr": 0.1, "model": {"class_path": "torchdfa.models.MLP"}}', b"[]"],
    ),
    "sealed": Target(_unseal, _sealed_seeds),
    "resealed": Target(_resealed, lambda: [data[data.index(b"\n") + 1 :] for data in _sealed_seeds()]),
    "cifar-binary": Target(_file("batch.bin", _binary, DataError), lambda: [bytes(2 * 3073)]),
    "cifar-names": Target(_file("names.txt", _names, DataError), lambda: [b"cat\ndog\n\n"]),
    "cifar-pickle": Target(_file("batch", _pickled, DataError), _pickle_seeds),
    "idx": Target(_file("idx3", _idx, DataError), _idx_seeds),
    "idx-gz": Target(_file("idx3.gz", _idx, DataError), lambda: [gzip.compress(s, mtime=0) for s in _idx_seeds()]),
    "npz": Target(
        _file("x.npz", read_arrays, DataError), lambda: [_npz(np.arange(6.0).reshape(2, 3), np.arange(3)), _npz()]
    ),
    "image": Target(_file("x.png", _image, DataError), _image_seeds),
    "results": Target(_file("results.csv", _results, ValueError), _results_seeds),
    "angles": Target(
        _file("given.csv", _angles, ValueError),
        lambda: [b"method,seed,epoch,parameter,degrees\nBP,0,1,a.weight,12.5\n"],
    ),
    "head": Target(_file("head.safetensors", _head, ValueError), _head_seeds),
    "otb-boxes": Target(_file("groundtruth_rect.txt", _boxes, DataError), lambda: [b"1,2,3,4\n5\t6 7;8\n\n"]),
    "otb-attributes": Target(_file("given.txt", _attributes_file, DataError), lambda: [b"IV, SV\nOCC"]),
    "image-names": Target(_image_names, lambda: [b"0001\n0002\nimg10\nimg9"]),
    "box": Target(_box, lambda: [b"160,83,56,65", b"1e3, 2, 3, 4"]),
    "tracker-head": Target(
        _file("head.safetensors", videos_of, DataError),
        lambda: [_safetensors({"settings": "{}", "videos": json.dumps({"Couple": "0123"})})],
    ),
    "weights": Target(_file("x.pth", read_weights, DataError), _pth_seeds),
    "run-length": Target(_run_length, _run_length_seeds),
    "liberty": Target(_file("x.lib", _liberty, LibertyError), lambda: [_LIBERTY]),
    "liberty-gz": Target(_file("x.lib.gz", _liberty, LibertyError), lambda: [gzip.compress(_LIBERTY, mtime=0)]),
    "chip": Target(_file("chip.yaml", _chip, ValueError), _chip_seeds),
    "config": Target(
        _config,
        lambda: [
            b"lr: 0.1\nrule: {class_path: torchdfa.DFA, init_args: {init: product}}\nmodel: SmallConv\n",
            json.dumps({"epochs": 3, "model": {"class_path": "torchdfa.models.MLP"}, "clip": None}).encode(),
        ],
        slow=True,
    ),
}
