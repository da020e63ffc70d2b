"""Paired differences over items: bootstrap limits, and exact ones where a bootstrap would claim
certainty.
"""

from __future__ import annotations

import numpy as np
from scipy.special import ndtr, ndtri
from scipy.stats import t as student

from titer.records.bounds import lower_bound, upper_bound

RESAMPLES = 10_000
FEW_DISCORDANT = 10
"""Below so many items that differ, a proportion's limits are exact instead of resampled."""
_SEED = 20_240_216


def paired_limits(
    differences: np.ndarray,
    alpha: float,
    *,
    proportion: bool,
    spread: float = 0.0,
    resamples: int = RESAMPLES,
) -> tuple[float, float]:
    """(low, high), each a one-sided limit at level 1 − `alpha`, of the mean paired difference over
    a population of items.

    differences: (I,) M* − M per item, negative is worse. spread: range of the control's outcomes,
    used only when no item differs. Proportions with few discordant items: exact
    (`discordant_limits`). Otherwise the bias-corrected and accelerated bootstrap over items (Efron
    1987), seeded, so that judging twice gives the same limits; for means the wider of it and
    Student's t, because a bootstrap of few items is too narrow. Its level is asymptotic.
    """
    n = differences.size
    worse, better = int(np.sum(differences < 0)), int(np.sum(differences > 0))
    if proportion and worse + better < FEW_DISCORDANT:
        return discordant_limits(worse, better, n, alpha)
    if n < 2 or np.ptp(differences) == 0:
        # Identical on every item read does not mean identical on every item there is.
        slack = upper_bound(0, n, alpha) * max(spread, float(np.abs(differences).max(initial=0.0)))
        centre = float(differences.mean()) if n else 0.0
        return centre - slack, centre + slack
    low, high = _bca(differences, alpha, resamples)
    if not proportion:
        half = float(student.ppf(1 - alpha, n - 1) * differences.std(ddof=1) / np.sqrt(n))
        low, high = (
            min(low, float(differences.mean()) - half),
            max(high, float(differences.mean()) + half),
        )
    return low, high


def discordant_limits(worse: int, better: int, n: int, alpha: float) -> tuple[float, float]:
    """Exact conservative limits of P(better) − P(worse) from counts of discordant items
    (Clopper–Pearson on each).

    One side takes α whole where the other count is 0, whose own bound costs nothing; otherwise α/2
    each.
    """
    down = alpha if better == 0 else alpha / 2
    up = alpha if worse == 0 else alpha / 2
    low = lower_bound(better, n, alpha / 2) - upper_bound(worse, n, down)
    high = upper_bound(better, n, up) - lower_bound(worse, n, alpha / 2)
    return low, high


def _bca(differences: np.ndarray, alpha: float, resamples: int) -> tuple[float, float]:
    """BCa limits of a mean; for a mean the acceleration is skewness / (6 √n)."""
    n, mean = differences.size, float(differences.mean())
    rng, block = np.random.default_rng(_SEED), max(1, 2_000_000 // n)
    means = np.concatenate(
        [
            differences[rng.integers(0, n, size=(min(block, resamples - at), n))].mean(axis=1)
            for at in range(0, resamples, block)
        ]
    )
    centred = differences - mean
    acceleration = float(np.mean(centred**3) / np.mean(centred**2) ** 1.5 / (6 * np.sqrt(n)))
    share = (np.sum(means < mean) + np.sum(means == mean) / 2) / resamples
    bias = float(ndtri(np.clip(share, 1 / resamples, 1 - 1 / resamples)))
    z = bias + ndtri([alpha, 1 - alpha])
    levels = ndtr(bias + z / (1 - acceleration * z))
    low, high = np.quantile(means, levels)
    return float(low), float(high)
