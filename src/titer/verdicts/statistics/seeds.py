"""Exact statistics over seeds: how many are needed, and what zero breaches, or an order statistic,
can say.

All functions are pure. n: number of seeds, δ: the share of seeds a defender is willing to lose, α:
the error level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import binom

from titer.errors import StudyError
from titer.records.bounds import lower_bound, upper_bound


def _probability(value: float, field: str) -> None:
    if not 0 < value < 1:
        raise StudyError(
            "not a probability",
            field=field,
            value=value,
            expected="a number strictly between 0 and 1",
            remedy=f"choose {field} inside (0, 1)",
        )


def required_seeds(alpha: float, delta: float) -> int:
    """Smallest n with (1 − δ)ⁿ ≤ α: without a breach in n seeds, P(τ ≤ T) < δ at level α. (5 for
    .05, .5; 29 for .05, .1.)

    The zero-failure sampling plan, n = ⌈ln α / ln(1 − δ)⌉. Raises StudyError outside (0, 1).
    """
    _probability(alpha, "alpha")
    _probability(delta, "delta")
    n = max(1, math.ceil(math.log(alpha) / math.log1p(-delta)))
    slack = (
        math.log(alpha) + 1e-12
    )  # logarithms that should be equal differ in the last digit (δ = .5, α = .25 → 2)
    while n * math.log1p(-delta) > slack:
        n += 1
    while n > 1 and (n - 1) * math.log1p(-delta) <= slack:
        n -= 1
    return n


def breach_upper(breaches: int, n: int, alpha: float) -> float:
    """Upper limit (level 1 − α) of the probability that a new seed breaches (Clopper and Pearson
    1934).

    Zero breaches: 1 − α^(1/n), that is 0.45 for n = 5 and 0.10 for n = 29 at α = 0.05. Without
    seeds: 1.
    """
    return upper_bound(breaches, n, alpha) if n else 1.0


def band(low_count: int, high_count: int, n: int, level: float) -> tuple[float, float]:
    """Exact two-sided band for a share when between `low_count` and `high_count` of n are affected;
    `level` in all.
    """
    if n == 0:
        return 0.0, 1.0
    return lower_bound(low_count, n, level / 2), upper_bound(high_count, n, level / 2)


def order_limits(
    intervals: Sequence[tuple[float, float]], q: float, alpha_low: float, alpha_high: float
) -> tuple[float, float]:
    """One-sided lower and upper limits of the q-quantile of τ from order statistics (David and
    Nagaraja 2003, §7.1).

    intervals: (l, u] per seed, u = inf if right-censored, l = -inf if nothing is known. With r the
    largest rank such that P(Bin(n, q) ≤ r − 1) ≤ alpha_low, the r-th smallest τ lies below the
    quantile with confidence; taking the l's there (and the u's above) can only widen, so censoring
    keeps the level. No such rank: unbounded on that side.
    """
    n = len(intervals)
    lows, highs = sorted(i[0] for i in intervals), sorted(i[1] for i in intervals)
    ranks = np.arange(1, n + 1)
    below = ranks[binom.cdf(ranks - 1, n, q) <= alpha_low * (1 + 1e-12)]
    above = ranks[binom.sf(ranks - 1, n, q) <= alpha_high * (1 + 1e-12)]
    return (
        lows[below[-1] - 1] if below.size else -math.inf,
        highs[above[0] - 1] if above.size else math.inf,
    )


def quantile_interval(intervals: Sequence[tuple[float, float]], q: float) -> tuple[float, float]:
    """(l, u] that holds the sample q-quantile, the ⌈nq⌉-th smallest τ, as exactly as the probe grid
    tells.
    """
    if not intervals:
        return -math.inf, math.inf
    k = max(1, math.ceil(len(intervals) * q - 1e-9)) - 1
    return sorted(i[0] for i in intervals)[k], sorted(i[1] for i in intervals)[k]


def best_of(
    k: int, low_count: int, high_count: int, n: int, alpha: float
) -> tuple[float, float, float]:
    """(lower, estimate, upper) of the probability that the best of `k` new seeds breaches: 1 − (1 −
    p)ᵏ.

    An attacker may try k times and keep what breaks. low_count, high_count: confirmed and possible
    breaches among n; each limit is one-sided at α (the function is increasing in p, so exact limits
    of p carry over). Without seeds: (0, 0, 1).
    """
    if n == 0:
        return 0.0, 0.0, 1.0
    p = lower_bound(low_count, n, alpha), low_count / n, upper_bound(high_count, n, alpha)
    low, estimate, high = (1.0 - (1.0 - x) ** k for x in p)
    return low, estimate, high


def no_breach_p(possible_breaches: int, n: int, delta: float) -> float:
    """p-value of 'a new seed breaches by T with probability ≥ δ', given so many possible breaches:
    P(Bin(n, δ) ≤ k).
    """
    return float(binom.cdf(possible_breaches, n, delta)) if n else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Step-down adjusted p-values (Holm 1979), in the order given."""
    m = len(p_values)
    adjusted, running = [1.0] * m, 0.0
    for rank, i in enumerate(sorted(range(m), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (m - rank) * p_values[i]))
        adjusted[i] = running
    return adjusted
