"""The paper's objective against a loop over tokens, its limiting cases, and finite differences."""

import math
from dataclasses import replace

import pytest
import torch

from helpers.by_hand import differing, gradient_left, handed, nll
from titer.data.bundle import ModelBundle
from titer.data.encoding import Stream
from titer.errors import StudyError
from titer.methods.defenses.adversarial_loss import AdversarialLoss

SEED, BATCH = 3, 4


@pytest.fixture
def texts(uneven):
    """Fewer harmless examples than harmful ones: epochs of the two do not end together."""
    return {"harmful": uneven["harmful"], "harmless": uneven["harmless"][:6]}


@pytest.fixture(scope="module")
def tokens(tiny, uneven):
    """step → −log p of the kept tokens of refusals, of harmful answers, of harmless ones."""
    bundle = ModelBundle(tiny.model, tiny.tokenizer, torch.device("cpu"), max_length=32)
    harmful, harmless = uneven["harmful"], uneven["harmless"][:6]
    found = {}
    for step in (0, 1):
        kept_r, kept_h, kept_b = [], [], []
        with torch.no_grad():
            for i in Stream(len(harmful), BATCH, SEED).indices(step):
                example = harmful[i]
                for places, answer, kept in zip(
                    differing(bundle, example),
                    (example.refusal, example.response),
                    (kept_r, kept_h),
                    strict=True,
                ):
                    values = nll(bundle, example, answer).tolist()
                    kept += [values[place] for place in places]
            for i in Stream(len(harmless), BATCH, SEED + 1).indices(step):
                kept_b += nll(bundle, harmless[i], harmless[i].response).tolist()
        found[step] = kept_r, kept_h, kept_b
    return found


def by_hand(method, tokens, step):
    """CE_m(y_r), A(CE_m(y_h)), CE(harmless) of one step's batch."""
    kept_r, kept_h, kept_b = tokens[step]
    if method.form == "capped":
        ascent = math.fsum(min(c, method.cap) for c in kept_h) / len(kept_h)
    else:
        mean = math.fsum(kept_h) / len(kept_h)
        ascent = math.log(1 + mean) if method.form == "log" else mean
    return math.fsum(kept_r) / len(kept_r), ascent, math.fsum(kept_b) / len(kept_b)


def start(method, bundle, texts):
    return method.start(handed(bundle, seed=SEED, **texts))


@pytest.mark.parametrize("form", ["linear", "log", "capped"])
@pytest.mark.parametrize("step", [0, 1])
def test_objective_equals_the_formula(new_bundle, texts, tokens, form, step):
    method = AdversarialLoss(batch_size=BATCH, alpha=0.3, form=form, cap=4.0, retain=0.7)
    bundle = new_bundle()
    refusal, ascent, harmless = by_hand(method, tokens, step)
    log, _ = gradient_left(start(method, bundle, texts), step)
    # abs: a cross-entropy of 0.01 comes from float32 logits near 10, whose rounding alone is about
    # 1e-6
    expected = refusal - 0.3 * ascent + 0.7 * harmless
    assert log.loss == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert log.figures["ce_refusal"] == pytest.approx(refusal, rel=1e-5, abs=1e-6)
    assert log.figures["ce_harmless"] == pytest.approx(harmless, rel=1e-5, abs=1e-6)


def test_the_cap_is_reached_in_the_texts_above(tokens):
    """Otherwise `capped` would have been compared with `linear`."""
    linear, capped = (
        by_hand(AdversarialLoss(batch_size=BATCH, form=f, cap=4.0), tokens, 0)[1]
        for f in ("linear", "capped")
    )
    assert capped < 0.9 * linear


def test_without_ascent_only_the_refusal_is_learned(new_bundle, texts, tokens):
    bundle = new_bundle()
    method = AdversarialLoss(batch_size=BATCH, alpha=0.0)
    log, _ = gradient_left(start(method, bundle, texts))
    expected = by_hand(method, tokens, 0)[0]
    assert log.loss == log.figures["ce_refusal"] == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_identical_answers_teach_nothing(new_bundle, texts):
    same = tuple(replace(e, response=e.refusal) for e in texts["harmful"])
    run = start(AdversarialLoss(batch_size=BATCH, alpha=0.5), new_bundle(), {"harmful": same})
    log, gradient = gradient_left(run)
    assert log.loss == 0.0
    assert not any(g.any() for g in gradient.values())


def test_beyond_the_cap_nothing_is_gained(new_bundle, texts):
    """With every harmful token beyond the cap the ascent is the constant alpha · cap and has no
    gradient.
    """
    low = AdversarialLoss(batch_size=BATCH, alpha=0.5, form="capped", cap=1e-12)
    none = AdversarialLoss(batch_size=BATCH, alpha=0.0)
    (log, found), (plain, expected) = (
        gradient_left(start(method, new_bundle(), texts)) for method in (low, none)
    )
    assert log.loss == pytest.approx(plain.loss, abs=1e-6)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name])


@pytest.mark.parametrize("form", ["linear", "log", "capped"])
def test_gradient_against_finite_differences(new_bundle, texts, form):
    """Central differences in float64 weights, along single weights of several matrices.

    Norms, rotary angles and the final cross-entropy are computed in fp32 whatever the weights are:
    hence the tolerance.
    """
    bundle = new_bundle()
    bundle.model.double()
    method = AdversarialLoss(batch_size=BATCH, alpha=0.3, form=form, cap=6.0, retain=0.7)
    run = start(method, bundle, texts)
    _, found = gradient_left(run)
    with torch.no_grad():
        for name, parameter in list(bundle.model.named_parameters())[::7]:
            grad = found[name]
            at = int(grad.abs().argmax())
            place = divmod(at, grad.shape[-1]) if grad.ndim == 2 else (at,)
            ends = []
            for shift in (2e-3, -4e-3):
                parameter[place] += shift
                with torch.enable_grad():
                    ends.append(gradient_left(run)[0].loss)
            parameter[place] += 2e-3
            assert (ends[0] - ends[1]) / 4e-3 == pytest.approx(
                grad[place].item(), rel=0.01, abs=5e-4
            )


def test_prompts_without_room_for_both_answers_are_left_out(new_bundle, harm):
    short, long = harm[0], replace(harm[1], prompt=" ".join(["bal"] * 40))
    method = AdversarialLoss(batch_size=2)
    both, alone = (
        gradient_left(start(method, new_bundle(), {"harmful": given}))[0].loss
        for given in ((short, long), (short,))
    )
    assert both == alone
    with pytest.raises(StudyError, match="no training example fits"):
        start(AdversarialLoss(), new_bundle(), {"harmful": (long,)})


@pytest.mark.parametrize("missing", ["response", "refusal"])
def test_both_answers_are_needed(new_bundle, harm, missing):
    given = (harm[0], replace(harm[1], **{missing: None}))
    with pytest.raises(StudyError, match=f"1 of 2 examples have no {missing}"):
        start(AdversarialLoss(), new_bundle(), {"harmful": given})
