"""Which searched settings are confirmed. Looks only at search seeds and search prompts; its result is never judged."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from titer.records.model import CellRecord

Result = tuple[dict[str, Any], Sequence[CellRecord]]
"""A point and its records, one per search seed."""


def best_attack_point(results: Sequence[Result], phi: float) -> dict[str, Any]:
    """The point that reaches φ with the fewest training FLOPs (mean over search seeds, a run that never does counts
    as infinite); among equals the one with the most harm at the end. Ties go to the first declared.
    """

    def rank(result: Result) -> tuple[float, float]:
        reached = [_flops_to(record, phi) for record in result[1]]
        return fmean(reached), -fmean(_last(record, "harm") for record in result[1])

    return min(results, key=rank)[0]


def best_training_point(results: Sequence[Result]) -> dict[str, Any]:
    """The point with the best score at the end of the budget (mean over search seeds). Ties go to the first."""

    def rank(result: Result) -> float:
        sign = 1.0 if all(r.measures["task"].higher == "worse" for r in result[1]) else -1.0
        return sign * fmean(_last(record, "task") for record in result[1])

    return min(results, key=rank)[0]


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
