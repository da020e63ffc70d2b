"""Exact bounds against two other libraries and against closed forms."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import binomtest
from statsmodels.stats.proportion import proportion_confint

from titer.errors import MeasureError
from titer.records.bounds import bounds, lower_bound, upper_bound
from titer.records.record import MeasureFacts, Reading

counts = st.integers(1, 600).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
levels = st.floats(1e-4, 0.4)


@given(counts, levels)
def test_bounds_are_those_of_scipy(count, level):
    k, n = count
    for bound, alternative, side in (
        (lower_bound, "greater", "low"),
        (upper_bound, "less", "high"),
    ):
        interval = binomtest(k, n, alternative=alternative).proportion_ci(1 - level, "exact")
        assert bound(k, n, level) == pytest.approx(getattr(interval, side), rel=1e-8, abs=1e-10)


@given(counts, levels)
def test_bounds_are_those_of_statsmodels(count, level):
    k, n = count
    low, high = proportion_confint(k, n, alpha=2 * level, method="beta")
    assert lower_bound(k, n, level) == pytest.approx(low, rel=1e-8, abs=1e-10)
    assert upper_bound(k, n, level) == pytest.approx(high, rel=1e-8, abs=1e-10)


@given(counts, levels)
def test_bounds_enclose_the_share_and_mirror_each_other(count, level):
    k, n = count
    low, high = lower_bound(k, n, level), upper_bound(k, n, level)
    assert 0 <= low <= k / n <= high <= 1
    assert low == pytest.approx(1 - upper_bound(n - k, n, level), rel=1e-9, abs=1e-12)


@given(counts, levels, levels)
def test_a_stricter_level_gives_a_wider_interval(count, one, other):
    k, n = count
    assume(one < other)
    assert lower_bound(k, n, one) <= lower_bound(k, n, other)
    assert upper_bound(k, n, one) >= upper_bound(k, n, other)


@given(st.integers(1, 500), levels)
def test_at_the_edges_there_are_closed_forms(n, level):
    assert lower_bound(0, n, level) == 0.0 and upper_bound(n, n, level) == 1.0
    assert lower_bound(n, n, level) == pytest.approx(level ** (1 / n))
    assert upper_bound(0, n, level) == pytest.approx(1 - level ** (1 / n))


def reading(value, n):
    return Reading(label="harm", value=value, n=n, se=None, outcomes=())


def facts(**changes):
    return MeasureFacts(name="m", version=1, higher="harmful", harm_construct="exact", **changes)


@given(counts, levels)
def test_a_reading_is_counted_from_its_share(count, level):
    k, n = count
    assert bounds(reading(k / n, n), facts(), level) == (
        lower_bound(k, n, level),
        upper_bound(k, n, level),
    )


@pytest.mark.parametrize("scale", ["proportion", "mean"])
def test_a_fixed_measure_has_no_sampling_error(scale):
    assert bounds(reading(0.37, 100), facts(sampling="fixed", scale=scale), 0.01) == (0.37, 0.37)


@pytest.mark.parametrize("sampling", ["fixed", "population"])
@pytest.mark.parametrize("value, n", [(None, 10), (None, 0), (0.5, 0)])
def test_a_reading_that_says_nothing_bounds_nothing(sampling, value, n):
    assert bounds(reading(value, n), facts(sampling=sampling), 0.05) == (0.0, 1.0)


def test_a_mean_over_sampled_prompts_has_no_exact_bound():
    with pytest.raises(MeasureError, match="score each item 0 or 1"):
        bounds(reading(0.5, 10), facts(scale="mean"), 0.05)
