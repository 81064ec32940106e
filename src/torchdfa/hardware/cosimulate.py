"""The written Verilog under cocotb and Icarus: that it says what Amaranth's simulator ran."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import numpy as np

from torchdfa.hardware.timed import installed as icarus_installed
from torchdfa.hardware.vectors import Vectors


def installed() -> bool:
    """Tell whether cocotb and Icarus Verilog are there."""
    return icarus_installed() and bool(importlib.util.find_spec("cocotb"))


def mismatches(verilog: Path, vectors: Vectors) -> list[str]:
    """Run one stream on a Verilog module that is named as its file; return what differs from the expected outputs."""
    from cocotb_tools.runner import get_runner

    if vectors.shape[1] != 1:
        raise ValueError(f"mismatches: {vectors.shape[1]} streams, expected 1; use Vectors.stream.")
    folder = verilog.parent / "cocotb"
    folder.mkdir(exist_ok=True)
    arrays = {f"in {name}": v[:, 0] for name, v in vectors.inputs.items()}
    arrays |= {f"out {name}": v[:, 0] for name, v in vectors.outputs.items()}
    # Ports of 64 bits and more hold Python's integers, which go as text: no pickles.
    arrays = {name: v.astype(str) if v.dtype == object else v for name, v in arrays.items()}
    np.savez(folder / "vectors.npz", checked=vectors.checked[:, 0], **arrays)  # type: ignore[arg-type]
    result = folder / "mismatches.txt"
    result.unlink(missing_ok=True)
    # The simulator starts a Python of its own: the bench lies beside the vectors, so that it need not import all this.
    shutil.copy(Path(__file__).with_name("cocotb_bench.py"), folder)
    paths = os.pathsep.join([str(folder.resolve()), *(p for p in sys.path if p)])
    with (
        (folder / "log.txt").open("w") as log,
        redirect_stdout(log),
        redirect_stderr(log),
        patch.dict(os.environ, {"PYTHONPATH": paths, "TORCHDFA_COCOTB": str(folder.resolve())}),
    ):
        runner = get_runner("icarus")
        runner.build(
            sources=[verilog],
            hdl_toplevel=verilog.stem,
            build_dir=folder,
            always=True,
            timescale=("1ns", "1ps"),
            log_file=folder / "build.txt",
        )
        runner.test(
            hdl_toplevel=verilog.stem,
            test_module="cocotb_bench",
            build_dir=folder,
            test_dir=folder,
            log_file=folder / "test.txt",
        )
    return result.read_text().splitlines() if result.exists() else [f"the simulation gave no result; see {folder}"]
