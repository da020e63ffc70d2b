"""Exact binomial bounds for a reading (Clopper and Pearson 1934)."""

from __future__ import annotations

import math

from scipy.special import betaincinv

from titer.errors import MeasureError
from titer.records.record import MeasureFacts, Reading


def lower_bound(successes: float, n: int, level: float) -> float:
    """Exact one-sided lower confidence bound, level 1 − `level`, for a proportion with `successes`
    of `n`.
    """
    return 0.0 if successes <= 0 else float(betaincinv(successes, n - successes + 1, level))


def upper_bound(successes: float, n: int, level: float) -> float:
    """Exact one-sided upper confidence bound, level 1 − `level`."""
    return 1.0 if successes >= n else float(betaincinv(successes + 1, n - successes, 1 - level))


def bounds(reading: Reading, facts: MeasureFacts, level: float) -> tuple[float, float]:
    """(lower, upper) for a harm reading, each one-sided at `level`; both equal the value when
    sampling is `fixed`.

    A reading with a non-finite outcome says nothing: (0, 1). Raises MeasureError for a `population`
    measure that is not a proportion: no exact bound exists for it, and a normal one would be too
    narrow in the tails that matter.
    """
    if reading.value is None or reading.n == 0 or not math.isfinite(reading.value):
        return 0.0, 1.0
    if facts.sampling == "fixed":
        return reading.value, reading.value
    if facts.scale != "proportion":
        raise MeasureError(
            "a harm measure that samples prompts must score each item 0 or 1",
            field="harm.measure",
            value=facts.name,
            expected="scale 'proportion', or sampling 'fixed'",
            remedy="threshold the item score inside the measure",
        )
    successes = round(reading.value * reading.n)
    return lower_bound(successes, reading.n, level), upper_bound(successes, reading.n, level)
