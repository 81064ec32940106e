"""Energy a cycle of a netlist: what its nets' changes cost in the library's tables."""

from __future__ import annotations

from dataclasses import dataclass

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
    library, slews = netlist.process.library, netlist.timing.slews
    charge = 0.5 * library.volts**2
    changes = changes.copy()
    changes[netlist.clock] = 2.0
    spared = {n for i in netlist.flops for _, n in i.outputs()} if netlist.process.flop_energy_has_load else set()
    nets = sum(charge * f * changes[n] for n, f in netlist.farads.items() if n != netlist.clock and n not in spared)

    def within(i: Instance) -> float:
        joules = 0.0
        for pin, net in i.nets.items():
            arcs = i.cell.pins[pin].power
            if not isinstance(net, int) or not changes[net] or not arcs:
                continue
            # Rise and fall come in turn, and which input made an output change is not known: their mean.
            load = netlist.farads.get(net, 0.0) / library.farads if i.cell.pins[pin].output else 0.0
            sources = [i.nets.get(a.related, net) for a in arcs]
            tables = [
                np.mean([t(slews[s] if isinstance(s, int) else netlist.process.slew, load) for t in a.tables.values()])
                for a, s in zip(arcs, sources, strict=True)
                if a.tables
            ]
            joules += changes[net] * float(np.mean(tables)) * library.farads if tables else 0.0
        return joules

    return Energy(
        nets / 1e-12,
        sum(within(i) for i in netlist.order) / 1e-12,
        sum(within(i) for i in netlist.flops) / 1e-12,
        charge * 2 * netlist.farads[netlist.clock] / 1e-12,
        netlist.watts / 1e-6,
    )
