"""The netlist with each cell's delay, in Icarus Verilog: what changes more than once a cycle costs more than once."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from torchdfa.hardware.netlist import Instance, Netlist
from torchdfa.hardware.synthesis import ToolError
from torchdfa.hardware.vectors import Vectors

_LITERALS = {"0": "1'b0", "1": "1'b1", "x": "1'b0", "z": "1'b0"}


def installed() -> bool:
    """Tell whether Icarus Verilog is there."""
    return bool(shutil.which("iverilog") and shutil.which("vvp"))


def simulate_timed(
    netlist: Netlist,
    vectors: Vectors,
    folder: Path,
    period: float | None = None,
    counted: tuple[int, int] | None = None,
) -> tuple[list[str], NDArray[np.float64]]:
    """Run one stream with delays; return what differs from the expected outputs, and each net's changes a cycle.

    The clock's changes are left to :func:`power.energy`, as without delays.

    A cell delays by the mean of its arcs' rises and falls at its nets' loads and slews; pulses shorter than a cell's
    delay die in it, as in the cell. Inputs change just after the clock's rising edge, as registers' outputs do; outputs
    are read just before the next.

    Args:
        netlist: The gates.
        vectors: One stream.
        folder: Where its files go.
        period: Of the clock, ns; by default one and a half times what the last net takes to settle.
        counted: As in :meth:`Netlist.simulate`.

    Raises:
        ToolError: Icarus is missing or fails.
    """
    if not installed():
        raise ToolError("Icarus Verilog is missing. Install it: apt-get install iverilog")
    cycles, streams = vectors.shape
    if streams != 1:
        raise ValueError(f"simulate_timed: {streams} streams, expected 1; use Vectors.stream.")
    folder.mkdir(parents=True, exist_ok=True)
    period = period or 1.5 * netlist.timing.settled
    first, last = counted or (0, cycles - 1)
    inputs = [(name, netlist.ports[name][1]) for name in vectors.inputs]
    lines = []
    for t in range(cycles):
        words = (int(vectors.inputs[name][t, 0]) & ((1 << len(nets)) - 1) for name, nets in inputs)
        lines.append("".join(f"{w:0{len(nets)}b}" for w, (_, nets) in zip(words, inputs, strict=True)))
    (folder / "inputs.txt").write_text("\n".join(lines) + "\n")
    (folder / "bench.v").write_text(
        _bench(netlist, inputs, list(vectors.outputs), cycles, (first, last), round(period * 1000))
    )
    for command in (["iverilog", "-g2012", "-o", "bench.vvp", "bench.v"], ["vvp", "-n", "bench.vvp"]):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ToolError(f"{command[0]} failed in {folder}: {(done.stderr or done.stdout).strip()[:300]}")
    found = []
    rows = [line.split() for line in (folder / "outputs.txt").read_text().splitlines()]
    for t, row in enumerate(rows):
        for word, (name, values) in zip(row, vectors.outputs.items(), strict=True):
            expected = int(values[t, 0]) & ((1 << len(netlist.ports[name][1])) - 1)
            if vectors.checked[t, 0] and word != f"{expected:x}":
                found.append(f"cycle {t}: {name} is {word}, expected {expected:x}")
    changes = _changes(folder / "changes.vcd", netlist.nets) / max(1, last - first)
    changes[netlist.clock] = 0.0
    (folder / "changes.vcd").unlink()
    return found, changes


def _bench(
    netlist: Netlist,
    inputs: list[tuple[str, list[int | str]]],
    outputs: list[str],
    cycles: int,
    counted: tuple[int, int],
    period: int,
) -> str:
    """Return the netlist, clock and vectors as Verilog. Nets are n0, n1 …; times are picoseconds."""
    clock, reset = netlist.clock, netlist.ports["rst"][1][0]
    start = {n: int(i.inverts(pin)) for i in netlist.flops for pin, n in i.outputs()}
    registers = {n for _, nets in inputs for n in nets} | {*start, clock, reset}
    half, rest = period // 2, max(1, period - period // 2 - 2)
    used = {n for i in netlist.instances for n in i.nets.values()} | registers
    used |= {n for _, nets in netlist.ports.values() for n in nets}
    lines = ["`timescale 1ps/1ps", "module bench;"]
    for net in sorted(n for n in used if isinstance(n, int)):
        lines.append(f"reg n{net} = {start.get(net, 0)};" if net in registers else f"wire n{net};")
    for i in netlist.order:
        for pin, net in i.outputs():
            value = i.expression(i.cell.pins[pin].function, _net, _inverted, pin)
            lines.append(f"assign #{_delay(netlist, i, pin)} n{net} = {value};")
    for i in netlist.flops:
        following = i.expression(i.cell.next_state, _net, _inverted)
        for pin, net in i.outputs():
            value = _inverted(following) if i.inverts(pin) else following
            lines.append(f"always @(posedge n{clock}) n{net} <= #{_delay(netlist, i, pin)} {value};")
    joined = "{" + ", ".join(_net(n) for _, nets in inputs for n in reversed(nets)) + "}"
    width = sum(len(nets) for _, nets in inputs)
    shown = ["{" + ", ".join(_net(n) for n in reversed(netlist.ports[name][1])) + "}" for name in outputs]
    lines += [
        f"reg [{width - 1}:0] vectors [0:{cycles - 1}];",
        "integer t, file;",
        "initial begin",
        '  $readmemb("inputs.txt", vectors);',
        '  file = $fopen("outputs.txt", "w");',
        # A cycle of reset first.
        f"  {joined} = 0; n{reset} = 1; #{period} n{clock} = 1; #1 n{reset} = 0;",
        '  $dumpfile("changes.vcd");',
        f"  for (t = 0; t < {cycles}; t = t + 1) begin",
        f"    {joined} = vectors[t]; #{half} n{clock} = 0; #{rest};",
        f'    $fdisplay(file, "{" ".join(["%0h"] * len(shown))}", {", ".join(shown)});',
        f"    if (t == {counted[0]}) $dumpvars(0, bench);",
        f"    if (t == {counted[1]}) $dumpoff;",
        f"    #1 n{clock} = 1; #1;",
        "  end",
        "  $finish;",
        "end",
        "endmodule",
    ]
    return "\n".join(lines) + "\n"


def _net(n: int | str) -> str:
    return f"n{n}" if isinstance(n, int) else _LITERALS[n]


def _inverted(x: str) -> str:
    return f"(~{x})"


def _delay(netlist: Netlist, i: Instance, pin: str) -> int:
    net = i.nets[pin]
    assert isinstance(net, int)
    process, slews = netlist.process, netlist.timing.slews
    load = netlist.farads.get(net, 0.0) / process.library.farads

    found: list[float] = []
    for arc in i.delay_arcs(pin):
        source = i.nets.get(arc.related)
        found += arc.delays(slews[source] if isinstance(source, int) else process.slew, load)
    return max(1, round(float(np.mean(found)) * process.library.seconds / 1e-12)) if found else 1


def _changes(path: Path, nets: int) -> NDArray[np.float64]:
    """Count the changes of each net in a VCD file, its first values apart."""
    net_of: dict[str, int] = {}
    counts = np.zeros(nets)
    with path.open() as file:
        for line in file:
            if line.startswith("$var"):
                _, _, _, code, name, *_ = line.split()
                if name[0] == "n" and name[1:].isdigit():
                    net_of[code] = int(name[1:])
            elif line.startswith("$enddefinitions"):
                break
        for line in file:
            if line[0] in "01" and (net := net_of.get(line[1:-1])) is not None:
                counts[net] += 1
    first = np.zeros(nets)
    first[list(net_of.values())] = 1
    return np.maximum(counts - first, 0)
