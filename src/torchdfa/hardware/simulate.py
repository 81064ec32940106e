"""Amaranth's simulator on a unit and its vectors."""

from __future__ import annotations

from typing import Any

from amaranth.sim import Simulator

from torchdfa.hardware.rtl.unit import Unit
from torchdfa.hardware.vectors import Vectors


def mismatches(unit: Unit, vectors: Vectors) -> list[str]:
    """Simulate one stream and return what differs from the expected outputs, one line each."""
    cycles, streams = vectors.shape
    if streams != 1:
        raise ValueError(f"mismatches: {streams} streams, expected 1; use Vectors.stream.")
    found: list[str] = []

    async def bench(context: Any) -> None:
        before: dict[str, int] = {}
        for t in range(cycles):
            for name, values in vectors.inputs.items():
                if before.get(name) != (value := int(values[t, 0])):
                    context.set(unit.inputs[name], value)
                    before[name] = value
            if vectors.checked[t, 0]:
                for name, values in vectors.outputs.items():
                    got = context.get(unit.outputs[name])
                    if got != values[t, 0]:
                        found.append(f"cycle {t}: {name} is {got}, expected {values[t, 0]}")
            await context.tick()

    simulator = Simulator(unit)
    simulator.add_clock(1e-9)
    simulator.add_testbench(bench)
    simulator.run()
    return found
