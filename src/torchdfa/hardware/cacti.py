"""Energies of on-chip memories from CACTI 7, whose program comes within the package ``zigzag-dse``.

``python -m torchdfa.hardware.cacti`` makes ``memories.csv`` anew, from which chips take them.
"""

from __future__ import annotations

import csv
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from importlib import resources
from pathlib import Path

import numpy as np

NANOMETRES = (45, 65, 90)
KIBIBYTES = (4, 8, 16, 32, 64, 128, 256, 512, 1024)
WORD_BITS = 64


class CactiError(RuntimeError):
    """CACTI is missing or failed; the message says which."""


def sram_picojoules(kibibytes: float, nanometres: int) -> float:
    """Return picojoules a byte of an SRAM of one bank with 64-bit words, read and write averaged.

    Interpolated between CACTI's sizes, in logarithms.

    Raises:
        ValueError: There are no figures for the process or the size.
    """
    text = resources.files("torchdfa.hardware").joinpath("memories.csv").read_text(encoding="utf-8")
    rows = [r for r in csv.DictReader(line for line in text.splitlines() if line[0] != "#")]
    found = {
        float(r["kib"]): (float(r["read_pj"]) + float(r["write_pj"])) / 2 for r in rows if int(r["nm"]) == nanometres
    }
    if not found:
        processes = sorted({int(r["nm"]) for r in rows})
        there = ", ".join(map(str, processes))
        raise ValueError(f"no memory figures for {nanometres} nm, there are those of {there} nm: give sram.pj_per_byte")
    sizes = sorted(found)
    if not sizes[0] <= kibibytes <= sizes[-1]:
        there = f"{sizes[0]:g} to {sizes[-1]:g} KiB"
        raise ValueError(f"a memory of {kibibytes:g} KiB; the figures go from {there}: give sram.pj_per_byte")
    word = np.exp(np.interp(np.log(kibibytes), np.log(sizes), np.log([found[s] for s in sizes])))
    return float(word) / (WORD_BITS / 8)


def run_cacti(kibibytes: int, nanometres: int) -> tuple[float, float, float]:
    """Return picojoules of a read and a write of a 64-bit word, and leakage in milliwatts."""
    spec = importlib.util.find_spec("zigzag")
    if spec is None or not spec.submodule_search_locations:
        raise CactiError("CACTI is missing. Install it: pip install zigzag-dse six")
    source = Path(next(iter(spec.submodule_search_locations))) / "cacti" / "cacti_master"
    from zigzag.cacti.cacti_master.cacti_config_creator import CactiConfig  # type: ignore[import-not-found]

    with tempfile.TemporaryDirectory() as scratch:
        # CACTI reads its tables from, and writes beside, the folder that it runs in.
        folder = Path(shutil.copytree(source, Path(scratch) / "cacti"))
        values = {
            "mem_type": '"ram"',
            "cache_size": str(kibibytes * 1024),
            "IO_bus_width": str(WORD_BITS),
            "ex_rd_port": "0",
            "ex_wr_port": "0",
            "rd_wr_port": "1",
            "bank_count": "1",
            "technology": str(nanometres / 1000),
            "line_size": str(WORD_BITS // 8),
        }
        config = folder / "memory.cfg"
        options = CactiConfig()
        lines = [o["string"] + str(values.get(name, o["default"])) + "\n" for name, o in options.config_options.items()]
        options.write_config(lines, str(config))
        command = [str(folder / "cacti"), "-infile", str(config)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode or not Path(f"{config}.out").is_file():
            raise CactiError(f"CACTI failed on {kibibytes} KiB at {nanometres} nm: {done.stdout[-300:]}")
        with Path(f"{config}.out").open(encoding="utf-8") as file:
            names, values_ = ([cell.strip() for cell in row] for row in list(csv.reader(file))[:2])
        row = dict(zip(names, values_, strict=False))
    nano = 1000.0
    return (
        float(row["Dynamic read energy (nJ)"]) * nano,
        float(row["Dynamic write energy (nJ)"]) * nano,
        float(row["Standby leakage per bank(mW)"]),
    )


def main() -> None:
    """Print ``memories.csv``."""
    print("# CACTI 7, RAM, one bank, one port, 64-bit words, itrs-hp, 360 K; python -m torchdfa.hardware.cacti")
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["nm", "kib", "read_pj", "write_pj", "leakage_mw"])
    for nm in NANOMETRES:
        for kib in KIBIBYTES:
            writer.writerow([nm, kib, *(f"{x:.4g}" for x in run_cacti(kib, nm))])
            sys.stdout.flush()


if __name__ == "__main__":
    main()
