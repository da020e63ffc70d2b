"""Negative preference optimization against a loop over answers, and its limits."""

import math

import pytest
import torch
from torch.nn.functional import softplus

from helpers.by_hand import ce, close, gradient_left, gradient_of, handed, nll, same, weights
from titer.errors import StudyError
from titer.methods.defenses.npo import NPO

N = 8


def log_p(bundle, examples):
    """log π(y_h | x) of each harmful answer, summed over its tokens; with graph."""
    return torch.stack([-nll(bundle, e, e.response).sum() for e in examples])


def start(method, bundle, reference, texts):
    return method.start(handed(bundle, models={"parent": reference}, **texts))


@pytest.fixture
def moved(new_bundle, uneven):
    """A model that has left its reference, so that the loss is not at its start."""

    def make():
        bundle = new_bundle()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for p in bundle.model.parameters():
                p.add_(
                    0.02 * p.norm() / p.numel() ** 0.5 * torch.randn(p.shape, generator=generator)
                )
        return bundle

    return make


@pytest.mark.parametrize(("beta", "retain"), [(0.1, 1.0), (0.7, 0.25), (0.1, 0.0)])
def test_loss_and_gradient_equal_the_formula(new_bundle, moved, uneven, beta, retain):
    reference = new_bundle()
    run = start(NPO(batch_size=N, beta=beta, retain=retain), moved(), reference, uneven)
    log, found = gradient_left(run)

    bundle = moved()
    with torch.no_grad():
        before = log_p(reference, uneven["harmful"])
    forget = (2 / beta) * softplus(beta * (log_p(bundle, uneven["harmful"]) - before)).mean()
    kept = ce(bundle, uneven["harmless"], "response")
    expected = forget + retain * kept
    assert log.loss == pytest.approx(expected.item(), rel=1e-5)
    assert log.figures["npo"] == pytest.approx(forget.item(), rel=1e-5)
    close(found, gradient_of(bundle, expected))


def test_at_the_start_every_answer_is_as_likely_as_before(new_bundle, uneven):
    """softplus(0) = ln 2."""
    run = start(NPO(batch_size=N, beta=0.3), new_bundle(), new_bundle(), uneven)
    log, _ = gradient_left(run)
    kept = ce(new_bundle(), uneven["harmless"], "response").item()
    assert log.loss == pytest.approx(2 / 0.3 * math.log(2) + kept, rel=1e-5)


def test_a_small_beta_is_gradient_ascent(moved, new_bundle, uneven):
    """(2/β)·ln(1 + e^{βx}) = (2/β)·ln 2 + x + O(β): descending on it makes answers less likely."""
    run = start(NPO(batch_size=N, beta=1e-5, retain=0.0), moved(), new_bundle(), uneven)
    bundle = moved()
    ascent = gradient_of(bundle, log_p(bundle, uneven["harmful"]).mean())
    close(gradient_left(run)[1], ascent, rtol=1e-3)


def test_a_large_beta_stops_at_answers_that_have_become_unlikely(new_bundle, uneven):
    """σ(β·x) is 0 far below the reference, so that nothing is left to gain."""
    run = start(
        NPO(lr=1e-3, batch_size=N, beta=50.0, retain=0.0), new_bundle(), new_bundle(), uneven
    )
    for _ in range(6):
        run.step()
    now, before = (log_p(b, uneven["harmful"]) for b in (run.model(), new_bundle()))
    assert bool((now < before - 1).all())
    assert all(float(g.abs().max()) < 1e-12 for g in gradient_left(run)[1].values())


def test_the_reference_is_frozen(new_bundle, uneven):
    """After some steps the loss is still measured against the model before."""
    reference = new_bundle()
    run = start(NPO(lr=1e-3, batch_size=N, retain=0.0), new_bundle(), reference, uneven)
    for _ in range(2):
        run.step()
    log, _ = gradient_left(run, 2)
    assert same(weights(reference.model), weights(new_bundle().model))
    assert all(p.grad is None for p in reference.model.parameters())
    with torch.no_grad():
        before = log_p(new_bundle(), uneven["harmful"])
        now = log_p(run.model(), uneven["harmful"])
    assert log.loss == pytest.approx(20 * softplus(0.1 * (now - before)).mean().item(), rel=1e-4)
    assert bool((now < before).all())


def test_without_harmless_text_there_is_nothing_to_retain(new_bundle, uneven):
    run = start(
        NPO(batch_size=N, retain=1.0), new_bundle(), new_bundle(), {"harmful": uneven["harmful"]}
    )
    assert gradient_left(run)[0].loss == pytest.approx(20 * math.log(2), rel=1e-6)


def test_without_a_parent_there_is_no_reference(new_bundle, uneven):
    with pytest.raises(StudyError, match="parent"):
        NPO().start(handed(new_bundle(), **uneven))
