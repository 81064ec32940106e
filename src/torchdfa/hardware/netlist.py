"""A mapped netlist: simulated at gate level, many streams at a time; static timing; the loads of its nets."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from torchdfa.hardware.liberty import GENERIC, Arc, Cell, LibertyError, Library, read_liberty, render
from torchdfa.hardware.model.fixed import Integers
from torchdfa.hardware.vectors import Vectors

_CONSTANTS = {"0": "0", "1": "M", "x": "0", "z": "0"}


@dataclass(frozen=True)
class Process:
    """A Liberty library and what is assumed beside it; see ``libraries.yaml``.

    Attributes:
        library: The Liberty file.
        about: What it is.
        nanometres: Its process; 0 if unknown.
        wire: Farads of a net: fixed, and for each input that it feeds.
        slew: Of inputs and clock, in the library's unit of time.
        flop_energy_has_load: Whether flip-flops' energy tables hold their load's energy.
    """

    library: Library
    about: str
    nanometres: int
    wire: tuple[float, float]
    slew: float
    flop_energy_has_load: bool = False

    @staticmethod
    def read(path: Path | None, wires: float = 1.0) -> Process:
        """Read a library, its wires' capacitances times ``wires``; None: generic gates, areas in transistors."""
        if path is None:
            return Process(GENERIC, "generic gates, counted in transistors", 0, (0.0, 0.0), 0.0)
        library = read_liberty(path)
        known = yaml.safe_load(resources.files("torchdfa.hardware").joinpath("libraries.yaml").read_text())
        entry = next(e for e in known if fnmatchcase(library.name.lower(), e["match"].lower()))
        fixed, each = (f * 1e-15 * wires for f in entry["wire"])
        return Process(
            library,
            entry["about"],
            entry["process"],
            (fixed, each),
            entry["slew"] * 1e-9 / library.seconds,
            entry.get("flop_energy_has_load", False),
        )


@dataclass(frozen=True)
class Instance:
    """A cell in the netlist: its type, and its nets by pin. Nets are numbers, constants are strings."""

    kind: str
    cell: Cell
    nets: Mapping[str, int | str]

    def outputs(self) -> list[tuple[str, int]]:
        """Return the output pins and their nets."""
        return [(p, n) for p, n in self.nets.items() if self.cell.pins[p].output and isinstance(n, int)]

    def inputs(self) -> list[tuple[str, int]]:
        """Return the input pins and their nets, but not those that are constant."""
        return [(p, n) for p, n in self.nets.items() if not self.cell.pins[p].output and isinstance(n, int)]

    def inverts(self, pin: str) -> bool:
        """Tell whether a flip-flop's output is the inverse of its state."""
        assert self.cell.state is not None
        state, inverse = self.cell.state
        known = {state: "0", inverse: "1"}
        flips = render(self.cell.pins[pin].function, known.__getitem__, lambda x: "10"[int(x)])
        return flips == "1"


@dataclass(frozen=True)
class Timing:
    """Of the longest path between registers.

    Attributes:
        nanoseconds: Clock to setup.
        levels: Cells on it.
        slews: Of every net, in the library's unit.
    """

    nanoseconds: float
    levels: int
    slews: Mapping[int, float]


