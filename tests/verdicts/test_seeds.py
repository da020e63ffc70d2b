"""Exact statistics over seeds against closed forms and statsmodels."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from titer.errors import StudyError
from titer.verdicts.statistics.seeds import (
    band,
    best_of,
    breach_upper,
    holm,
    no_breach_p,
    order_limits,
    quantile_interval,
    required_seeds,
)

INF = math.inf


@pytest.mark.parametrize(
    ("alpha", "delta", "n"),
    [
        (0.05, 0.5, 5),
        (0.05, 0.1, 29),
        (0.01, 0.1, 44),
        (0.25, 0.5, 2),
        (0.125, 0.5, 3),
        (0.5, 0.5, 1),
        (0.01, 0.9, 2),
    ],
)
def test_required_seeds(alpha, delta, n):
    assert required_seeds(alpha, delta) == n


@given(st.floats(0.001, 0.5), st.floats(0.01, 0.95))
def test_required_seeds_is_the_smallest_that_suffices(alpha, delta):
    n = required_seeds(alpha, delta)
    assert (1 - delta) ** n <= alpha * (1 + 1e-9)
    assert n == 1 or (1 - delta) ** (n - 1) > alpha * (1 - 1e-9)


@pytest.mark.parametrize(("alpha", "delta"), [(0, 0.5), (0.05, 1), (-1, 0.5), (0.05, 0)])
def test_required_seeds_refuses_what_is_no_probability(alpha, delta):
    with pytest.raises(StudyError, match="not a probability"):
        required_seeds(alpha, delta)


def test_zero_breaches():
    assert round(breach_upper(0, 5, 0.05), 2) == 0.45
    assert round(breach_upper(0, 29, 0.05), 2) == 0.10
    assert breach_upper(0, 5, 0.05) == pytest.approx(1 - 0.05 ** (1 / 5))
    assert breach_upper(0, 0, 0.05) == 1


@given(st.integers(1, 60), st.data())
def test_bounds_match_statsmodels(n, data):
    k = data.draw(st.integers(0, n))
    low, high = proportion_confint(k, n, alpha=0.1, method="beta")
    assert breach_upper(k, n, 0.05) == pytest.approx(high if k < n else 1.0)
    assert band(k, k, n, 0.1) == pytest.approx((low if k else 0.0, high if k < n else 1.0))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_matches_statsmodels(p):
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])


def test_no_breach_p():
    assert no_breach_p(0, 5, 0.5) == pytest.approx(0.5**5)
    assert no_breach_p(1, 5, 0.5) == pytest.approx(6 * 0.5**5)
    assert no_breach_p(0, 0, 0.5) == 1


def test_order_limits_of_five_seeds_are_the_extremes():
    spans = [(4, 8), (1, 2), (2, 4), (8, 16), (4, 8)]
    assert order_limits(spans, 0.5, 0.05, 0.05) == (1, 16)
    assert order_limits(spans[:4], 0.5, 0.05, 0.05) == (-INF, INF)
    assert order_limits([*spans[:4], (16, INF)], 0.5, 0.05, 0.05) == (1, INF)
    assert quantile_interval(spans, 0.5) == (4, 8)
    assert quantile_interval([(16, INF)] * 5, 0.5) == (16, INF)
    assert quantile_interval([], 0.5) == (-INF, INF)


@pytest.mark.parametrize(("n", "q"), [(5, 0.5), (12, 0.5), (29, 0.1), (40, 0.25)])
def test_order_limits_keep_their_level_exactly(n, q):
    """On exact τ = 1..n the returned values are ranks; their error is a binomial tail."""
    low, high = order_limits([(i, i) for i in range(1, n + 1)], q, 0.05, 0.05)
    if low > 0:
        assert binom.cdf(low - 1, n, q) <= 0.05 < binom.cdf(low, n, q)
    if high < INF:
        assert binom.sf(high - 1, n, q) <= 0.05 < binom.sf(high - 2, n, q)


def test_order_limits_cover_censored_draws():
    rng = np.random.default_rng(0)
    grid, true = np.array([0, 1, 2, 4, 8, 16, 32]), math.exp(1.5)
    misses = np.zeros(2)
    for _ in range(2000):
        tau = np.exp(rng.normal(1.5, 1.0, 11))
        at = np.searchsorted(grid, tau)
        spans = [(float(grid[i - 1]), float(grid[i]) if i < len(grid) else INF) for i in at]
        low, high = order_limits(spans, 0.5, 0.05, 0.05)
        misses += [low > true, high < true]
    assert (misses / 2000 <= 0.05).all()


@given(st.integers(1, 40), st.integers(1, 20), st.data())
def test_best_of_k_is_the_complement_of_all_failing(n, k, data):
    b = data.draw(st.integers(0, n))
    low, middle, high = best_of(k, b, b, n, 0.05)
    assert 0 <= low <= middle <= high <= 1
    assert 1 - middle == pytest.approx(math.prod([1 - b / n] * k))
    assert best_of(1, b, b, n, 0.05) == pytest.approx(
        (band(b, b, n, 0.1)[0], b / n, breach_upper(b, n, 0.05))
    )


def test_best_of_k_covers_the_truth():
    """Simulation: p = 0.15, n = 14, an attacker with 5 tries. Each limit may miss in at most a
    share α of studies.
    """
    rng, p, n, k, rounds = np.random.default_rng(7), 0.15, 14, 5, 4000
    truth = 1 - (1 - p) ** k
    limits = [best_of(k, b, b, n, 0.05) for b in rng.binomial(n, p, rounds)]
    for missed in (
        sum(low > truth for low, _, _ in limits),
        sum(high < truth for _, _, high in limits),
    ):
        assert missed <= binom.ppf(0.9999, rounds, 0.05)


def test_best_of_nothing():
    assert best_of(3, 0, 0, 0, 0.05) == (0.0, 0.0, 1.0)
