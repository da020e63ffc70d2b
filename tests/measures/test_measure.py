"""Readings against numpy; reading leaves the model as it was."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from titer.errors import MeasureError
from titer.judges.judge import Judge
from titer.measures.ask import ask
from titer.measures.exact_answer import ExactAnswer
from titer.measures.measure import read, reading_of
from titer.measures.requests import Own

finite = st.floats(-1e6, 1e6)


@given(st.lists(finite, min_size=2, max_size=60))
def test_mean_and_standard_error(outcomes):
    reading = reading_of(outcomes, "x")
    size = np.abs(outcomes).max()
    assert reading.n == len(outcomes) and reading.outcomes == tuple(outcomes)
    assert reading.value == pytest.approx(np.mean(outcomes), rel=1e-9, abs=1e-9 * size)
    expected = np.std(outcomes, ddof=1) / np.sqrt(len(outcomes))
    assert reading.se == pytest.approx(expected, rel=1e-6, abs=1e-9 * size)


@given(st.lists(st.booleans(), min_size=2, max_size=60))
def test_standard_error_of_a_proportion(outcomes):
    """With a share p of n: √(p(1 − p)/(n − 1))."""
    reading = reading_of([float(o) for o in outcomes], "x")
    p, n = np.mean(outcomes), len(outcomes)
    assert reading.value == pytest.approx(p)
    assert reading.se == pytest.approx(math.sqrt(p * (1 - p) / (n - 1)), abs=1e-12)


@given(
    st.lists(finite, max_size=10),
    st.sampled_from([math.nan, math.inf, -math.inf]),
    st.integers(0, 10),
)
def test_one_outcome_that_is_no_number_leaves_no_value(outcomes, bad, place):
    reading = reading_of([*outcomes[:place], bad, *outcomes[place:]], "x")
    assert reading.value is None and reading.se is None and reading.n == len(outcomes) + 1
    assert reading.outcomes.count(None) == 1  # and the others are kept


def test_no_outcomes_no_value():
    reading = reading_of([], "x")
    assert (reading.value, reading.se, reading.n) == (None, None, 0)


@pytest.mark.parametrize("training", [True, False])
def test_reading_leaves_the_model_as_it_was(new_bundle, harm, training):
    bundle = new_bundle()
    bundle.model.requires_grad_(True).train(training)
    read(ExactAnswer(), bundle, harm[:4], "x")
    assert bundle.model.training is training
    assert all(p.requires_grad and p.grad is None for p in bundle.model.parameters())


class Mine(ExactAnswer):
    """Runs the model itself."""

    careless: bool = False
    fails: bool = False

    def request(self):
        return Own()

    def collect(self, bundle, examples):
        assert not bundle.model.training and not torch.is_grad_enabled()
        if self.careless:
            bundle.model.train()
        if self.fails:
            raise RuntimeError("no")
        return ask(bundle, examples, super().request())


def test_the_mode_is_restored_when_reading_fails(new_bundle, harm):
    bundle = new_bundle()
    bundle.model.train()
    with pytest.raises(RuntimeError, match="no"):
        read(Mine(fails=True), bundle, harm[:4], "x")
    assert bundle.model.training


def test_a_careless_measure_does_not_leave_the_model_in_training(new_bundle, harm):
    bundle = new_bundle()
    bundle.model.eval()
    read(Mine(careless=True), bundle, harm[:4], "x")
    assert not bundle.model.training


def test_measures_run_without_dropout_and_without_gradient(new_bundle, harm):
    bundle = new_bundle()
    for module in bundle.model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.9
    bundle.model.train()
    expected = read(ExactAnswer(), new_bundle(), harm[:16], "x")[1]
    for measure in (Mine(), ExactAnswer()):
        first, again = (read(measure, bundle, harm[:16], "x")[1] for _ in range(2))
        assert first == again == expected


def test_a_measure_that_collects_out_of_order_is_refused(new_bundle, harm):
    class Backwards(Mine):
        def collect(self, bundle, examples):
            return super().collect(bundle, examples)[::-1]

    with pytest.raises(MeasureError, match=r"one each and in order.*exact_answer"):
        read(Backwards(), new_bundle(), harm[:4], "x")


def test_what_it_needs_is_what_its_request_and_its_judge_need():
    class Wanting(Judge):
        name = "wanting"

        def judge(self, pairs):
            return [0.0 for _ in pairs]

        def needed(self):
            return ("prompt", "refusal")

    class Judged(ExactAnswer):
        def judge(self):
            return Wanting()

    assert ExactAnswer(target="refusal").needed() == ("prompt", "refusal")
    assert Judged().needed() == ("prompt", "response", "refusal")
    assert ExactAnswer().judge() is None and ExactAnswer().own_items() is None


def test_only_a_measure_that_says_so_runs_the_model_itself(new_bundle, harm):
    with pytest.raises(MeasureError, match=r"does not run the model itself.*exact_answer"):
        ExactAnswer().collect(new_bundle(), harm[:2])
    with pytest.raises(MeasureError, match="answered by its measure"):
        ask(new_bundle(), harm[:2], Own())
