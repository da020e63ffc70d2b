"""Detects records that contradict themselves: they were edited or damaged, even if the checksum
matches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from titer.records.record import CellRecord, MeasureFacts, Reading


def contradiction(record: CellRecord) -> str:
    """The first contradiction in a record, as a clause; empty if there is none."""
    found = (*_probes(record), *_steps(record), *_method(record), *_budget(record))
    return f"contradicts itself: {found[0]}" if found else ""


def _probes(record: CellRecord) -> Iterator[str]:
    steps = [p.step for p in record.probes]
    if any(a >= b for a, b in itertools.pairwise(steps)):
        yield f"its probe steps do not increase ({steps})"
        return
    # A run is also read where it ends, which need not be on the grid.
    ends = {record.cost.steps} if record.outcome == "finished" else set(steps[-1:])
    if stray := set(steps) - {*record.cell.probes} - ends:
        yield f"it was not to be read at step {min(stray)}"
    for p in record.probes:
        for reading in p.readings:
            if why := _reading(reading, record.measures.get(reading.label)):
                yield why
    if record.outcome == "finished":
        yield from _carried(record)


def _carried(record: CellRecord) -> Iterator[str]:
    """Of a run that had nothing left to do: probes beyond its last step repeat the one at it."""
    read = {p.step for p in record.probes}
    if left := [s for s in record.cell.probes if s not in read]:
        yield f"nothing was left to do, but its readings are not repeated at step {left[0]}"
    for before, p in itertools.pairwise(record.probes):
        same = (before.cost, before.readings) == (p.cost, p.readings)
        if p.step > record.cost.steps and not same:
            yield (
                f"nothing was done after step {record.cost.steps}, but step {p.step} differs "
                "from the probe before"
            )


def _steps(record: CellRecord) -> Iterator[str]:
    """One place per step in everything that is logged by step."""
    logged = {"loss": record.loss, "grad_norm": record.grad_norm, **record.figures}
    sizes = {name: len(values) for name, values in logged.items()}
    n = max(sizes.values())
    if odd := [name for name, size in sizes.items() if size not in (0, n)]:
        yield f"{odd[0]} has {sizes[odd[0]]} places for {n} steps"
    if figure := next((name for name in record.figures if not sizes[name]), ""):
        yield f"{figure} has no place for any of {n} steps"
    marks = record.nonfinite
    if any(a >= b for a, b in itertools.pairwise(marks)) or any(not 0 <= i < n for i in marks):
        yield f"its steps that were not finite are not among {n} steps in order ({list(marks)})"
        return
    for i in marks:
        if not any(values and values[i] is None for values in (record.loss, record.grad_norm)):
            yield f"step {i} was not finite, but its loss and gradient norm are numbers"


def _method(record: CellRecord) -> Iterator[str]:
    """What was declared belongs to the method that ran."""
    method, facts = record.cell.method, record.facts
    if facts is None:
        return
    if method is None:
        yield f"it has facts of {facts.name}, but no method was run"
    elif (facts.kind, facts.name, facts.version) != (method.kind, method.name, method.version):
        yield (
            f"it has facts of the {facts.kind} {facts.name} v{facts.version}, but ran the "
            f"{method.kind} {method.name} v{method.version}"
        )


def _budget(record: CellRecord) -> Iterator[str]:
    """A run that reached a budget in FLOPs took all its steps or spent the FLOPs."""
    cell = record.cell
    if record.outcome != "reached_budget" or cell.flops is None or not record.probes:
        return
    last = record.probes[-1]
    if last.step < cell.steps and not last.cost.spends(cell.flops):
        yield (
            f"it reached its budget, but took {last.step} of {cell.steps} steps and spent "
            f"{last.cost.flops:.3g} of {cell.flops:.3g} FLOPs"
        )


def _reading(reading: Reading, facts: MeasureFacts | None) -> str:
    if len(reading.outcomes) != reading.n:
        return f"{reading.label} has {len(reading.outcomes)} outcomes for n = {reading.n}"
    if (
        facts
        and facts.scale == "proportion"
        and not all(o in (None, 0.0, 1.0) for o in reading.outcomes)
    ):
        return f"{reading.label} is a proportion with outcomes other than 0 and 1"
    if reading.value is None:
        return ""
    if not reading.n or None in reading.outcomes:
        return f"{reading.label} has a value without finite outcomes"
    kept = [o for o in reading.outcomes if o is not None]
    mean, size = math.fsum(kept) / reading.n, max(map(abs, kept))
    if not abs(reading.value - mean) <= 1e-5 * size + 1e-12:  # outcomes are kept to six digits
        return f"{reading.label} = {reading.value:g} is not the mean of its outcomes, {mean:g}"
    return ""
