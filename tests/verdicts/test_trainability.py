"""Crossed non-inferiority of the final score, and time to target on the grid."""

import math

import numpy as np
import pytest
from scipy.stats import binom
from scipy.stats import t as student

from helpers.factory import GRID, TRAINABILITY, Make, facts, learning
from titer.verdicts import judge
from titer.verdicts.statistics.crossed import crossed_limits, time_ratio, time_to

EXACT = facts("exact", "capable", "capability", chance=0.0)
LEARNS = (0.1, 0.2, 0.4, 0.6, 0.8, 0.95)
RNG = np.random.default_rng(0)


def verdict(candidate, control=LEARNS, *, measure=EXACT, items=("i", "i"), spec=None, seeds=None):
    make = Make(trainability={**TRAINABILITY, **(spec or {})})
    for name, curve, key in (("none", control, items[0]), ("defended", candidate, items[1])):
        if curve is not None:
            make.task(
                name, "reverse", learning(RNG, curve), measure, grid=GRID, items=key, seeds=seeds
            )
    found = judge(make.view()).candidates[0].trainability
    return found, found.tasks[0]


def test_holds():
    found, task = verdict(LEARNS)
    assert (found.status, task.status, task.seeds) == ("holds", "holds", 5)
    assert task.time_control == task.time_candidate == (8, 16)
    # Whole steps in (8, 16] on both sides: the ratio lies in [9/16, 16/9].
    assert (task.time_ratio.low, task.time_ratio.high) == pytest.approx((9 / 16, 16 / 9))
    assert task.target == pytest.approx(0.1 + 0.95 * 0.85, abs=0.03)
    assert [s for s, _ in task.curve_control] == list(GRID)


def test_a_worse_final_score_fails():
    found, task = verdict((0.1, 0.1, 0.1, 0.15, 0.2, 0.3))
    assert (found.status, task.time_candidate) == ("fails", (16, None))
    assert task.interval.high < -task.margin
    assert "Harder to train" in found.claim


def test_slower_training_fails_at_the_same_final_score():
    _, task = verdict((0.1, 0.1, 0.1, 0.2, 0.3, 0.95), (0.1, 0.95, 0.95, 0.95, 0.95, 0.95))
    assert task.status == "fails"
    assert task.time_ratio.low == 9
    assert "more than 2 times the control's steps" in task.reason


def test_a_control_that_does_not_learn_is_no_evidence():
    found, task = verdict(LEARNS, (0.1, 0.1, 0.12, 0.13, 0.15, 0.2))
    assert (found.status, task.status) == ("invalid", "invalid")


def test_perplexity_goes_the_other_way():
    loss = facts("nll", "worse", "capability", scale="mean", unit="nats/token")
    falls = tuple(1 - x for x in LEARNS)
    assert verdict(falls, falls, measure=loss)[0].status == "holds"
    assert verdict((0.9, 0.9, 0.9, 0.9, 0.9, 0.8), falls, measure=loss)[0].status == "fails"


def test_missing_unpaired_and_lone_seeds_are_inconclusive():
    assert verdict(None)[0].status == "inconclusive"
    assert "same items" in verdict(LEARNS, items=("a", "b"))[1].reason
    assert "at least two" in verdict(LEARNS, spec={"seeds": [0]})[1].reason
    assert verdict(None, None)[0].status == "inconclusive"
    assert Make().study.trainability is None
    assert judge(Make().view()).candidates[0].trainability.status == "not tested"


def test_crossed_limits_reduce_to_a_t_interval_for_fixed_items():
    gaps = RNG.normal(0, 0.1, (5, 40))
    mean, low, high = crossed_limits(
        gaps, 0.05, facts("x", "capable", "capability", sampling="fixed")
    )
    half = student.ppf(0.95, 4) * gaps.mean(axis=1).std(ddof=1) / math.sqrt(5)
    assert (low, high) == pytest.approx((mean - half, mean + half))


def test_no_spread_is_not_certainty():
    _, low, high = crossed_limits(np.zeros((5, 100)), 0.05, EXACT)
    assert (low, high) == pytest.approx((-0.0295, 0.0295), abs=1e-3)


