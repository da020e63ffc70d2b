"""The shared runs against bare PyTorch."""

import math

import pytest
import torch

from titer.data.encoding import Stream, collate, encode_all
from titer.methods.attacks.full_sft import FullSFT
from titer.methods.attacks.weight_noise import WeightNoise
from titer.methods.defenses.sft_refusal import SFTRefusal
from titer.methods.losses import response_ce
from titer.methods.runs import schedule_factor
from titer.testing.conformance import Trial, walk


def weights(model):
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def bare_loop(bundle, examples, *, steps, lr, batch, seed, decay, warmup, clip, **adamw):
    """Supervised fine-tuning as anybody would write it."""
    model, pad = bundle.model, bundle.tokenizer.pad_token_id
    rows = encode_all(bundle.tokenizer, examples, "response", 32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=decay, **adamw)
    losses, norms = [], []
    model.train().requires_grad_(True)
    for step in range(steps):
        batch_rows = [rows[i] for i in Stream(len(rows), batch, seed).indices(step)]
        tokens = collate(batch_rows, pad)
        optimizer.param_groups[0]["lr"] = lr * min(1.0, (step + 1) / warmup)
        logits = model(
            input_ids=tokens.input_BT, attention_mask=tokens.mask_BT, use_cache=False
        ).logits
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].reshape(-1, logits.shape[-1]), tokens.labels_BT[:, 1:].reshape(-1)
        )
        optimizer.zero_grad()
        loss.backward()
        norms.append(math.sqrt(sum(float(p.grad.pow(2).sum()) for p in model.parameters())))
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        losses.append(loss.item())
    return losses, norms


HOW = {"steps": 5, "lr": 1e-3, "batch": 4, "seed": 7, "decay": 0.1, "warmup": 2, "clip": 0.5}


def titer_run(bundle, pairs):
    attack = FullSFT(lr=1e-3, batch_size=4, weight_decay=0.1, warmup_steps=2, clip_norm=0.5)
    run = attack.start(bundle, pairs, seed=7, horizon=5)
    return [run.step() for _ in range(5)]


def test_supervised_run_is_a_bare_loop_bit_for_bit(new_bundle, pairs):
    ours, plain = new_bundle(), new_bundle()
    logs = titer_run(ours, pairs)
    losses, norms = bare_loop(plain, pairs.harmful + pairs.harmless, **HOW, fused=True)
    assert [log.loss for log in logs] == losses
    assert [log.grad_norm for log in logs] == pytest.approx(norms, rel=1e-5)
    assert max(norms) > 0.5  # the gradient was clipped, and logged unclipped
    expected = weights(plain.model)
    assert all(torch.equal(w, expected[n]) for n, w in weights(ours.model).items())


def test_the_fused_optimizer_is_adamw(new_bundle, pairs):
    ours, plain = new_bundle(), new_bundle()
    titer_run(ours, pairs)
    bare_loop(plain, pairs.harmful + pairs.harmless, **HOW, foreach=False, fused=False)
    expected = weights(plain.model)
    for name, value in weights(ours.model).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)


def test_sft_refusal_is_the_sum_of_its_two_parts(new_bundle, pairs):
    bundle = new_bundle()
    run = SFTRefusal(batch_size=4, retain=0.25).start(bundle, pairs, seed=5, horizon=4)
    loss, other = run.objective(bundle.model, 2)
    parts = []
    for examples, field, seed in ((pairs.harmful, "refusal", 5), (pairs.harmless, "response", 6)):
        rows = encode_all(bundle.tokenizer, examples, field, 32)
        tokens = collate(
            [rows[i] for i in Stream(len(rows), 4, seed).indices(2)], bundle.tokenizer.pad_token_id
        )
        parts.append(response_ce(bundle.model, tokens).item())
    assert [other["ce_refusal"], other["ce_harmless"]] == parts
    assert loss.item() == pytest.approx(parts[0] + 0.25 * parts[1], rel=1e-6)


# -- schedules ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_warm_up_rises_in_equal_parts(schedule):
    assert [schedule_factor(schedule, s, warmup=4, horizon=100) for s in range(4)] == [
        0.25,
        0.5,
        0.75,
        1.0,
    ]
    assert schedule_factor(schedule, 4, warmup=4, horizon=100) == 1.0


def test_constant_does_not_look_at_the_horizon():
    assert {
        schedule_factor("constant", s, warmup=0, horizon=h) for s in (0, 7, 50) for h in (1, 8, 100)
    } == {1.0}


def test_decays_in_closed_form():
    linear = [schedule_factor("linear", s, warmup=2, horizon=10) for s in (2, 4, 6, 9, 10)]
    assert linear == pytest.approx([1, 3 / 4, 1 / 2, 1 / 8, 0])
    cosine = [schedule_factor("cosine", s, warmup=2, horizon=10) for s in (2, 4, 6, 8, 10)]
    # cos of 0, 45, 90, 135 and 180 degrees
    assert cosine == pytest.approx(
        [1, 0.5 + math.sqrt(2) / 4, 0.5, 0.5 - math.sqrt(2) / 4, 0], abs=1e-12
    )


def test_warm_up_longer_than_the_run():
    assert schedule_factor("cosine", 2, warmup=8, horizon=4) == 3 / 8
    assert schedule_factor("linear", 8, warmup=8, horizon=8) == 1.0


@pytest.mark.parametrize(
    ("schedule", "shared"), [("constant", True), ("linear", False), ("cosine", False)]
)
def test_only_a_constant_schedule_shares_prefixes(new_bundle, pairs, schedule, shared):
    attack = FullSFT(lr=1e-3, batch_size=4, schedule=schedule, warmup_steps=1)
    trial = Trial(new_bundle, pairs)
    long, short = (walk(attack, trial, steps=n) for n in (16, 8))
    assert (long.logs[:8] == short.logs) is shared
    assert attack.horizon_free() is shared


# -- weight edits -------------------------------------------------------------------------------------------------


def test_weight_noise_has_the_size_it_says(new_bundle, pairs):
    bundle = new_bundle()
    before = weights(bundle.model)
    run = WeightNoise(scale=0.02).start(bundle, pairs, seed=1, horizon=1)
    run.step()
    for name, value in weights(bundle.model).items():
        if value.ndim == 2:
            assert float((value - before[name]).norm() / before[name].norm()) == pytest.approx(
                0.02, rel=1e-3
            )
        else:
            assert torch.equal(value, before[name])


def test_weight_noise_walks_at_random(new_bundle, pairs):
    """Independent steps of length s lead about s·√t away, not s·t."""
    bundle = new_bundle()
    before = weights(bundle.model)
    run = WeightNoise(scale=0.01).start(bundle, pairs, seed=1, horizon=16)
    for _ in range(16):
        run.step()
    name = next(n for n, w in before.items() if w.ndim == 2)
    moved = float((weights(bundle.model)[name] - before[name]).norm() / before[name].norm())
    assert moved == pytest.approx(0.04, rel=0.05)
