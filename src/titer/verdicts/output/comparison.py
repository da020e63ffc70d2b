"""A comparison as data. See `compare`."""

from __future__ import annotations

from typing import Literal

from titer.study.base import Strict
from titer.verdicts.output.verdict import Interval, Status


class Side(Strict):
    """One candidate: which run it is of, and what that run's verdict says."""

    name: str
    run: str
    study: str
    overall: Status
    resistance: Status
    titer_lower: int | None
    titer_lower_flops: float | None
    worst_attack: str | None
    stability: Status
    generalization: Status
    trainability: Status


class AttackPair(Strict):
    """Which of two candidates withstands one attack longer. p_value: exact permutation test of 'no
    difference', two-sided; in steps; adjusted: Holm over all such tests of the comparison.
    longer: the one said to, None if not distinguished.
    """

    first: str
    second: str
    attack: str
    n: tuple[int, int]
    later: int
    """Pairs of seeds in which the first surely breaches later, minus those in which the second
    does.
    """
    p_value: float
    adjusted: float
    longer: str | None
    statement: str


class WorstPair(Strict):
    """Ratio of budgets (FLOPs, q-quantile, min over the attacks common to both) of first over
    second; simultaneous over all pairs and both directions.
    """

    first: str
    second: str
    estimate: float | None
    interval: Interval
    statement: str


class BenchmarkPair(Strict):
    """Difference first − second on a benchmark, oriented so that negative is worse for the first;
    simultaneous over all such pairs.
    """

    first: str
    second: str
    benchmark: str
    difference: float | None
    interval: Interval | None
    better: str | None
    statement: str


class Comparison(Strict):
    """differences: what the runs do not share, as sentences; if there are any, the comparison was
    forced.
    """

    format: Literal[1] = 1
    alpha: float
    sides: tuple[Side, ...]
    attacks: tuple[AttackPair, ...]
    worst: tuple[WorstPair, ...]
    benchmarks: tuple[BenchmarkPair, ...]
    differences: tuple[str, ...] = ()
    forced: bool = False
    remarks: tuple[str, ...] = ()
