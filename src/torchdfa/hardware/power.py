"""Energy a cycle of a netlist: what its nets' changes cost in the library's tables."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from torchdfa.hardware.netlist import Instance, Netlist


@dataclass(frozen=True)
class Energy:
    """Picojoules a clock cycle.

    Attributes:
        nets: Charging wires and input pins, the clock's apart.
        cells: Within combinational cells.
        flops: Within flip-flops, the clock's edges among them.
        clock: Charging the flip-flops' clock pins; the clock's tree is not there.
        leakage: Microwatts, not picojoules.
    """

    nets: float
    cells: float
    flops: float
    clock: float
    leakage: float

    @property
    def picojoules(self) -> float:
        """Dynamic energy, all parts."""
        return self.nets + self.cells + self.flops + self.clock


def energy(netlist: Netlist, changes: NDArray[np.float64]) -> Energy:
    """Return the energy of a cycle with so many changes of each net, (nets,); the clock's two are added."""
    changes = changes.copy()
    changes[netlist.clock] = 2.0
    charges = _charges(netlist)
    nets, cells, flops, clock = (float(changes @ joules) / 1e-12 for joules in charges)
    return Energy(nets, cells, flops, clock, netlist.watts / 1e-6)


@lru_cache(maxsize=8)
def _charges(netlist: Netlist) -> tuple[NDArray[np.float64], ...]:
    """Return the joules that one change of each net costs: in the net, in cells, in flip-flops, in the clock's net."""
    process, slews = netlist.process, netlist.timing.slews
    library = process.library
    nets, cells, flops, clock = np.zeros((4, netlist.nets))
    spared = {n for i in netlist.flops for _, n in i.outputs()} if process.flop_energy_has_load else set()
    for net, farads in netlist.farads.items():
        charged = clock if net == netlist.clock else nets
        charged[net] = 0.0 if net in spared else 0.5 * library.volts**2 * farads

    def add(i: Instance, joules: NDArray[np.float64]) -> None:
        for pin, net in i.nets.items():
            arcs = [a for a in i.cell.pins[pin].power if a.tables]
            if not isinstance(net, int) or not arcs:
                continue
            # Rise and fall come in turn, and which input made an output change is not known: their mean.
            load = netlist.farads.get(net, 0.0) / library.farads if i.cell.pins[pin].output else 0.0
            total = 0.0
            for arc in arcs:
                source = i.nets.get(arc.related, net)
                slew = slews[source] if isinstance(source, int) else process.slew
                total += sum(table(slew, load) for table in arc.tables.values()) / len(arc.tables)
            joules[net] += total / len(arcs) * library.joules

    for i in netlist.order:
        add(i, cells)
    for i in netlist.flops:
        add(i, flops)
    return nets, cells, flops, clock
