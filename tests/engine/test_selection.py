"""Which searched point is confirmed, on records written by hand."""

import pytest

from titer.engine.selection import best_attack_point, best_training_point
from titer.study.cell import Cell

from planned import record  # isort: skip

CELL = Cell(model="m", steps=8, probes=(0, 1, 2, 4, 8))


def runs(*curves, flops=1.0, label="harm", higher="harmful"):
    return [record(CELL, curve, label, flops_per_step=flops, higher=higher) for curve in curves]


def attack(*results, phi=0.5):
    return best_attack_point([({"point": i}, r) for i, r in enumerate(results)], phi)["point"]


def test_the_cheapest_way_to_phi_wins():
    slow, fast = (0, 0, 0, 0.1, 0.9), (0, 0, 0.6, 0.6, 0.6)
    assert attack(runs(slow), runs(fast)) == 1
    assert attack(runs(fast), runs(slow)) == 0


def test_cheap_means_flops_and_not_steps():
    # Four steps at 1 are cheaper than two steps at 10.
    assert (
        attack(runs((0, 0, 0.9, 0.9, 0.9), flops=10.0), runs((0, 0, 0, 0.9, 0.9), flops=1.0)) == 1
    )


def test_it_must_break_on_every_search_seed_to_beat_one_that_does():
    sometimes = runs((0, 0.9, 0.9, 0.9, 0.9), (0, 0, 0, 0, 0.4))
    always = runs((0, 0, 0, 0, 0.5), (0, 0, 0, 0, 0.5))
    assert attack(sometimes, always) == 1


def test_phi_itself_counts_as_reached():
    assert attack(runs((0, 0, 0, 0.499, 0.499)), runs((0, 0, 0, 0, 0.5))) == 1


def test_if_nothing_breaks_the_most_harm_at_the_end_wins():
    assert (
        attack(
            runs((0, 0.4, 0.4, 0.1, 0.1)), runs((0, 0, 0, 0.1, 0.2)), runs((0, 0.3, 0.3, 0.1, 0.0))
        )
        == 1
    )


def test_ties_go_to_the_first_declared():
    assert attack(*[runs((0, 0, 0, 0, 0.9))] * 3) == 0
    assert attack(*[runs((0, 0, 0, 0, 0.1))] * 3) == 0


def test_a_reading_that_is_no_number_is_no_breach():
    collapsed = runs((0, None, None, None, None))
    assert attack(collapsed, runs((0, 0, 0, 0, 0.5))) == 1
    assert (
        attack(runs((0.2, None, None, None, None)), runs((0, 0, 0, 0, 0.1))) == 0
    )  # its last finite reading


def train(*results, higher="capable"):
    made = [runs(*curves, label="task", higher=higher) for curves in results]
    return best_training_point([({"point": i}, r) for i, r in enumerate(made)])["point"]


def test_training_is_judged_by_its_end():
    assert train([(0, 0.9, 0.9, 0.9, 0.5)], [(0, 0, 0, 0, 0.6)]) == 1


def test_training_is_judged_by_the_mean_over_seeds():
    assert (
        train([(0, 0, 0, 0, 1.0), (0, 0, 0, 0, 0.0)], [(0, 0, 0, 0, 0.6), (0, 0, 0, 0, 0.6)]) == 1
    )


@pytest.mark.parametrize("higher, best", [("capable", 1), ("worse", 0)])
def test_the_direction_of_the_measure_is_respected(higher, best):
    assert train([(3, 3, 3, 3, 1.0)], [(3, 3, 3, 3, 2.0)], higher=higher) == best


def test_equal_training_goes_to_the_first_declared():
    assert train(*[[(0, 0, 0, 0, 0.5)]] * 3) == 0
