"""When a step's tasks run on a chip's units: each unit one task at a time, tasks wait for what they need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """A piece of work.

    Attributes:
        name: Its own.
        unit: That does it.
        cycles: That it takes.
        after: Names of the tasks whose results it needs.
    """

    name: str
    unit: str
    cycles: float
    after: tuple[str, ...] = ()


def finish_times(tasks: Sequence[Task]) -> dict[str, float]:
    """Return when each task ends. A unit takes, of the tasks that are ready first, the one given first.

    Raises:
        ValueError: A task waits for one that is not there, or they wait for each other.
    """
    ends: dict[str, float] = {}
    free: dict[str, float] = {}
    left = list(tasks)
    while left:
        ready = [t for t in left if all(a in ends for a in t.after)]
        if not ready:
            raise ValueError(f"schedule: {left[0].name!r} waits for {', '.join(left[0].after)}, which never end.")
        starts = [max([free.get(t.unit, 0.0), *(ends[a] for a in t.after)]) for t in ready]
        first = min(range(len(ready)), key=lambda n: (starts[n], left.index(ready[n])))
        task = ready[first]
        ends[task.name] = free[task.unit] = starts[first] + task.cycles
        left.remove(task)
    return ends


def period(step: Sequence[Task], repeats: Mapping[str, Sequence[str]], steps: int = 4) -> float:
    """Return the cycles between two steps of a long run.

    Args:
        step: The tasks of one step.
        repeats: Which tasks of the step before a task waits for as well, by its name.
        steps: Simulated.
    """
    tasks = [
        Task(
            f"{n}/{t.name}",
            t.unit,
            t.cycles,
            (*(f"{n}/{a}" for a in t.after), *(f"{n - 1}/{a}" for a in repeats.get(t.name, ()) if n)),
        )
        for n in range(steps)
        for t in step
    ]
    ends = finish_times(tasks)
    last = [max(end for name, end in ends.items() if name.startswith(f"{n}/")) for n in range(steps)]
    return last[-1] - last[-2] if steps > 1 else last[-1]
