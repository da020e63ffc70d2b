"""Which searched point is confirmed, on records written by hand; and how a search is asked."""

import pytest

from helpers.planned import record
from titer.engine.planning.search import Grid, Trial, best_score, cheapest_breach, chosen
from titer.study.cell import Cell

CELL = Cell(model="m", steps=8, probes=(0, 1, 2, 4, 8))


def runs(*curves, flops=1.0, label="harm", higher="harmful"):
    return tuple(
        record(CELL, curve, label, flops_per_step=flops, higher=higher) for curve in curves
    )


def best(rank, results):
    return Grid(rank).best([Trial({"point": i}, r) for i, r in enumerate(results)])["point"]


# -- attacks --------------------------------------------------------------------------------------


def attack(*results, phi=0.5):
    return best(cheapest_breach(phi), results)


def test_the_cheapest_way_to_phi_wins():
    slow, fast = (0, 0, 0, 0.1, 0.9), (0, 0, 0.6, 0.6, 0.6)
    assert attack(runs(slow), runs(fast)) == 1
    assert attack(runs(fast), runs(slow)) == 0


def test_cheap_means_flops_and_not_steps():
    # Four steps at 1 are cheaper than two steps at 10.
    dear, cheap = runs((0, 0, 0.9, 0.9, 0.9), flops=10.0), runs((0, 0, 0, 0.9, 0.9), flops=1.0)
    assert attack(dear, cheap) == 1


def test_it_must_break_on_every_search_seed_to_beat_one_that_does():
    sometimes = runs((0, 0.9, 0.9, 0.9, 0.9), (0, 0, 0, 0, 0.4))
    always = runs((0, 0, 0, 0, 0.5), (0, 0, 0, 0, 0.5))
    assert attack(sometimes, always) == 1


def test_phi_itself_counts_as_reached():
    assert attack(runs((0, 0, 0, 0.499, 0.499)), runs((0, 0, 0, 0, 0.5))) == 1


def test_if_nothing_breaks_the_most_harm_at_the_end_wins():
    fading, rising, gone = (0, 0.4, 0.4, 0.1, 0.1), (0, 0, 0, 0.1, 0.2), (0, 0.3, 0.3, 0.1, 0.0)
    assert attack(runs(fading), runs(rising), runs(gone)) == 1


def test_ties_go_to_the_first_declared():
    assert attack(*[runs((0, 0, 0, 0, 0.9))] * 3) == 0
    assert attack(*[runs((0, 0, 0, 0, 0.1))] * 3) == 0


def test_a_reading_that_is_no_number_is_no_breach():
    collapsed = runs((0, None, None, None, None))
    assert attack(collapsed, runs((0, 0, 0, 0, 0.5))) == 1
    # its last finite reading
    assert attack(runs((0.2, None, None, None, None)), runs((0, 0, 0, 0, 0.1))) == 0


# -- training -------------------------------------------------------------------------------------


def train(*results, higher="capable"):
    return best(
        best_score("task"), [runs(*curves, label="task", higher=higher) for curves in results]
    )


def test_training_is_judged_by_its_end():
    assert train([(0, 0.9, 0.9, 0.9, 0.5)], [(0, 0, 0, 0, 0.6)]) == 1


def test_training_is_judged_by_the_mean_over_seeds():
    assert train([(0, 0, 0, 0, 1.0), (0, 0, 0, 0, 0.0)], [(0, 0, 0, 0, 0.6)] * 2) == 1


@pytest.mark.parametrize("higher, best", [("capable", 1), ("worse", 0)])
def test_the_direction_of_the_measure_is_respected(higher, best):
    assert train([(3, 3, 3, 3, 1.0)], [(3, 3, 3, 3, 2.0)], higher=higher) == best


def test_equal_training_goes_to_the_first_declared():
    assert train(*[[(0, 0, 0, 0, 0.5)]] * 3) == 0


# -- asking ---------------------------------------------------------------------------------------

SPACE = {"lr": [1, 2], "batch": ["a", "b"]}
POINTS = [{"lr": r, "batch": b} for r in (1, 2) for b in ("a", "b")]


def grid():
    return Grid(lambda trial: (trial.point["lr"],))


def test_a_grid_asks_for_every_combination_in_declared_order_once():
    assert grid().ask(SPACE, ()) == POINTS
    history = [Trial(p, ()) for p in POINTS]
    assert list(grid().ask(SPACE, history)) == []
    assert grid().ask(SPACE, history[:1]) == POINTS[1:]


def test_asking_is_pure():
    """The same history gives the same answer, however often, and is left as it is."""
    search, history = grid(), [Trial(POINTS[2], ())]
    first = search.ask(SPACE, history)
    assert search.ask(SPACE, history) == search.ask(SPACE, tuple(history)) == first
    assert history == [Trial(POINTS[2], ())] and SPACE == {"lr": [1, 2], "batch": ["a", "b"]}


def test_without_a_space_there_is_nothing_to_choose():
    def run(point):
        raise AssertionError("nothing is to be run")

    assert chosen(grid(), {}, run) == {}


def test_trials_are_missing_until_all_have_records():
    asked, done = [], {}

    def run(point):
        asked.append(point)
        return done.get(tuple(point.values()))

    assert chosen(grid(), SPACE, run) is None
    assert asked == POINTS  # all of them, so that they can run at the same time
    done |= {tuple(p.values()): () for p in POINTS[:-1]}
    assert chosen(grid(), SPACE, run) is None
    done |= {tuple(p.values()): () for p in POINTS}
    assert chosen(grid(), SPACE, run) == POINTS[0]


class InRounds:
    """Asks for one point after the other and stops when the last one was no better."""

    def ask(self, space, history):
        values = [t.point["x"] for t in history]
        if len(values) > 1 and score(history[-1]) <= score(history[-2]):
            return ()
        return [{"x": space["x"][len(values)]}]

    def best(self, history):
        return max(history, key=score).point


def score(trial):
    return trial.records[0].probes[-1].reading("harm").value


def test_a_search_that_adapts_is_asked_from_the_beginning_at_every_planning():
    curve, done, planned = [0.1, 0.5, 0.4, 0.9], {}, []

    def run(point):
        planned.append(point["x"])
        return done.get(point["x"])

    rounds = []
    while (point := chosen(InRounds(), {"x": [0, 1, 2, 3]}, run)) is None:
        rounds.append(list(planned))
        done[planned[-1]] = runs((0, 0, 0, 0, curve[planned[-1]]))
        planned.clear()
    assert rounds == [[0], [0, 1], [0, 1, 2]]
    assert point == {"x": 1}  # it never saw the last one
