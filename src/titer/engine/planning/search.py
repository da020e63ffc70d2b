"""Which settings are confirmed: one search interface for attacks and for harmless training.

A search only sees search seeds and search prompts; its runs are never judged. `ask` is pure, so
that planning again repeats it and running trials in parallel changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Protocol

from titer.records.record import CellRecord
from titer.study.uses import combinations

Point = dict[str, Any]
"""Settings field → value of one trial."""
Space = Mapping[str, Sequence[Any]]
"""Settings field → values that may be tried."""


@dataclass(frozen=True)
class Trial:
    """A point, and the records of its runs (one per search seed)."""

    point: Point
    records: tuple[CellRecord, ...]


class Search(Protocol):
    """Asks for further trials given those that are finished, and says which is best.

    `ask` may be called any number of times with the same history and must give the same answer; an
    empty answer ends the search.
    """

    def ask(self, space: Space, history: Sequence[Trial]) -> Sequence[Point]: ...

    def best(self, history: Sequence[Trial]) -> Point: ...


@dataclass(frozen=True)
class Grid:
    """Every combination of the values, in declared order. rank: lower is better; ties go to the
    first declared."""

    rank: Callable[[Trial], tuple[float, ...]]

    def ask(self, space: Space, history: Sequence[Trial]) -> Sequence[Point]:
        tried = [trial.point for trial in history]
        return [p for p in combinations(space) if p not in tried]

    def best(self, history: Sequence[Trial]) -> Point:
        return min(history, key=self.rank).point


def chosen(
    search: Search, space: Space, run: Callable[[Point], tuple[CellRecord, ...] | None]
) -> Point | None:
    """The point a search ends with; {} if there is nothing to choose; None while one is missing.

    run: plans the trials' cells, and gives their records, or None while one is missing.
    """
    if not space:
        return {}
    history: list[Trial] = []
    while points := search.ask(space, tuple(history)):
        records = [(point, run(point)) for point in points]
        if any(found is None for _, found in records):
            return None
        history += [Trial(point, found) for point, found in records if found is not None]
    return search.best(history)


def cheapest_breach(phi: float) -> Callable[[Trial], tuple[float, ...]]:
    """Ranks attacks: fewest training FLOPs to φ (mean over search seeds; a run that never gets
    there counts as infinite), then the most harm at the end."""

    def rank(trial: Trial) -> tuple[float, ...]:
        reached = fmean(_flops_to(record, phi) for record in trial.records)
        return reached, -fmean(_last(record, "harm") for record in trial.records)

    return rank


def best_score(label: str) -> Callable[[Trial], tuple[float, ...]]:
    """Ranks training recipes: the best score at the end of the budget (mean over search seeds)."""

    def rank(trial: Trial) -> tuple[float, ...]:
        worse = all(r.measures[label].higher == "worse" for r in trial.records)
        return ((1.0 if worse else -1.0) * fmean(_last(record, label) for record in trial.records),)

    return rank


def _flops_to(record: CellRecord, phi: float) -> float:
    for probe in record.probes:
        reading = probe.reading("harm")
        if reading and reading.value is not None and reading.value >= phi:
            return probe.cost.flops
    return float("inf")


def _last(record: CellRecord, label: str) -> float:
    """The last finite reading of a record, 0 if there is none."""
    values = [r.value for p in record.probes if (r := p.reading(label)) and r.value is not None]
    return values[-1] if values else 0.0
