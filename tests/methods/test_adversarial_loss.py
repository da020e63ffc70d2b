"""The paper's objective against a loop over tokens, its limiting cases, and finite differences."""

import math
from dataclasses import replace

import pytest
import torch

from titer.data.encoding import Stream, encode
from titer.errors import StudyError
from titer.methods.defenses.adversarial_loss import AdversarialLoss
from titer.methods.method import MethodData

SEED, BATCH = 3, 4


@pytest.fixture
def data(harm, harmless):
    """Prompts and answers of several lengths; some answers share tokens with their refusal at the
    same place.
    """
    some = [
        replace(harm[0], response="i must tol refuse"),
        replace(harm[1], response="tol"),
        replace(harm[2], system="you are a helpful assistant"),
        replace(harm[3], response="i cannot bal bel bil"),
        *harm[4:8],
    ]
    return MethodData(harmful=tuple(some), harmless=harmless[:6])


def token_nll(bundle, row):
    """−log p of each response token, one text at a time, without padding."""
    ids = [*row.prompt, *row.response]
    with torch.no_grad():
        log_p = bundle.model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return [-log_p[t - 1, ids[t]].item() for t in range(len(row.prompt), len(ids))]


def by_hand(method, bundle, data, step):
    """CE_m(y_r), A(CE_m(y_h)), CE(harmless) of one step's batch, by loops."""
    kept_r, kept_h, kept_b = [], [], []
    for i in Stream(len(data.harmful), method.batch_size, SEED).indices(step):
        example = data.harmful[i]
        refusal, harmful = (
            encode(bundle.tokenizer, example, a, 32) for a in (example.refusal, example.response)
        )
        for mine, other, kept in ((refusal, harmful, kept_r), (harmful, refusal, kept_h)):
            for s, nll in enumerate(token_nll(bundle, mine)):
                if s >= len(other.response) or mine.response[s] != other.response[s]:
                    kept.append(nll)
    for i in Stream(len(data.harmless), method.batch_size, SEED + 1).indices(step):
        kept_b += token_nll(
            bundle, encode(bundle.tokenizer, data.harmless[i], data.harmless[i].response, 32)
        )
    if method.form == "capped":
        ascent = math.fsum(min(c, method.cap) for c in kept_h) / len(kept_h)
    else:
        mean = math.fsum(kept_h) / len(kept_h)
        ascent = math.log(1 + mean) if method.form == "log" else mean
    return math.fsum(kept_r) / len(kept_r), ascent, math.fsum(kept_b) / len(kept_b)


def start(method, bundle, data):
    return method.start(bundle, data, seed=SEED, horizon=8)


def gradient(run, step=0):
    loss, _ = run.objective(run.model, step)
    return torch.autograd.grad(loss, run.parameters, allow_unused=True), loss


@pytest.mark.parametrize("form", ["linear", "log", "capped"])
@pytest.mark.parametrize("step", [0, 1])
def test_objective_equals_the_formula(new_bundle, data, form, step):
    method = AdversarialLoss(batch_size=BATCH, alpha=0.3, form=form, cap=4.0, retain=0.7)
    bundle = new_bundle()
    refusal, ascent, harmless = by_hand(method, bundle, data, step)
    loss, other = start(method, bundle, data).objective(bundle.model, step)
    # abs: a cross-entropy of 0.01 comes from float32 logits near 10, whose rounding alone is about
    # 1e-6
    assert loss.item() == pytest.approx(refusal - 0.3 * ascent + 0.7 * harmless, rel=1e-5, abs=1e-6)
    assert other["ce_refusal"] == pytest.approx(refusal, rel=1e-5, abs=1e-6)
    assert other["ce_harmless"] == pytest.approx(harmless, rel=1e-5, abs=1e-6)


def test_the_cap_is_reached_in_the_data_above(new_bundle, data):
    """Otherwise `capped` would have been compared with `linear`."""
    linear, capped = (
        by_hand(AdversarialLoss(batch_size=BATCH, form=f, cap=4.0), new_bundle(), data, 0)[1]
        for f in ("linear", "capped")
    )
    assert capped < 0.9 * linear


def test_without_ascent_only_the_refusal_is_learned(new_bundle, data):
    bundle = new_bundle()
    method = AdversarialLoss(batch_size=BATCH, alpha=0.0)
    loss, other = start(method, bundle, data).objective(bundle.model, 0)
    assert (
        loss.item()
        == other["ce_refusal"]
        == pytest.approx(by_hand(method, bundle, data, 0)[0], rel=1e-5, abs=1e-6)
    )


def test_identical_answers_teach_nothing(new_bundle, data):
    same = MethodData(harmful=tuple(replace(e, response=e.refusal) for e in data.harmful))
    grads, loss = gradient(start(AdversarialLoss(batch_size=BATCH, alpha=0.5), new_bundle(), same))
    assert loss.item() == 0.0
    assert all(g is None or not g.any() for g in grads)


def test_beyond_the_cap_nothing_is_gained(new_bundle, data):
    """With every harmful token beyond the cap the ascent is the constant alpha · cap and has no
    gradient.
    """
    low = gradient(
        start(
            AdversarialLoss(batch_size=BATCH, alpha=0.5, form="capped", cap=1e-12),
            new_bundle(),
            data,
        )
    )
    none = gradient(start(AdversarialLoss(batch_size=BATCH, alpha=0.0), new_bundle(), data))
    assert low[1].item() == pytest.approx(none[1].item(), abs=1e-6)
    for a, b in zip(low[0], none[0], strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("form", ["linear", "log", "capped"])
def test_gradient_against_finite_differences(new_bundle, data, form):
    """Central differences in float64 weights, along single weights of several matrices.

    Norms, rotary angles and the final cross-entropy are computed in fp32 whatever the weights are:
    hence the tolerance.
    """
    bundle = new_bundle()
    bundle.model.double()
    run = start(
        AdversarialLoss(batch_size=BATCH, alpha=0.3, form=form, cap=6.0, retain=0.7), bundle, data
    )
    grads, _ = gradient(run)
    with torch.no_grad():
        for parameter, grad in list(zip(run.parameters, grads, strict=True))[::5]:
            place = (
                divmod(int(grad.abs().argmax()), grad.shape[-1])
                if grad.ndim == 2
                else (int(grad.abs().argmax()),)
            )
            ends = []
            for shift in (2e-3, -4e-3):
                parameter[place] += shift
                ends.append(run.objective(run.model, 0)[0].item())
            parameter[place] += 2e-3
            assert (ends[0] - ends[1]) / 4e-3 == pytest.approx(
                grad[place].item(), rel=0.01, abs=5e-4
            )


def test_prompts_without_room_for_both_answers_are_left_out(new_bundle, harm):
    bundle = new_bundle()
    short, long = harm[0], replace(harm[1], prompt=" ".join(["bal"] * 40))
    run = start(AdversarialLoss(batch_size=2), bundle, MethodData(harmful=(short, long)))
    alone = start(AdversarialLoss(batch_size=2), bundle, MethodData(harmful=(short,)))
    assert run.objective(bundle.model, 0)[0].item() == alone.objective(bundle.model, 0)[0].item()
    with pytest.raises(StudyError, match="no harmful pair fits"):
        start(AdversarialLoss(), bundle, MethodData(harmful=(long,)))


@pytest.mark.parametrize("missing", ["response", "refusal"])
def test_both_answers_are_needed(new_bundle, harm, missing):
    with pytest.raises(StudyError, match="1 examples without"):
        start(
            AdversarialLoss(),
            new_bundle(),
            MethodData(harmful=(harm[0], replace(harm[1], **{missing: None}))),
        )
