"""`titer power` against simulation, closed forms and statsmodels."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom
from statsmodels.stats.power import TTestPower

import simulate as sim
from helpers.factory import STABILITY, TRAINABILITY, Make
from titer.errors import StudyError
from titer.verdicts.design.power import Truth, chance, power, run_chances
from titer.verdicts.design.power_conditions import least, mean_power, share_power, t_power
from titer.verdicts.statistics.seeds import lower_bound, upper_bound

GRID = (0, 1, 2, 4, 8, 16)


@pytest.mark.parametrize(
    "truth",
    [
        Truth(breach=0.2, before=0.3, after=0.7, at=4),
        Truth(breach=0.0, before=0.4),
        Truth(breach=1.0, before=0.05, after=0.6, at=16),
        Truth(breach=0.5, after=0.5),
    ],
)
def test_chances_of_a_run_match_simulation(truth):
    rng, plan, rounds = np.random.default_rng(3), sim.design(1, 0.5, GRID), 20_000
    tau = np.where(rng.random((rounds, 1)) < truth.breach, float(truth.at), math.inf)
    harm = sim.true_harm(tau, GRID, truth.before, truth.after)
    found = sim.judge_many(plan, 0.5, *(sim.read_independent(rng, harm, 100) for _ in "ab"), 100)
    quiet, breached, open_ = run_chances(truth, GRID, 0.5, plan.level, 100, 100)
    assert quiet + breached + open_ == pytest.approx(1)
    for share, seen in ((quiet, ~found.possible_SN), (breached, np.isfinite(found.first_SN))):
        assert binom.ppf(5e-5, rounds, share) <= seen.sum() <= binom.ppf(1 - 5e-5, rounds, share)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.integers(0, 16))
def test_chances_add_up_and_more_breaching_never_helps(breach, before, after, at):
    make = Make(attacks={"a": {}, "b": {}}, prompts=60)
    found = [
        chance(make.study, Truth(breach=b, before=before, after=max(before, after), at=at))
        for b in (breach / 2, breach)
    ]
    for c in found:
        assert c.holds + c.fails + c.inconclusive + c.invalid == pytest.approx(1)
    assert found[1].holds <= found[0].holds + 1e-12 and found[1].fails >= found[0].fails - 1e-12


def test_zero_failure_plan():
    """With perfect readings the chance of `holds` is (1 − p)ⁿ; too few seeds make it 0."""
    sure = Truth(breach=0.1, before=0.0, after=1.0)
    assert chance(Make(seeds=5).study, sure).holds == pytest.approx(0.9**5)
    assert chance(Make(seeds=4).study, sure).holds == 0
    assert chance(Make(seeds=4).study, sure).fails == pytest.approx(1 - 0.9**4)
    both = Truth(breach=0.1, before=0.0, after=1.0, attacks=2)
    assert chance(Make(attacks={"a": {}, "b": {}}).study, both).holds == pytest.approx(0.9**10)


def test_a_control_that_may_not_break_is_counted():
    """Simulation of two attacks with perfect readings: holds needs both controls broken in all five
    seeds, invalid neither.
    """
    truth = Truth(breach=0.1, before=0.0, after=1.0, control=0.9)
    found = chance(Make(attacks={"a": {}, "b": {}}).study, truth)
    rng, rounds = np.random.default_rng(1), 40_000
    broken = (rng.random((rounds, 2, 5)) < 0.9).all(2)
    quiet = (rng.random((rounds, 5)) >= 0.1).all(1)
    for share, seen in (
        (found.holds, quiet & broken.all(1)),
        (found.invalid, quiet & ~broken.any(1)),
        (found.fails, ~quiet),
    ):
        assert binom.ppf(5e-5, rounds, share) <= seen.sum() <= binom.ppf(1 - 5e-5, rounds, share)


def test_a_second_judge_makes_holds_harder():
    truth = Truth(breach=0.0, before=0.35)
    with_second = Make(
        resistance={"second": {"measure": "other", "part": "harm/eval", "limit": 40}}
    )
    assert chance(with_second.study, truth).holds < chance(Make().study, truth).holds


@pytest.mark.parametrize(
    "bad",
    [
        {"breach": 1.5},
        {"breach": -0.1},
        {"breach": 0.1, "before": 2.0},
        {"breach": 0.1, "attacks": 9},
        {"breach": 0.1, "control": -1},
    ],
)
def test_a_truth_that_cannot_be(bad):
    with pytest.raises(StudyError):
        chance(Make().study, Truth(**bad))


def test_needs():
    made = power(Make(seeds=3, prompts=6).study, (Truth(breach=0.0, before=0.1, after=0.9),))
    need = {(n.what, n.purpose.split(" ")[0]): n.need for n in made.needs}
    assert need["confirmation seeds", "`holds`"] == 5 and need["confirmation seeds", "a"] == 29
    level = 0.05 / 6
    enough = next(n.need for n in made.needs if n.purpose.startswith("a reading of f = 0"))
    assert upper_bound(0, enough, level) < 0.5 <= upper_bound(0, enough - 1, level)
    prompts = next(n.need for n in made.needs if "f = 0.1 throughout" in n.purpose)

    def holds(m):
        most = max(k for k in range(m + 1) if upper_bound(k, m, level) < 0.5)
        return binom.cdf(most, m, 0.1) ** (6 * 5)

    assert holds(prompts) >= 0.8
    confirm = next(n.need for n in made.needs if "confirmed breach" in n.purpose)
    least_k = next(k for k in range(confirm + 1) if lower_bound(k, confirm, level) >= 0.5)
    assert binom.sf(least_k - 1, confirm, 0.9) ** 2 >= 0.8


def test_what_no_amount_can_show_is_said():
    made = power(Make().study, (Truth(breach=0.0, before=0.6, after=0.4),))
    assert [
        n.need for n in made.needs if "throughout" in n.purpose or "confirmed breach" in n.purpose
    ] == [None, None]


@given(st.integers(1, 15_000))
def test_least_is_the_threshold_to_one_per_cent(n):
    found = least(lambda m: m >= n)
    assert n <= found <= n * 1.02 + 1


def test_least_gives_up():
    assert least(lambda m: False) is None


@pytest.mark.parametrize("n", [5, 14, 30])
def test_t_power_matches_statsmodels(n):
    expected = TTestPower().power(effect_size=0.1 / 0.15, nobs=n, alpha=0.05, alternative="larger")
    assert t_power(n, 0.1, 0.15 / math.sqrt(n), 0.05) == pytest.approx(expected, abs=1e-6)


def test_mean_power_matches_simulation():
    rng = np.random.default_rng(0)
    z = 1.6448536269514722
    passed = np.mean(rng.normal(0, 0.3 / math.sqrt(50), 200_000) - z * 0.3 / math.sqrt(50) > -0.1)
    assert mean_power(50, 0.1, 0.3, 0.05) == pytest.approx(passed, abs=0.005)


def test_share_power_grows_with_items_and_falls_with_changes():
    grown = [share_power(n, 0.05, 0.05, 0.05) for n in (50, 150, 400)]
    assert grown == sorted(grown) and grown[0] < 0.5 < grown[2]
    assert share_power(200, 0.05, 0.2, 0.05) < share_power(200, 0.05, 0.02, 0.05)
    assert share_power(200, 0.05, 0.0, 0.05) == 1  # nothing changes: exact limits, −0.015


def test_every_condition_is_answered():
    made = power(Make(stability=STABILITY, trainability=TRAINABILITY).study, (Truth(breach=0.1),))
    assert set(made.stability) == {"recall", "text", "refusals", "wrapped"}
    assert made.stability["text"]["needed"] == math.ceil(((1.6448536 + 0.8416212) * 0.1 / 0.1) ** 2)
    assert made.trainability["seeds"] == 5 and 0 < made.trainability["holds"] <= 1
    assert made.attainable.startswith("Resistance: best `holds`")


def test_a_control_close_to_phi_makes_the_study_invalid():
    """One shared reading of M[0], against simulation."""
    study = Make(prompts=200).study
    found = chance(study, Truth(breach=0.0, before=0.38))
    rng, level = np.random.default_rng(5), 0.05 / 6
    most = max(k for k in range(201) if upper_bound(k, 200, level) < 0.5)
    unfit = np.mean(rng.binomial(200, 0.38, 100_000) > most)
    assert found.invalid == pytest.approx(unfit, abs=0.005)
    assert chance(study, Truth(breach=0.0, before=0.1)).invalid < 1e-6
