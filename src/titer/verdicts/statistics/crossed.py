"""Limits of what is crossed over seeds and items, and of times to a target on a grid of probes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import t as student

from titer.records.record import MeasureFacts
from titer.verdicts.statistics.paired import FEW_DISCORDANT, discordant_limits

_RESAMPLES, _SEED = 2_000, 20_240_216


def by_checkpoint(rows: np.ndarray, seeds: Sequence[int], met: dict[int, int]) -> np.ndarray:
    """Rows (S, …) averaged over the seeds that met the same checkpoint: such seeds are not
    independent. As they are where every seed met one of its own.
    """
    groups: dict[Any, list[int]] = {}
    for i, seed in enumerate(seeds):
        groups.setdefault(("checkpoint", met[seed]) if seed in met else seed, []).append(i)
    return np.array([rows[at].mean(axis=0) for at in groups.values()])


def crossed_limits(
    gaps: np.ndarray, alpha: float, facts: MeasureFacts
) -> tuple[float, float, float]:
    """(mean, low, high), each limit one-sided at α, of differences crossed over seeds and items (S,
    I).

    Seeds and items are both random, so se² = s²(seed means)/S + s²(item means)/I, which counts the
    residual twice and errs on the wide side (cf. Owen 2007, 'The pigeonhole bootstrap', which
    overestimates in the same way). Items of a `fixed` measure are no sample: their term is left
    out. Student's t with min(S, I) − 1 degrees of freedom, at every S (below 10 seeds it is
    required, above it costs little). A proportion of which fewer than 10 items ever differ: also
    the exact limits on those items (`discordant_limits`), whichever is wider, since a few rare
    flips have no normal law.
    """
    seeds, items = gaps.shape
    mean = float(gaps.mean())
    variance = float(gaps.mean(axis=1).var(ddof=1)) / seeds
    sampled = facts.sampling == "population"
    if sampled:
        variance += float(gaps.mean(axis=0).var(ddof=1)) / items
    half = float(student.ppf(1 - alpha, (min(seeds, items) if sampled else seeds) - 1)) * math.sqrt(
        variance
    )
    low, high = mean - half, mean + half
    by_item = gaps.mean(axis=0)
    if sampled and facts.scale == "proportion" and np.count_nonzero(by_item) < FEW_DISCORDANT:
        exact = discordant_limits(int((by_item < 0).sum()), int((by_item > 0).sum()), items, alpha)
        low, high = min(low, exact[0]), max(high, exact[1])
    return mean, low, high


def time_to(
    curves: np.ndarray, steps: list[int], target: float, sign: float
) -> tuple[int | None, int | None]:
    """(l, u]: last probe before, and first probe at which, the mean curve reaches the target. u
    None: not by T.

    l is None if the target is reached at step 0 already.
    """
    reached = sign * (curves.mean(axis=0) - target) >= 0
    if not reached.any():
        return steps[-1], None
    i = int(np.argmax(reached))
    return (steps[i - 1] if i else None), steps[i]


def time_ratio(
    control: np.ndarray,
    candidate: np.ndarray,
    steps: list[int],
    share: float,
    sign: float,
    alpha: float,
) -> tuple[float, float]:
    """(low, high) of t₂/t₁, each one-sided at α: the ends the probe grid allows, over a paired
    bootstrap of seeds.

    Steps are whole, so t ∈ (l, u] means l + 1 ≤ t ≤ u: low = (l₂ + 1)/u₁, high = u₂/(l₁ + 1); high
    is inf if M* does not get there by T. The bootstrap (seeded) resamples seeds of both models
    together. Arrays (S, P), steps (P,).
    """
    picks = np.random.default_rng(_SEED).integers(0, len(control), size=(_RESAMPLES, len(control)))
    first = np.array(steps, dtype=float)
    means = [sign * c[picks].mean(axis=1) for c in (control, candidate)]
    target = means[0][:, :1] + share * (means[0][:, -1:] - means[0][:, :1])
    (l1, u1), (l2, u2) = (_ends(m >= target, first) for m in means)
    lows, highs = np.sort(l2 / u1), np.sort(u2 / l1)
    k = math.floor(alpha * _RESAMPLES)
    return float(lows[k]), float(highs[-1 - k])


def _ends(reached: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(earliest, latest) whole step ≥ 1 per resample; latest inf if not reached. Arrays (R, P),
    (P,).
    """
    some, at = reached.any(axis=1), reached.argmax(axis=1)
    latest = np.where(some, np.maximum(steps[at], 1), np.inf)
    earliest = np.where(some, np.where(at > 0, steps[np.maximum(at - 1, 0)] + 1, 1), steps[-1] + 1)
    return earliest, latest
