"""A mapped netlist: simulated at gate level, many streams at a time; static timing; the loads of its nets."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from torchdfa.hardware.cells import GENERIC, Arc, Cell, LibertyError, Library, Pin
from torchdfa.hardware.functions import names_in, render, truth
from torchdfa.hardware.liberty import read_liberty
from torchdfa.hardware.model.fixed import Integers
from torchdfa.hardware.vectors import Vectors

_CONSTANTS = {"0": "0", "1": "M", "x": "0", "z": "0"}
_HIDDEN = ""  # the output of a flip-flop's state where no pin of it is connected


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
        table = resources.files("torchdfa.hardware").joinpath("libraries.yaml")
        known = yaml.safe_load(table.read_text(encoding="utf-8"))
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
        function = self.cell.pins[pin].function
        low, high = (truth(function, {state: x, inverse: 1 - x}) for x in (0, 1))
        if low == high:
            raise LibertyError(f"output {pin!r} is {function!r}, expected {state} or {inverse}.")
        return low == 1

    def expression(
        self, function: str, net: Callable[[int | str], str], negate: Callable[[str], str], output: str = ""
    ) -> str:
        """Render a function of this cell with its nets.

        Args:
            function: As Liberty writes it; of pins, and in a flip-flop of its state.
            net: Renders a net or constant.
            negate: Renders a negation.
            output: Whose function it is; "" for the next state.

        Raises:
            LibertyError: It is no function, or names what is neither a connected pin nor the state.
        """

        def name(word: str) -> str:
            if word in ("0", "1"):
                return net(word)
            if word in self.cell.pins and word in self.nets:
                return net(self.nets[word])
            if self.cell.state is None or word not in self.cell.state:
                raise LibertyError(f"{function!r} names {word!r}, expected pins that are connected.")
            pin, kept = self.outputs()[0]
            return negate(net(kept)) if self.inverts(pin) != (word == self.cell.state[1]) else net(kept)

        try:
            return render(function, name, negate)
        except LibertyError as error:
            raise LibertyError(f"cell {self.kind!r}, {output or 'next state'}: {error}") from error

    def delay_arcs(self, pin: str) -> list[Arc]:
        """Return the arcs that delay an output.

        Raises:
            LibertyError: There are none though it depends on an input, or one is from a pin that is not there.
        """
        arcs, function = self.cell.pins[pin].delays, self.cell.pins[pin].function
        if not arcs and pin != _HIDDEN and not (function and not names_in(function)):
            raise LibertyError(
                f"cell {self.kind!r}, pin {pin!r}: no timing arc with a delay, expected timing() with related_pin, "
                "timing_type combinational, combinational_rise, combinational_fall or rising_edge, and cell_rise or "
                "cell_fall."
            )
        for arc in arcs:
            if arc.related not in self.cell.pins:
                raise LibertyError(
                    f"cell {self.kind!r}, pin {pin!r}: a timing arc from {arc.related!r}, expected one of the pins "
                    f"{', '.join(self.cell.pins)}."
                )
        return arcs


@dataclass(frozen=True)
class Timing:
    """Of the longest path between registers.

    Attributes:
        nanoseconds: Clock to setup.
        levels: Cells on it.
        settled: Clock to the last change of any net, in nanoseconds.
        slews: Of every net, in the library's unit.
    """

    nanoseconds: float
    levels: int
    settled: float
    slews: Mapping[int, float]


class Netlist:
    """Yosys' netlist of one flat module, mapped to a library.

    Args:
        path: Its JSON.
        process: The library.

    Raises:
        LibertyError: A cell or one of its pins is not in the library, is sequential in a way that is not simulated, or
            combinational cells form a loop.
    """

    def __init__(self, path: Path, process: Process):
        self.process = process
        module = next(m for m in json.loads(path.read_text(encoding="utf-8"))["modules"].values() if m["ports"])
        self.ports = {name: (p["direction"], list(p["bits"])) for name, p in module["ports"].items()}
        numbers = [n for _, bits in self.ports.values() for n in bits if isinstance(n, int)]
        numbers += [
            n for c in module["cells"].values() for b in c["connections"].values() for n in b if n not in _CONSTANTS
        ]
        self.nets = 1 + max(numbers)
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

    def _instance(self, cell: Mapping[str, Any]) -> Instance:
        kind = cell["type"]
        found = self.process.library.cells.get(kind)
        if found is None:
            raise LibertyError(f"{self.process.library.name} has no cell {kind!r}, which the netlist uses.")
        nets = {pin: bits[0] for pin, bits in cell["connections"].items() if bits}
        for pin in nets:
            if pin not in found.pins:
                raise LibertyError(
                    f"cell {kind!r} has no pin {pin!r}, which the netlist connects; {self.process.library.name} has "
                    f"{', '.join(found.pins)}."
                )
        instance = Instance(kind, found, nets)
        if not found.state:
            return instance
        try:
            _demand_rising(found.clock)
            for pin, _ in instance.outputs():
                instance.inverts(pin)
        except LibertyError as error:
            raise LibertyError(f"cell {kind!r}: {error}") from error
        if not instance.outputs():
            pins = {**found.pins, _HIDDEN: Pin(True, 0.0, found.state[0], (), ())}
            instance = replace(instance, cell=replace(found, pins=pins), nets={**nets, _HIDDEN: self.nets})
            self.nets += 1
        return instance

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

    def simulate(
        self, vectors: Vectors, counted: tuple[int, int] | None = None
    ) -> tuple[list[str], NDArray[np.float64]]:
        """Run the vectors' streams side by side, a bit each of Python's integers, without delays.

        Args:
            vectors: The streams.
            counted: Between which two cycles changes are counted; by default the first and the last.

        Returns:
            What differs from the expected outputs, and the changes of each net a cycle and stream, (nets,).
        """
        cycles, streams = vectors.shape
        settle, clocked = self._compiled()
        first, last = counted or (0, cycles - 1)
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
            if first < t <= last:
                for net, (a, b) in enumerate(zip(state, before, strict=True)):
                    if a != b:
                        changes[net] += (a ^ b).bit_count()
            if len(found) < 9 and vectors.checked[t].any():
                found += self._differences(vectors, t, state)
            before = list(state)
            for net, value in zip(flop_nets, clocked(state, mask), strict=True):
                state[net] = value
        return found, np.array(changes, float) / max(1, (last - first) * streams)

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

        def net(n: int | str) -> str:
            return f"n[{n}]" if isinstance(n, int) else _CONSTANTS[n]

        def invert(x: str) -> str:
            return f"(M ^ {x})"

        lines = ["def settle(n, M):"]
        for i in self.order:
            for pin, driven in i.outputs():
                lines.append(f" n[{driven}] = {i.expression(i.cell.pins[pin].function, net, invert, pin)}")
        lines += [" return", "def clocked(n, M):", " out = []"]
        for i in self.flops:
            following = i.expression(i.cell.next_state, net, invert)
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

        for i in [*self.flops, *self.order]:
            worst: dict[int, float] = {}
            flop = i.cell.state is not None
            for pin, net in i.outputs():
                at = self.farads[net] / load
                for arc in i.delay_arcs(pin):
                    source = i.nets.get(arc.related)
                    if not isinstance(source, int):
                        continue
                    edge, (start, levels) = (slew, (0.0, 0)) if flop else (slews[source], arrival[source])
                    arrival[net] = max(arrival[net], (start + max(arc.delays(edge, at)), levels + 1))
                    if transitions := arc.transitions(edge, at):
                        worst[net] = max(worst.get(net, 0.0), *transitions)
            slews.update(worst)
        longest, levels = 0.0, 0
        for i in self.flops:
            for pin, net in i.inputs():
                setups = [a for a in i.cell.pins[pin].timing if a.kind.startswith("setup")]
                setup = max((t(slews[net], slew) for a in setups for t in a.tables.values()), default=0.0)
                if net != self.clock and arrival[net][0] + setup > longest:
                    longest, levels = arrival[net][0] + setup, arrival[net][1]
        nanosecond = 1e-9 / self.process.library.seconds
        settled = max((at for at, _ in arrival.values()), default=0.0)
        return Timing(longest / nanosecond, levels, max(longest, settled) / nanosecond, slews)


def _demand_rising(clock: str) -> None:
    pins = names_in(clock)
    edge = [truth(clock, dict.fromkeys(pins, level)) for level in (0, 1)] if len(pins) == 1 else []
    if edge != [0, 1]:
        how = "by the falling edge" if edge == [1, 0] else "by no single pin"
        raise LibertyError(
            f"clocked {how} (clocked_on {clock!r}), which is not simulated; expected a pin's rising edge. In the "
            "library, mark the cell dont_use : true."
        )


def _packed(values: Integers, width: int) -> list[list[int]]:
    """Return, for each cycle and bit, one integer with a bit for each stream."""
    cycles = []
    for row in values:
        bits = (row[None] >> np.arange(width)[:, None] & 1).astype(np.uint8)
        cycles.append([int.from_bytes(np.packbits(b, bitorder="little").tobytes(), "little") for b in bits])
    return cycles
