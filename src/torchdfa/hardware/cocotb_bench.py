"""What cocotb runs within the simulator; :mod:`torchdfa.hardware.cosimulate` starts it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cocotb
import numpy as np
from cocotb.triggers import Timer
from cocotb.types import LogicArray


@cocotb.test()
async def compare(dut: Any) -> None:
    """Put the vectors in, and write down what comes out differently."""
    folder = Path(os.environ["TORCHDFA_COCOTB"])
    with np.load(folder / "vectors.npz") as file:
        arrays = {name: file[name] for name in file.files}
    inputs = {name[3:]: v for name, v in arrays.items() if name.startswith("in ")}
    outputs = {name[4:]: v for name, v in arrays.items() if name.startswith("out ")}
    ports = {name: getattr(dut, name) for name in [*inputs, *outputs]}
    masks = {name: (1 << len(port)) - 1 for name, port in ports.items()}

    async def edge() -> None:
        dut.clk.value = 1
        await Timer(5, "ns")
        dut.clk.value = 0
        await Timer(5, "ns")

    for name in inputs:
        ports[name].value = 0
    dut.clk.value = 0
    dut.rst.value = 1
    await Timer(1, "ns")
    await edge()
    dut.rst.value = 0
    found = []
    for t, checked in enumerate(arrays["checked"]):
        for name, values in inputs.items():
            ports[name].value = LogicArray(int(values[t]) & masks[name], len(ports[name]))
        await Timer(1, "ns")
        for name, values in outputs.items() if checked else ():
            got, expected = str(ports[name].value), f"{int(values[t]) & masks[name]:0{len(ports[name])}b}"
            if got != expected:
                found.append(f"cycle {t}: {name} is {got}, expected {expected}")
        await edge()
    (folder / "mismatches.txt").write_text("".join(f"{line}\n" for line in found))