class Netlist:
    """Yosys' netlist of one flat module, mapped to a library.

    Args:
        path: Its JSON.
        process: The library.

    Raises:
        LibertyError: A cell is not in the library, is sequential in a way that is not simulated, or combinational
            cells form a loop.
    """

    def __init__(self, path: Path, process: Process):
        self.process = process
        module = next(m for m in json.loads(path.read_text())["modules"].values() if m["ports"])
        self.ports = {name: (p["direction"], list(p["bits"])) for name, p in module["ports"].items()}
        self.instances = [self._instance(c) for c in module["cells"].values()]
        self.flops = [i for i in self.instances if i.cell.state]
        self.clock = int(self.ports["clk"][1][0])
        self.area = sum(i.cell.area for i in self.instances)
        self.watts = sum(i.cell.watts for i in self.instances)
        self.order = self._sorted()
        fed: dict[int, int] = defaultdict(int)
        self.farads: dict[int, float] = defaultdict(float)
        for i in self.instances:
            for pin, net in i.inputs():
                fed[net] += 1
                self.farads[net] += i.cell.pins[pin].farads
        fixed, each = process.wire
        for net, count in fed.items():
            # The clock's wires belong to its tree, which is not built here.
            self.farads[net] += 0 if net == self.clock else fixed + each * count
        self.nets = 1 + max(
            n for names in [*(p[1] for p in self.ports.values()), *(i.nets.values() for i in self.instances)]
            for n in names if isinstance(n, int)
        )  # fmt: skip

    def _instance(self, cell: Mapping[str, Any]) -> Instance:
        kind = cell["type"]
        found = self.process.library.cells.get(kind)
        if found is None:
            raise LibertyError(f"{self.process.library.name} has no cell {kind!r}, which the netlist uses.")
        if found.state and found.clock.startswith("!"):
            raise LibertyError(f"{kind!r} is clocked by the falling edge, which is not simulated.")
        return Instance(kind, found, {pin: bits[0] for pin, bits in cell["connections"].items()})

    def _sorted(self) -> list[Instance]:
        """Return the combinational cells, each behind those that feed it."""
        cells = [i for i in self.instances if not i.cell.state]
        driver = {net: n for n, i in enumerate(cells) for _, net in i.outputs()}
        waits = [0] * len(cells)
        feeds: dict[int, list[int]] = defaultdict(list)
        for n, i in enumerate(cells):
            for _, net in i.inputs():
                if net in driver:
                    waits[n] += 1
                    feeds[driver[net]].append(n)
        ready = [n for n, count in enumerate(waits) if not count]
        order = []
        for n in ready:
            order.append(cells[n])
            for later in feeds[n]:
                waits[later] -= 1
                if not waits[later]:
                    ready.append(later)
        if len(order) < len(cells):
            raise LibertyError(f"{len(cells) - len(order)} combinational cells form a loop.")
        return order

    def simulate(self, vectors: Vectors) -> tuple[list[str], NDArray[np.float64]]:
        """Run the vectors' streams side by side, a bit each of Python's integers, without delays.

        Returns:
            What differs from the expected outputs, and the changes of each net a cycle and stream, (nets,).
        """
        cycles, streams = vectors.shape
        settle, clocked = self._compiled()
        mask = (1 << streams) - 1
        state = [0] * self.nets
        for i in self.flops:
            for pin, net in i.outputs():
                state[net] = mask if i.inverts(pin) else 0
        flop_nets = [net for i in self.flops for _, net in i.outputs()]
        # One cycle of reset, so that registers start as the RTL's do.
        state[self.ports["rst"][1][0]] = mask
        settle(state, mask)
        for net, value in zip(flop_nets, clocked(state, mask), strict=True):
            state[net] = value
        state[self.ports["rst"][1][0]] = 0
        changes, before = [0] * self.nets, state
        found: list[str] = []
        packed = {name: _packed(values, len(self.ports[name][1])) for name, values in vectors.inputs.items()}
        for t in range(cycles):
            for name, words in packed.items():
                for net, word in zip(self.ports[name][1], words[t], strict=True):
                    if isinstance(net, int):
                        state[net] = word
            settle(state, mask)
            if t:
                for net, (a, b) in enumerate(zip(state, before, strict=True)):
                    if a != b:
                        changes[net] += (a ^ b).bit_count()
            if len(found) < 9 and vectors.checked[t].any():
                found += self._differences(vectors, t, state)
            before = list(state)
            for net, value in zip(flop_nets, clocked(state, mask), strict=True):
                state[net] = value
        return found, np.array(changes, float) / max(1, (cycles - 1) * streams)

    def _differences(self, vectors: Vectors, t: int, state: list[int]) -> list[str]:
        streams = vectors.shape[1]
        found = []
        for name, values in vectors.outputs.items():
            nets = self.ports[name][1]
            got = np.zeros(streams, np.int64)
            for k, net in enumerate(nets):
                word = state[net] if isinstance(net, int) else ((1 << streams) - 1) * (net == "1")
                raw = np.frombuffer(word.to_bytes(-(-streams // 8), "little"), np.uint8)
                got |= np.unpackbits(raw, bitorder="little")[:streams].astype(np.int64) << k
            expected = values[t] & ((1 << len(nets)) - 1)
            for s in np.flatnonzero((got != expected) & vectors.checked[t])[:1]:
                found.append(f"cycle {t}, stream {s}: {name} is {got[s]:#x}, expected {expected[s]:#x}")
        return found

    def _compiled(self) -> tuple[Callable[[list[int], int], None], Callable[[list[int], int], list[int]]]:
        """Return functions made of the cells': settle the combinational nets; the flip-flops' next outputs."""

        def term(i: Instance) -> Callable[[str], str]:
            return lambda pin: _CONSTANTS[str(n)] if isinstance(n := i.nets[pin], str) else f"n[{n}]"

        def invert(x: str) -> str:
            return f"(M ^ {x})"

        lines = ["def settle(n, M):"]
        for i in self.order:
            for pin, net in i.outputs():
                lines.append(f" n[{net}] = {render(i.cell.pins[pin].function, term(i), invert)}")
        lines += [" return", "def clocked(n, M):", " out = []"]
        for i in self.flops:
            following = render(i.cell.next_state, term(i), invert)
            for pin, _ in i.outputs():
                lines.append(f" out.append({invert(following) if i.inverts(pin) else following})")
        lines.append(" return out")
        scope: dict[str, Any] = {}
        exec("\n".join(lines), scope)
        return scope["settle"], scope["clocked"]

    @cached_property
    def timing(self) -> Timing:
        """Return the longest path: worst arcs, slews propagated, the clock ideal."""
        slew, load = self.process.slew, self.process.library.farads
        slews: dict[int, float] = defaultdict(lambda: slew)
        arrival: dict[int, tuple[float, int]] = defaultdict(lambda: (0.0, 0))

        def arc(i: Instance, pin: str, found: Arc, start: tuple[float, int], edge: float) -> None:
            net = i.nets[pin]
            assert isinstance(net, int)
            at = self.farads[net] / load
            delays = [t(edge, at) for name, t in found.tables.items() if name.startswith("cell_")]
            edges = [t(edge, at) for name, t in found.tables.items() if name.endswith("_transition")]
            if delays and start[0] + max(delays) > arrival[net][0]:
                arrival[net] = (start[0] + max(delays), start[1] + 1)
            if edges:
                worst[net] = max(worst.get(net, 0.0), max(edges))

        for i in [*self.flops, *self.order]:
            worst: dict[int, float] = {}
            for pin, _ in i.outputs():
                for found in i.cell.pins[pin].timing:
                    source = i.nets.get(found.related)
                    if not isinstance(source, int) or found.kind not in ("combinational", "rising_edge"):
                        continue
                    flop = i.cell.state is not None
                    arc(i, pin, found, (0.0, 0) if flop else arrival[source], slew if flop else slews[source])
            slews.update(worst)
        longest, levels = 0.0, 0
        for i in self.flops:
            for pin, net in i.inputs():
                setups = [a for a in i.cell.pins[pin].timing if a.kind.startswith("setup")]
                setup = max((t(slews[net], slew) for a in setups for t in a.tables.values()), default=0.0)
                if net != self.clock and arrival[net][0] + setup > longest:
                    longest, levels = arrival[net][0] + setup, arrival[net][1]
        return Timing(longest * self.process.library.seconds / 1e-9, levels, slews)


def _packed(values: Integers, width: int) -> list[list[int]]:
    """Return, for each cycle and bit, one integer with a bit for each stream."""
    cycles = []
    for row in values:
        bits = (row[None] >> np.arange(width)[:, None] & 1).astype(np.uint8)
        cycles.append([int.from_bytes(np.packbits(b, bitorder="little").tobytes(), "little") for b in bits])
    return cycles
