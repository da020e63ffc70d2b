"""Does a verdict keep its promise? Known breach laws, many replications of the judging code."""

import math

import numpy as np
import pytest
from scipy.stats import binom

from titer.verdicts.evidence.index import Design
from titer.verdicts.evidence.trajectories import Probe, SeedTrajectory, proportion
from titer.verdicts.resistance.attack import find
from titer.verdicts.resistance.judged import Setting
from titer.verdicts.statistics.paired import paired_limits
from titer.verdicts.statistics.seeds import required_seeds

GRID = (0, 1, 2, 4, 8, 16, 32)
ALPHA = 0.05


def design(delta: float) -> Design:
    n = required_seeds(ALPHA, delta)
    return Design(
        alpha=ALPHA,
        delta=delta,
        seeds=tuple(range(n)),
        grid=GRID,
        n_required=n,
        level=ALPHA / len(GRID),
    )


def run(
    seed: int, tau: float, rng=None, *, prompts: int = 0, before: float = 0.05, after: float = 0.9
) -> SeedTrajectory:
    """True f is `before` until τ and `after` from τ on; with prompts, read with binomial noise
    twice.
    """
    probes = []
    for step in GRID:
        f = after if step >= tau else before
        if not prompts:
            probes.append(Probe(step=step, flops=float(step), harm=f, low=f, high=f, confirm_low=f))
            continue
        k, c = (int(x) for x in rng.binomial(prompts, f, 2))
        low, high = proportion(k, prompts, ALPHA / len(GRID))
        confirm = proportion(c, prompts, ALPHA / len(GRID))[0]
        probes.append(
            Probe(
                step=step,
                flops=float(step),
                harm=k / prompts,
                low=low,
                high=high,
                confirm_low=confirm,
            )
        )
    return SeedTrajectory(
        seed=seed,
        digests=(str(seed),),
        outcome="reached_budget",
        probes=tuple(probes),
        finished=True,
    )


def judged(plan: Design, taus, rng=None, **noise):
    setting = Setting(design=plan, phi=0.5, role="attack", on_control=False)
    control = tuple(run(s, 1.0) for s in plan.seeds)
    return find(
        "a", tuple(run(s, float(t), rng, **noise) for s, t in enumerate(taus)), control, setting
    )


@pytest.mark.parametrize("delta", [0.5, 0.1])
def test_false_holds_are_rare_at_the_boundary(delta):
    """P(τ ≤ T) is exactly δ: `holds` would be wrong. Its rate is (1 − δ)ⁿ ≤ α."""
    rng, plan, rounds = np.random.default_rng(1), design(delta), 1500
    n = len(plan.seeds)
    wrong = sum(
        judged(plan, np.where(rng.random(n) < delta, 4.0, math.inf)).status == "holds"
        for _ in range(rounds)
    )
    assert wrong <= binom.ppf(0.9999, rounds, (1 - delta) ** n)
    assert (1 - delta) ** n <= ALPHA


def test_false_holds_are_rare_when_a_broken_model_looks_worst():
    """Broken runs sit exactly on φ and are read with noise: ambiguity must keep them from passing
    for resistant.
    """
    rng, plan, rounds = np.random.default_rng(2), design(0.5), 1500
    taus = lambda: np.where(rng.random(5) < 0.5, 8.0, math.inf)  # noqa: E731
    wrong = sum(
        judged(plan, taus(), rng, prompts=200, after=0.5).status == "holds" for _ in range(rounds)
    )
    assert wrong <= binom.ppf(0.9999, rounds, 0.5**5 + ALPHA / len(GRID))


def test_false_failures_are_rarer_than_the_level():
    """f stays just under φ everywhere: a confirmed breach needs two independent errors."""
    rng, plan = np.random.default_rng(3), design(0.5)
    wrong = sum(
        judged(plan, [math.inf] * 5, rng, prompts=200, before=0.499).status == "fails"
        for _ in range(1000)
    )
    assert wrong <= binom.ppf(0.9999, 1000, ALPHA)


@pytest.mark.parametrize("delta", [0.5, 0.1])
def test_lower_limit_covers_the_quantile(delta):
    """τ is log-normal; the δ-quantile is known; the limit may exceed it in at most a share α of
    studies.
    """
    rng, plan, rounds = np.random.default_rng(4), design(delta), 1500
    quantile = {0.5: 0.0, 0.1: -1.2815515655}[delta]
    true = math.exp(2.0 + quantile)
    limits = [
        judged(plan, np.exp(rng.normal(2.0, 1.0, len(plan.seeds)))).limit for _ in range(rounds)
    ]
    missed = sum(limit is not None and limit[0] > true for limit in limits)
    assert missed <= binom.ppf(0.9999, rounds, ALPHA)
    assert any(limit and limit[0] > 0 for limit in limits)


@pytest.mark.parametrize(("worse", "better"), [(0.05, 0.0), (0.10, 0.05), (0.25, 0.20)])
def test_non_inferiority_keeps_its_level_for_proportions(worse, better):
    """The true loss equals the margin 0.05; declaring non-inferiority is an error."""
    rng, rounds, margin = np.random.default_rng(5), 400, 0.05
    wrong = 0
    for _ in range(rounds):
        gap = rng.choice([-1.0, 1.0, 0.0], size=200, p=[worse, better, 1 - worse - better])
        wrong += paired_limits(gap, ALPHA, proportion=True, resamples=1000)[0] > -margin
    assert wrong <= binom.ppf(0.9999, rounds, 0.06)  # the bootstrap's level is asymptotic


def test_non_inferiority_keeps_its_level_for_means():
    rng, rounds = np.random.default_rng(6), 400
    wrong = sum(
        paired_limits(rng.gamma(2.0, 0.1, 150) - 0.25, ALPHA, proportion=False, resamples=1000)[0]
        > -0.05
        for _ in range(rounds)
    )
    assert wrong <= binom.ppf(0.9999, rounds, 0.065)
