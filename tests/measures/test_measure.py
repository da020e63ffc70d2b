"""Readings against numpy; reading leaves the model as it was."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from titer.measures.exact_answer import ExactAnswer
from titer.measures.measure import read, reading_of

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


def test_the_mode_is_restored_when_reading_fails(new_bundle, harm):
    class Failing(ExactAnswer):
        def collect(self, bundle, examples):
            assert not bundle.model.training
            raise RuntimeError("no")

    bundle = new_bundle()
    bundle.model.train()
    with pytest.raises(RuntimeError, match="no"):
        read(Failing(), bundle, harm[:4], "x")
    assert bundle.model.training


def test_measures_run_without_dropout_and_without_gradient(new_bundle, harm):
    class Watching(ExactAnswer):
        def collect(self, bundle, examples):
            import torch

            assert not torch.is_grad_enabled()
            return super().collect(bundle, examples)

    bundle = new_bundle()
    for module in bundle.model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.9
    bundle.model.train()
    first, again = (read(Watching(), bundle, harm[:16], "x")[1] for _ in range(2))
    assert first == again == read(ExactAnswer(), new_bundle(), harm[:16], "x")[1]
