"""Trajectories as the verdicts read them: one trajectory per seed, with exact bounds on every
reading.

A trajectory is read once; `times` then judges it at any φ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from titer.errors import MeasureError
from titer.records import bounds as exact
from titer.records.record import CellRecord, MeasureFacts, Reading
from titer.records.view import Entry
from titer.study.facts import MethodFacts

NOTHING = (0.0, 1.0)
"""Bounds of a reading that says nothing."""


@lru_cache(maxsize=65536)
def proportion(successes: int, n: int, level: float) -> tuple[float, float]:
    """Clopper–Pearson (lower, upper), each one-sided at `level`; few distinct counts occur, so they
    are kept.
    """
    return exact.lower_bound(successes, n, level), exact.upper_bound(successes, n, level)


def bounds(
    reading: Reading | None, facts: MeasureFacts | None, level: float
) -> tuple[float, float]:
    """(lower, upper), each one-sided at `level`; (0, 1) where there is no reading, no facts, or no
    exact bound.
    """
    if reading is None or facts is None:
        return NOTHING
    value = reading.value
    if value is None or reading.n <= 0 or not math.isfinite(value):
        return NOTHING
    if facts.sampling == "population" and facts.scale == "proportion":
        return proportion(round(value * reading.n), reading.n, level)
    try:
        return exact.bounds(reading, facts, level)
    except MeasureError:  # reported once for the study by `unfit`; here the reading says nothing
        return NOTHING


def unfit(facts: MeasureFacts) -> bool:
    """A harm measure that stands for a population of prompts but has no exact bound, or whose more
    is not more harm.
    """
    return (
        facts.sampling == "population" and facts.scale != "proportion"
    ) or facts.higher == "capable"


@dataclass(frozen=True)
class Probe:
    """The readings of one probe. low, high: exact one-sided bounds of harm; NOTHING for a reading
    that is missing.
    """

    step: int
    flops: float
    harm: float | None = None
    low: float = 0.0
    high: float = 1.0
    confirm: float | None = None
    confirm_low: float = 0.0
    capability: float | None = None
    coherence: float | None = None
    second: float | None = None
    second_bounds: tuple[float, float] | None = None


@dataclass(frozen=True)
class SeedTrajectory:
    """One seed under one attack. finished: the run came to its budget, or had nothing left to do
    before, and every planned probe up to there was read.

    exhausted: nothing was left to do, so no larger budget would change what was read.
    stopped_above: the run was stopped because harm was surely above this (inf: the rule is not
    recorded); None if it was not. missing: budgets whose cell is not done (only for schedules in
    which each budget is a cell of its own). prefix_unfit: a horizon-dependent schedule was read at
    intermediate steps. checkpoint: the defense seed of the model attacked, if the candidate has
    several.
    """

    seed: int
    digests: tuple[str, ...]
    outcome: str
    probes: tuple[Probe, ...]
    finished: bool
    exhausted: bool = False
    stopped_above: float | None = None
    missing: tuple[int, ...] = ()
    chance: float = 0.0
    capability_fit: bool = False
    prefix_unfit: bool = False
    checkpoint: int | None = None
    chosen: dict[str, Any] = field(default_factory=dict)
    records: tuple[CellRecord, ...] = ()

    @property
    def second(self) -> Probe | None:
        """The last probe, if the second judge read it."""
        last = self.probes[-1] if self.probes else None
        return last if last and last.second_bounds else None

    @property
    def facts(self) -> MethodFacts | None:
        """What the method declared about itself in this run."""
        return self.records[0].facts if self.records else None


def horizon_free(record: CellRecord) -> bool:
    """Whether a prefix of the run is a shorter run: its method must have declared so."""
    return record.facts is not None and record.facts.horizon_free


def read_trajectories(
    entries: Sequence[Entry], grid: Sequence[int], level: float
) -> tuple[SeedTrajectory, ...]:
    """Trajectories of one attack on one candidate, in plan order. Entries without a record give no
    trajectory.

    A seed planned twice gives two trajectories: none is dropped, either may breach, and both must
    resist.
    """
    trajectories: list[SeedTrajectory] = []
    joined: dict[int, list[Entry]] = {}
    for entry in entries:
        if entry.role.prefix_budget is not None:
            joined.setdefault(entry.role.seed, []).append(entry)
        elif entry.record is not None:
            trajectories.append(_single(entry, entry.record, grid, level))
    for seed, parts in joined.items():
        trajectories += [
            _join(seed, run, grid, level) for run in _runs(parts) if any(e.record for e in run)
        ]
    return tuple(sorted(trajectories, key=lambda t: t.seed))


WHOLE = ("reached_budget", "finished")
"""Outcomes of runs that did all there was to do."""


def _came_to_its_end(record: CellRecord, budget: int) -> bool:
    """Whether a run did all there was to do: read to the last step of the grid, or ended before
    because it had spent its FLOPs.
    """
    if record.outcome not in WHOLE or not record.probes:
        return False
    last, flops = record.probes[-1], record.cell.flops
    spent = flops is not None and last.cost.spends(flops)
    return last.step >= budget or (spent and record.outcome == "reached_budget")


def _probe(record: CellRecord, step: int, flops: float, level: float) -> Probe:
    probe = record.probe(step)
    if probe is None:
        return Probe(step=step, flops=flops)
    read, facts = probe.reading, record.measures
    harm, confirm, capability, second = (
        read(k) for k in ("harm", "confirm", "capability", "second")
    )
    low, high = bounds(harm, facts.get("harm"), level)
    return Probe(
        step=step,
        flops=probe.cost.flops,
        harm=harm.value if harm else None,
        low=low,
        high=high,
        confirm=confirm.value if confirm else None,
        confirm_low=bounds(confirm, facts.get("confirm") or facts.get("harm"), level)[0],
        # A model whose capability cannot be computed (NaN weights) has none.
        capability=(-math.inf if capability.value is None else capability.value)
        if capability
        else None,
        coherence=min(
            (r.aspects["coherent"] for r in (harm, second) if r and "coherent" in r.aspects),
            default=None,
        ),
        second=second.value if second else None,
        second_bounds=bounds(second, facts.get("second"), level) if second else None,
    )


def _capability(record: CellRecord) -> dict[str, Any]:
    facts = record.measures.get("capability")
    fit = (
        facts is not None
        and facts.higher == "capable"
        and (facts.scale == "proportion" or facts.chance is not None)
    )
    return {"chance": (facts.chance or 0.0) if facts else 0.0, "capability_fit": fit}


def _stopped(record: CellRecord) -> float | None:
    if record.outcome != "stopped_broken":
        return None
    return record.cell.stop.above if record.cell.stop else math.inf


def _single(entry: Entry, record: CellRecord, grid: Sequence[int], level: float) -> SeedTrajectory:
    read = {p.step for p in record.probes}
    end = max(read, default=-1)
    # A planned probe that was passed without a reading says nothing, and must not be taken for a
    # quiet one.
    steps = sorted(read | {g for g in grid if g < end})
    flops = {p.step: p.cost.flops for p in record.probes}
    # What was read beyond a budget in FLOPs (its last step was dearer than the others) says nothing
    # about attackers who have no more than that.
    most = record.cell.flops or math.inf
    steps = [s for s in steps if flops.get(s, 0.0) <= most * (1 + 1e-9)]
    probes = tuple(
        _probe(record, s, max((f for t, f in flops.items() if t <= s), default=0.0), level)
        for s in steps
    )
    return SeedTrajectory(
        seed=entry.role.seed,
        digests=(entry.digest,),
        outcome=record.outcome,
        probes=probes,
        finished=_came_to_its_end(record, grid[-1]),
        exhausted=record.outcome == "finished",
        stopped_above=_stopped(record),
        prefix_unfit=len(steps) > 2 and not horizon_free(record),
        checkpoint=entry.role.defense_seed,
        chosen=entry.role.point,
        records=(record,),
        **_capability(record),
    )


def _runs(parts: list[Entry]) -> list[list[Entry]]:
    """The entries of one seed as runs with one cell per budget. Budgets planned twice give two
    runs, so that no cell is dropped; what a run lacks it shares with the first.
    """
    by_budget: dict[int, list[Entry]] = {}
    for entry in parts:
        by_budget.setdefault(entry.role.prefix_budget or 0, []).append(entry)
    return [
        [e[min(i, len(e) - 1)] for e in by_budget.values()]
        for i in range(max(map(len, by_budget.values())))
    ]


def _join(seed: int, parts: list[Entry], grid: Sequence[int], level: float) -> SeedTrajectory:
    """One trajectory from the ends of cells that were each trained to their own budget.

    A cell that diverged has no reading at its budget: that probe says nothing. A cell stopped
    before its end was surely broken by then, so its breach counts at its budget; so does what was
    read of a cell that had spent its FLOPs.
    """
    parts = sorted(parts, key=lambda e: e.role.prefix_budget or 0)
    done = {e.role.prefix_budget or 0: e.record for e in parts if e.record}
    planned = sorted({b for b in grid if b > 0} | {e.role.prefix_budget or 0 for e in parts})
    first = next(iter(done.values()))
    probes = [_probe(first, 0, 0.0, level)]
    stopped, missing = None, []
    for budget in planned:
        record = done.get(budget)
        if record is None:
            missing.append(budget)
            if budget < max(done):  # a gap between budgets that are done might hold a breach
                probes.append(Probe(step=budget, flops=probes[-1].flops))
            continue
        broken = record.outcome == "stopped_broken"
        last = max((p.step for p in record.probes), default=0)
        at = last if broken or _came_to_its_end(record, budget) else budget
        if at > 0:
            probes.append(replace(_probe(record, at, record.cost.flops, level), step=budget))
        if broken:  # larger budgets cannot make the first breach earlier
            stopped = _stopped(record)
            break
    return SeedTrajectory(
        seed=seed,
        digests=tuple(e.digest for e in parts if e.record),
        outcome=next((r.outcome for r in done.values() if r.outcome not in WHOLE), first.outcome),
        probes=tuple(probes),
        finished=not missing and all(r.outcome in WHOLE for r in done.values()),
        exhausted=all(r.outcome == "finished" for r in done.values()),
        stopped_above=stopped,
        missing=tuple(missing),
        checkpoint=parts[0].role.defense_seed,
        chosen=parts[0].role.point,
        records=tuple(done.values()),
        **_capability(first),
    )
