"""Fitted curves of τ, for description only: no verdict rests on them, and they are made only where
the data carry them.

lifelines (the extra `curves`) fits them; without it, each says what is missing. It closes its
intervals on both sides, so τ ∈ (l, u] is given to its nonparametric estimate as [l + ½, u] (steps
are whole): as [l, u], neighbouring intervals would share a point and all mass would land there; as
[l + 1, u], an interval of one step would have no width, and its mass would be reported one step
late. Its default tolerance is good to two digits only, so a finer one is asked for.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from titer.verdicts.evidence.times import Times, interval_steps
from titer.verdicts.evidence.trajectories import SeedTrajectory
from titer.verdicts.output.verdict import Descriptive

LEAST_EVENTS, LEAST_INTERVALS = 5, 3
"""Parametric fits need so many runs that are not right-censored, in so many different intervals."""
NOT_FITTED = "not fitted: lifelines is not installed (pip install 'titer[curves]')"


def descriptive(
    trajectories: Sequence[SeedTrajectory], judged: Sequence[Times]
) -> tuple[Descriptive, ...]:
    """Turnbull's estimate if the runs were probed on different grids (else the curve at common
    probes says it all); Weibull and log-normal if at least 5 runs breached, in at least 3
    different intervals. Empty otherwise.
    """
    spans = [interval_steps(k, t) for k, t in zip(trajectories, judged, strict=True)]
    events = {s for s in spans if math.isfinite(s[1])}
    found: list[Descriptive] = []
    if mixed_grid(trajectories) and events:
        found += _turnbull(spans)
    if sum(math.isfinite(u) for _, u in spans) >= LEAST_EVENTS and len(events) >= LEAST_INTERVALS:
        found += _parametric(spans)
    return tuple(found)


def mixed_grid(trajectories: Sequence[SeedTrajectory]) -> bool:
    """Whether some run was probed at steps that another, at least as long, was not."""
    steps = sorted((tuple(p.step for p in k.probes) for k in trajectories), key=len)
    return any(short != longer[: len(short)] for short, longer in itertools.pairwise(steps))


def _arrays(spans: Sequence[tuple[float, float]], least: float) -> tuple[np.ndarray, np.ndarray]:
    low = np.array([max(a, least) for a, _ in spans])
    return low, np.maximum(np.array([b for _, b in spans]), low)


def _turnbull(spans: Sequence[tuple[float, float]]) -> list[Descriptive]:
    """Nonparametric maximum likelihood (Turnbull 1976) of the share not breached."""
    try:
        from lifelines import KaplanMeierFitter
    except ImportError:
        return [Descriptive(kind="turnbull", median=None, not_fitted=NOT_FITTED)]
    low, high = _arrays([(a + 0.5, b) for a, b in spans], 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = KaplanMeierFitter().fit_interval_censoring(low, high, tol=1e-12)
    curve = fit.survival_function_[
        "NPMLE_estimate_lower"
    ]  # mass at the right ends, as τ ≤ u is all that is known
    points = tuple((float(t), float(s)) for t, s in curve.items() if math.isfinite(t))
    median = next((t for t, s in points if s <= 0.5), None)
    return [Descriptive(kind="turnbull", median=median, points=points)]


def _parametric(spans: Sequence[tuple[float, float]]) -> list[Descriptive]:
    try:
        from lifelines import LogNormalFitter, WeibullFitter
        from lifelines.exceptions import ConvergenceError
    except ImportError:
        kinds: tuple[Literal["weibull", "log-normal"], ...] = ("weibull", "log-normal")
        return [Descriptive(kind=kind, median=None, not_fitted=NOT_FITTED) for kind in kinds]
    low, high = _arrays(spans, 1e-6)
    found = []
    laws: tuple[tuple[Literal["weibull", "log-normal"], Any], ...] = (
        ("weibull", WeibullFitter),
        ("log-normal", LogNormalFitter),
    )
    for kind, fitter in laws:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                fit = fitter().fit_interval_censoring(low, high)
        except (ConvergenceError, ValueError):  # no fit is no claim
            continue
        parameters = {name: float(value) for name, value in fit.params_.items()}
        if all(map(math.isfinite, (*parameters.values(), fit.median_survival_time_, fit.AIC_))):
            found.append(
                Descriptive(
                    kind=kind,
                    median=float(fit.median_survival_time_),
                    parameters=parameters,
                    aic=float(fit.AIC_),
                )
            )
    return found
