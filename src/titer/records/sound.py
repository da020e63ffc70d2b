"""A record that contradicts itself was edited or damaged, whatever its checksum says."""

from __future__ import annotations

import itertools
import math

from titer.records.model import CellRecord, MeasureFacts, Reading


def contradiction(record: CellRecord) -> str:
    """What in a record cannot be true together, as a clause; empty if nothing is found."""
    steps = [p.step for p in record.probes]
    if any(a >= b for a, b in itertools.pairwise(steps)):
        return f"contradicts itself: its probe steps do not increase ({steps})"
    if stray := set(steps) - {*record.cell.probes, *steps[-1:]}:
        return f"contradicts itself: it was not to be read at step {min(stray)}"
    found = (_reading(r, record.measures.get(r.label)) for p in record.probes for r in p.readings)
    return next((f"contradicts itself: {f}" for f in found if f), "")


def _reading(reading: Reading, facts: MeasureFacts | None) -> str:
    if len(reading.outcomes) != reading.n:
        return f"{reading.label} has {len(reading.outcomes)} outcomes for n = {reading.n}"
    if facts and facts.scale == "proportion" and not all(o in (None, 0.0, 1.0) for o in reading.outcomes):
        return f"{reading.label} is a proportion with outcomes beside 0 and 1"
    if reading.value is None:
        return ""
    if not reading.n or None in reading.outcomes:
        return f"{reading.label} has a value without finite outcomes"
    kept = [o for o in reading.outcomes if o is not None]
    mean, size = math.fsum(kept) / reading.n, max(map(abs, kept))
    if not abs(reading.value - mean) <= 1e-5 * size + 1e-12:  # outcomes are kept to six digits
        return f"{reading.label} = {reading.value:g} is not the mean of its outcomes, {mean:g}"
    return ""
