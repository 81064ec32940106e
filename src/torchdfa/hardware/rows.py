"""The rows of a run's CSV files, and reading and writing them."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from pathlib import Path
from typing import Any, Generic, TypeVar, get_type_hints

from torchdfa.files import write_rows

Row = TypeVar("Row")


@dataclass(frozen=True)
class Check:
    """One verification: a unit on a stream in a simulator.

    Attributes:
        unit: The design, or what else is compared.
        stream: What it was fed with.
        against: ``PyTorch``, ``RTL`` (Amaranth's simulator), ``Verilog`` (cocotb), ``gates`` or ``timed gates``.
        library: Of the gates; "" otherwise.
        compared: Outputs compared, in cycles.
        result: ``equal``, ``skipped: why``, or the first difference.
        size: Of the cores, as :class:`torchdfa.hardware.designs.Parameters` prints it.
    """

    unit: str
    stream: str
    against: str
    library: str
    compared: int
    result: str
    size: str = ""

    @property
    def failed(self) -> bool:
        """Whether something differed."""
        return self.result != "equal" and not self.result.startswith("skipped")


@dataclass(frozen=True)
class Synthesised:
    """A design mapped to a library.

    Attributes:
        design: Its name.
        library: The library's.
        size: Of the cores, as in :class:`Check`.
        cells: Standard cells.
        flops: Of them flip-flops.
        area: µm²; transistors for generic gates.
        path_ns: Longest path between registers; 0 for generic gates.
        leakage_uw: Microwatts.
        seconds: For the synthesis.
    """

    design: str
    library: str
    size: str
    cells: int
    flops: int
    area: float
    path_ns: float
    leakage_uw: float
    seconds: float


@dataclass(frozen=True)
class Measured:
    """A core's energy on a stream.

    Attributes:
        design: Its name.
        library: The library's.
        size: Of the cores, as in :class:`Check`.
        wires: The wires' capacitances, as a multiple of what ``libraries.yaml`` assumes.
        stream: What it was fed with.
        delays: ``zero`` or ``timed``.
        cycles: Measured, in all streams.
        changes: Of all nets a cycle.
        picojoules: A cycle, dynamic.
        nets_pj: Of them in wires and pins.
        cells_pj: In combinational cells.
        flops_pj: In flip-flops.
        clock_pj: In the flip-flops' clock pins.
        terms: That carried something, a cycle, in all lanes; the mean.
    """

    design: str
    library: str
    size: str
    wires: float
    stream: str
    delays: str
    cycles: int
    changes: float
    picojoules: float
    nets_pj: float
    cells_pj: float
    flops_pj: float
    clock_pj: float
    terms: float

    @property
    def per_term(self) -> float:
        """Picojoules a term that carried something."""
        return self.picojoules / self.terms


@dataclass(frozen=True)
class Trained:
    """A head trained in one arithmetic.

    Attributes:
        data: The data set, or the features of it.
        method: BP or BDFA.
        arithmetic: ``float64``, ``16 bits`` …
        settings: Of the training, those that all arithmetics share.
        seed: Of weights and order.
        test_top1: Percent, after the last epoch.
        train_top1: Percent.
        seconds: For the training.
    """

    data: str
    method: str
    arithmetic: str
    settings: str
    seed: int
    test_top1: float
    train_top1: float
    seconds: float


@dataclass(frozen=True)
class Stepped:
    """A phase of a layer in a training step; as :class:`torchdfa.hardware.Cost`.

    Attributes:
        network: Its name.
        chip: Its name.
        rule: What trains.
        batch: N.
        layer: Its name.
        phase: ``forward``, ``error``, ``gradient``, ``update``.
        unit: Of the chip.
        macs: Multiplications with an addition.
        adds: Of signed terms.
        sram_bytes: On chip.
        dram_bytes: From and to DRAM.
        feedback_bytes: Of these, for feedback.
        compute_pj: Of operations.
        sram_pj: Of on-chip memory.
        dram_low_pj: Of DRAM, low.
        dram_pj: Middle.
        dram_high_pj: High.
        cycles: Of the unit.
        period: Of the whole step, its units in turn.
        pipelined: Of the whole step, its units side by side.
    """

    network: str
    chip: str
    rule: str
    batch: int
    layer: str
    phase: str
    unit: str
    macs: float
    adds: float
    sram_bytes: float
    dram_bytes: float
    feedback_bytes: float
    compute_pj: float
    sram_pj: float
    dram_low_pj: float
    dram_pj: float
    dram_high_pj: float
    cycles: float
    period: float
    pipelined: float


@dataclass(frozen=True)
class Crosschecked:
    """A figure of ours beside another tool's.

    Attributes:
        what: The figure.
        tool: The other.
        unit: Of both.
        ours: Our figure.
        theirs: The other's.
    """

    what: str
    tool: str
    unit: str
    ours: float
    theirs: float


def write(path: Path, kind: type[Row], rows: Iterable[Row]) -> None:
    """Write rows as CSV, all at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_rows(path, kind, rows)


def read(path: Path, kind: type[Row]) -> list[Row]:
    """Read them; none where there is no file.

    Raises:
        ValueError: The file is of another kind.
    """
    if not path.is_file():
        return []
    types: dict[str, Callable[[str], Any]] = get_type_hints(kind)
    found = []
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        reader = csv.DictReader(file)
        names: Sequence[str] = reader.fieldnames or []
        if list(names) != [f.name for f in fields(kind)]:  # type: ignore[arg-type]
            raise ValueError(
                f"{path} has the columns {', '.join(names)}; expected those of {kind.__name__}. Move it away, or "
                "choose another folder by --out."
            )
        for line in reader:
            try:
                found.append(kind(**{name: types[name](line.pop(name)) for name in names}))
                if line:
                    raise ValueError("it has more cells than the header")
            except (ValueError, TypeError) as error:
                raise ValueError(
                    f"{path}, line {reader.line_num}: {error}. Mend the line, or move the file away."
                ) from error
    return found


class Table(Generic[Row]):
    """The file of a command's rows, written as they come; rows of other settings that it holds stay.

    It is a context: a file beside it says that it is not whole, until the context ends without an exception.

    Args:
        path: The CSV file, which may be there.
        kind: Of the rows.
        same: The attributes whose values say what a row is of; of that, new rows take the place of old ones.

    Raises:
        ValueError: The file is of another kind: said before there is anything to lose.
    """

    def __init__(self, path: Path, kind: type[Row], same: tuple[str, ...]):
        self.path, self.kind, self.same = path, kind, attrgetter(*same)
        read(path, kind)

    def __enter__(self) -> Table[Row]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _mark(self.path).touch()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            _mark(self.path).unlink(missing_ok=True)

    def add(self, *rows: Row) -> None:
        """Write rows, in place of those of the same."""
        new = {self.same(row) for row in rows}
        # Read anew: another command may write there meanwhile.
        kept = (row for row in read(self.path, self.kind) if self.same(row) not in new)
        write(self.path, self.kind, [*kept, *rows])


def is_whole(path: Path) -> bool:
    """Tell whether a file of rows is there, and the command that writes it ended."""
    return path.is_file() and not _mark(path).exists()


def _mark(path: Path) -> Path:
    return path.with_name(f"{path.name}.unfinished")
