"""Booster against three gradients of autograd, and its limits."""

import pytest
import torch

from helpers.by_hand import ce, close, gradient_left, gradient_of, handed, norm, same, weights
from titer.methods.defenses.booster import Booster
from titer.methods.defenses.sft_refusal import SFTRefusal

N = 8


def start(method, bundle, texts):
    return method.start(handed(bundle, **texts))


def by_hand(new_bundle, texts, *, lam, alpha, retain):
    """∇f(w) + lam·(∇h(w) − ∇h(w − alpha·∇h(w)/‖∇h(w)‖)), f(w), h(w), h after the harmful step."""
    here, there = new_bundle(), new_bundle()
    wanted = ce(here, texts["harmful"], "refusal")
    if retain:
        wanted = wanted + retain * ce(here, texts["harmless"], "response")
    harmful = ce(here, texts["harmful"], "response")
    g_f, g_h = gradient_of(here, wanted), gradient_of(here, harmful)
    with torch.no_grad():
        for name, p in there.model.named_parameters():
            p.sub_(alpha * g_h[name] / norm(g_h))
    after = ce(there, texts["harmful"], "response")
    g_after = gradient_of(there, after)
    expected = {n: g_f[n] + lam * (g_h[n] - g_after[n]) for n in g_f}
    return expected, wanted.item(), harmful.item(), after.item()


@pytest.mark.parametrize(
    ("lam", "alpha", "retain"), [(5.0, 0.1, 0.0), (0.5, 1.0, 0.0), (2.0, 0.3, 0.5)]
)
def test_gradient_equals_the_formula(new_bundle, uneven, lam, alpha, retain):
    method = Booster(batch_size=N, lam=lam, alpha=alpha, retain=retain)
    log, found = gradient_left(start(method, new_bundle(), uneven))
    expected, wanted, harmful, after = by_hand(
        new_bundle, uneven, lam=lam, alpha=alpha, retain=retain
    )
    assert log.loss == pytest.approx(wanted, rel=1e-4)
    assert log.figures["ce_harmful"] == pytest.approx(harmful, rel=1e-5)
    assert log.figures["ce_harmful_after"] == pytest.approx(after, rel=1e-5)
    assert after < harmful
    close(found, expected, rtol=1e-3)


def test_the_bracket_matters_in_what_is_compared(new_bundle, uneven):
    """Otherwise the test above would have compared plain training with itself."""
    with_it = by_hand(new_bundle, uneven, lam=5.0, alpha=0.1, retain=0.0)[0]
    without = by_hand(new_bundle, uneven, lam=0.0, alpha=0.1, retain=0.0)[0]
    assert norm({n: with_it[n] - without[n] for n in with_it}) > 0.5 * norm(without)


@pytest.mark.parametrize("limit", [{"lam": 0.0}, {"alpha": 0.0}])
def test_its_limits_are_plain_training_bit_for_bit(new_bundle, uneven, limit):
    common = {"lr": 1e-3, "batch_size": 4, "weight_decay": 0.1}
    ours, plain = new_bundle(), new_bundle()
    run = start(Booster(**common, **limit), ours, uneven)
    other = start(SFTRefusal(**common, retain=0.0), plain, uneven)
    for _ in range(3):
        assert run.step().loss == other.step().loss
    assert same(weights(ours.model), weights(plain.model))


def test_the_gradient_leaves_the_weights_exactly_as_they_were(new_bundle, uneven):
    """w − step + step is not w in floating point: they must be put back, not added back."""
    bundle = new_bundle()
    run = start(Booster(batch_size=N, alpha=7.3), bundle, uneven)
    gradient_left(run)
    assert same(weights(bundle.model), weights(new_bundle().model))


def test_nothing_to_gain_is_no_division_by_zero(new_bundle, uneven):
    """A harmful gradient of 0 has no direction; the step is then plain training."""
    bundle = new_bundle()
    method = Booster(batch_size=N)

    def harmful(model, step):
        return 0.0 * sum(p.sum() for p in model.parameters()), {}

    def wanted(model, step):
        return sum(p.pow(2).sum() for p in model.parameters()), {}

    method.gradient(bundle, wanted, harmful)(bundle.model, 0)
    for p in bundle.model.parameters():
        torch.testing.assert_close(p.grad, 2 * p.detach())
