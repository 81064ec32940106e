"""When a step's tasks run on a chip's units: each unit one task at a time, tasks wait for what they need."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf


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
    waits = [len(set(t.after)) for t in tasks]
    feeds: dict[str, list[int]] = defaultdict(list)
    for n, t in enumerate(tasks):
        for name in set(t.after):
            feeds[name].append(n)
    # By unit: those that become ready later, by that time; and those that are ready when it is free, in their order.
    later: dict[str, list[tuple[float, int]]] = {t.unit: [] for t in tasks}
    ready: dict[str, list[int]] = {t.unit: [] for t in tasks}
    free = dict.fromkeys(later, 0.0)

    def arrive(n: int) -> None:
        at = max((ends[a] for a in tasks[n].after), default=0.0)
        heappush(later[tasks[n].unit], (at, n))

    def upcoming(unit: str) -> tuple[float, int]:
        while later[unit] and later[unit][0][0] <= free[unit]:
            heappush(ready[unit], heappop(later[unit])[1])
        return (free[unit], ready[unit][0]) if ready[unit] else later[unit][0] if later[unit] else (inf, len(tasks))

    for n, count in enumerate(waits):
        if not count:
            arrive(n)
    for _ in tasks:
        start, n = min(upcoming(unit) for unit in later)
        if start == inf:
            left = next(t for t in tasks if t.name not in ends)
            raise ValueError(f"schedule: {left.name!r} waits for {', '.join(left.after)}, which never end.")
        task = tasks[n]
        heappop(ready[task.unit]) if ready[task.unit] else heappop(later[task.unit])
        ends[task.name] = free[task.unit] = start + task.cycles
        for follower in feeds[task.name]:
            waits[follower] -= 1
            if not waits[follower]:
                arrive(follower)
    return ends


def period(step: Sequence[Task], repeats: Mapping[str, Sequence[str]], steps: int = 24) -> float:
    """Return the cycles between two steps of a long run: their mean, since steps may differ in turns.

    Args:
        step: The tasks of one step.
        repeats: Which tasks of the step before a task waits for as well, by its name.
        steps: Over which it is taken. As many are simulated before and half as many behind them, since units work ahead
            in the first ones, and nothing competes with the last.
    """
    count = 2 * steps + steps // 2
    tasks = [
        Task(
            f"{n}/{t.name}",
            t.unit,
            t.cycles,
            (*(f"{n}/{a}" for a in t.after), *(f"{n - 1}/{a}" for a in repeats.get(t.name, ()) if n)),
        )
        for n in range(count)
        for t in step
    ]
    ends = finish_times(tasks)
    before, last = (max(ends[f"{n}/{t.name}"] for t in step) for n in (steps - 1, 2 * steps - 1))
    work: dict[str, float] = defaultdict(float)
    for t in step:
        work[t.unit] += t.cycles
    # What a unit has worked ahead can last for longer than is simulated; not for ever.
    return max((last - before) / steps, *work.values())
