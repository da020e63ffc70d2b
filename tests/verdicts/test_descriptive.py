"""Descriptive curves: only where the data carry them, and equal to what can be computed without
lifelines.
"""

import math

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import lognorm, weibull_min

from helpers.factory import GRID, Make
from titer.verdicts import judge
from titer.verdicts.evidence.times import times
from titer.verdicts.evidence.trajectories import Probe, SeedTrajectory
from titer.verdicts.resistance.descriptive import descriptive, mixed_grid


def run(seed: int, tau: float, grid=(0, 1, 2, 4, 8, 16)) -> SeedTrajectory:
    probes = tuple(
        Probe(step=s, flops=float(s), harm=f, low=f, high=f, confirm_low=f)
        for s in grid
        for f in [float(s >= tau)]
    )
    return SeedTrajectory(
        seed=seed, digests=(str(seed),), outcome="reached_budget", probes=probes, finished=True
    )


def fitted(trajectories):
    return {d.kind: d for d in descriptive(trajectories, [times(k, 0.5) for k in trajectories])}


def em_turnbull(spans, support, rounds=20_000):
    """Self-consistency (Turnbull 1976): mass on whole steps; an interval (l, u] shares its weight
    over its steps.
    """
    inside = np.array([[a < t <= b for t in support] for a, b in spans], dtype=float)
    mass = np.full(len(support), 1 / len(support))
    for _ in range(rounds):
        share = inside * mass
        mass = (share / share.sum(1, keepdims=True)).mean(0)
    return mass


def test_a_common_grid_needs_no_turnbull_and_few_events_no_parameters():
    assert fitted([run(s, t) for s, t in enumerate((3, 5, math.inf, 3, 7))]) == {}
    same = [run(s, 3) for s in range(9)]  # nine events, but all in one interval
    assert fitted(same) == {}


def test_a_run_that_ended_early_is_not_another_grid():
    assert not mixed_grid([run(0, 3), run(1, 3, (0, 1, 2, 4))])
    assert mixed_grid([run(0, 3), run(1, 3, (0, 1, 3))])


def test_turnbull_equals_self_consistency():
    grids = [(0, 1, 2, 4, 8, 16), (0, 3, 6, 12), (0, 2, 5, 10, 16)]
    rng = np.random.default_rng(3)
    trajectories = [run(s, float(rng.integers(1, 20)), grids[s % 3]) for s in range(24)]
    judged = [times(k, 0.5) for k in trajectories]
    spans = [
        (k.probes[t.last].step, k.probes[t.first].step if t.first is not None else math.inf)
        for k, t in zip(trajectories, judged, strict=True)
    ]
    support = [*range(1, 17), math.inf]
    mass = em_turnbull(spans, support)
    curve = dict(fitted(trajectories)["turnbull"].points)
    ends = {u for _, u in spans if math.isfinite(u)} & set(curve)
    assert ends
    for step in ends:  # between innermost intervals the estimate is not unique; at their ends it is
        expected = sum(m for m, t in zip(mass, support, strict=True) if t > step)
        assert curve[step] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("kind", "law"),
    [
        ("weibull", lambda a, b: weibull_min(a, scale=b)),
        ("log-normal", lambda a, b: lognorm(a, scale=b)),
    ],
)
def test_parametric_fits_are_the_maximum_of_the_interval_likelihood(kind, law):
    taus = (0.7, 1.5, 3, 3.5, 5, 7, 6, 12, 15, 40)
    trajectories = [run(s, t) for s, t in enumerate(taus)]
    spans = [
        (
            max((g for g in GRID if g < t), default=0),
            min((g for g in GRID if g >= t), default=math.inf),
        )
        for t in taus
    ]

    def loss(x):
        dist = law(*np.exp(x))
        return -sum(math.log(max(dist.cdf(b) - dist.cdf(a), 1e-300)) for a, b in spans)

    best = minimize(
        loss,
        [0.0, 1.5],
        method="Nelder-Mead",
        options={"xatol": 1e-8, "fatol": 1e-10, "maxiter": 4000},
    )
    fit = fitted(trajectories)[kind]
    assert fit.median == pytest.approx(law(*np.exp(best.x)).median(), rel=1e-3)
    assert fit.aic == pytest.approx(2 * best.fun + 4, abs=1e-3)


def test_nothing_of_it_enters_a_verdict():
    curves = [tuple(float(g >= t) for g in GRID) for t in (1, 2, 4, 8, 16)]
    found = judge(
        Make().attack("none", "full_sft", curves).attack("defended", "full_sft", curves).view()
    )
    attack = found.candidates[0].resistance.attacks[0]
    assert {d.kind for d in attack.descriptive} == {"weibull", "log-normal"}
    assert attack.titer_lower == 0