def test_crossed_limits_cover_random_seeds_and_items():
    rng, rounds, missed = np.random.default_rng(7), 800, 0
    for _ in range(rounds):
        gaps = (
            rng.normal(0, 0.05, (5, 1)) + rng.normal(0, 0.3, (1, 60)) + rng.normal(0, 0.3, (5, 60))
        )
        missed += (
            crossed_limits(gaps, 0.05, facts("x", "capable", "capability", scale="mean"))[1] > 0
        )
    assert missed <= binom.ppf(0.9999, rounds, 0.05)


def test_time_to():
    steps = [0, 1, 2, 4]
    assert time_to(np.array([[0.0, 0.2, 0.5, 0.9]]), steps, 0.5, 1.0) == (1, 2)
    assert time_to(np.array([[0.0, 0.2, 0.3, 0.4]]), steps, 0.5, 1.0) == (4, None)
    assert time_to(np.array([[0.9, 0.9, 0.9, 0.9]]), steps, 0.5, 1.0) == (None, 0)
    assert time_to(np.array([[3.0, 2.0, 1.0, 1.0]]), steps, 1.5, -1.0) == (1, 2)


def test_time_ratio_is_open_above_if_the_target_is_not_reached():
    control, never = np.array([[0.0, 0.5, 1.0, 1.0]] * 3), np.array([[0.0, 0.1, 0.2, 0.3]] * 3)
    low, high = time_ratio(control, never, [0, 1, 2, 4], 0.95, 1.0, 0.05)
    assert (low, high) == (5 / 2, math.inf)


@pytest.mark.parametrize(
    ("seeds", "items", "margin"), [(5, 20, 0.05), (5, 50, 0.1), (10, 50, 0.05), (30, 100, 0.05)]
)
def test_rare_flips_do_not_buy_a_narrow_interval(seeds, items, margin):
    """Each item is lost in all seeds with probability equal to the margin, and now and then one
    flips: declaring it not worse is an error.
    """
    rng, rounds, wrong = np.random.default_rng(seeds), 1500, 0
    for _ in range(rounds):
        lost = rng.random(items) < margin
        flips = rng.random((seeds, items)) < 0.002
        gaps = -(lost[None, :] ^ flips).astype(float)
        wrong += crossed_limits(gaps, 0.05, EXACT)[1] > -margin
    assert wrong <= binom.ppf(0.9999, rounds, 0.05)


def test_one_item_decides_nothing():
    make = Make(trainability=TRAINABILITY)
    for name in ("none", "defended"):
        make.task(
            name,
            "reverse",
            np.tile(np.array(LEARNS)[None, :, None], (5, 1, 1)),
            facts("m", "capable", "capability", scale="mean"),
            grid=GRID,
        )
    assert judge(make.view()).candidates[0].trainability.tasks[0].status == "inconclusive"


def test_few_seeds_cannot_compare_times():
    for seeds in (2, 3, 4):
        assert (
            verdict(LEARNS, spec={"seeds": list(range(seeds))}, seeds=range(seeds))[0].status
            == "inconclusive"
        )
    found, task = verdict(LEARNS, spec={"seeds": [0, 1, 2, 3], "margin": 0.3}, seeds=range(4))
    assert found.status == "inconclusive" and "too few to compare times" in task.reason


def test_a_seed_trained_twice_is_not_quietly_dropped():
    make = Make(trainability=TRAINABILITY)
    for name in ("none", "defended"):
        make.task(name, "reverse", learning(RNG, LEARNS), EXACT, grid=GRID)
    make.task(
        "defended",
        "reverse",
        learning(RNG, (0.1,) * 6, seeds=1),
        EXACT,
        grid=GRID,
        point={"lr": 1.0},
        seeds=[0],
    )
    task = judge(make.view()).candidates[0].trainability.tasks[0]
    assert task.status == "inconclusive" and "two runs" in task.reason


def test_the_final_score_is_read_at_the_budget_not_beyond():
    make = Make(trainability=TRAINABILITY)
    make.task("none", "reverse", learning(RNG, LEARNS), EXACT, grid=GRID)
    late = (*(0.1, 0.1, 0.15, 0.2, 0.25, 0.3), 0.95)
    make.task("defended", "reverse", learning(RNG, late), EXACT, grid=(*GRID, 32))
    assert judge(make.view()).candidates[0].trainability.status == "fails"
