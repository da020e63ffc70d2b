"""The shared runs against bare PyTorch."""

import math

import pytest
import torch

from helpers.by_hand import answer_batch, ce, close, gradient_left, handed, weights
from titer.data.encoding import Stream
from titer.methods.attacks.full_sft import FullSFT
from titer.methods.attacks.weight_noise import WeightNoise
from titer.methods.defenses.sft_refusal import SFTRefusal
from titer.methods.method import StepLog
from titer.methods.runs import EditRun, Training, schedule_factor
from titer.testing.trial import Trial, walk


def bare_loop(bundle, examples, *, steps, lr, batch, seed, decay, warmup, clip, **adamw):
    """Supervised fine-tuning as anybody would write it."""
    model = bundle.model
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=decay, **adamw)
    losses, norms = [], []
    model.train().requires_grad_(True)
    for step in range(steps):
        drawn = Stream(len(examples), batch, seed).indices(step)
        tokens = answer_batch(bundle, [examples[i] for i in drawn])
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
    run = attack.start(handed(bundle, seed=7, horizon=5, **pairs))
    return [run.step() for _ in range(5)]


def test_supervised_run_is_a_bare_loop_bit_for_bit(new_bundle, pairs):
    ours, plain = new_bundle(), new_bundle()
    logs = titer_run(ours, pairs)
    losses, norms = bare_loop(plain, [*pairs["harmful"], *pairs["harmless"]], **HOW, fused=True)
    assert [log.loss for log in logs] == losses
    assert [log.grad_norm for log in logs] == pytest.approx(norms, rel=1e-5)
    assert max(norms) > 0.5  # the gradient was clipped, and logged unclipped
    expected = weights(plain.model)
    assert all(torch.equal(w, expected[n]) for n, w in weights(ours.model).items())


def test_the_fused_optimizer_is_adamw(new_bundle, pairs):
    ours, plain = new_bundle(), new_bundle()
    titer_run(ours, pairs)
    examples = [*pairs["harmful"], *pairs["harmless"]]
    bare_loop(plain, examples, **HOW, foreach=False, fused=False)
    expected = weights(plain.model)
    for name, value in weights(ours.model).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("retain", [0.0, 0.25])
def test_sft_refusal_is_the_sum_of_its_two_parts(new_bundle, uneven, retain):
    bundle = new_bundle()
    run = SFTRefusal(batch_size=8, retain=retain).start(handed(bundle, **uneven))
    log, _ = gradient_left(run)
    with torch.no_grad():
        refusal = ce(bundle, uneven["harmful"], "refusal").item()
        harmless = ce(bundle, uneven["harmless"], "response").item()
    assert log.figures["ce_refusal"] == pytest.approx(refusal, rel=1e-5)
    assert log.figures.get("ce_harmless", harmless) == pytest.approx(harmless, rel=1e-5)
    assert log.loss == pytest.approx(refusal + retain * harmless, rel=1e-5)


def test_sft_refusal_without_harmless_text(new_bundle, uneven):
    run = SFTRefusal(batch_size=8).start(handed(new_bundle(), harmful=uneven["harmful"]))
    log, _ = gradient_left(run)
    assert set(log.figures) == {"ce_refusal"} and log.loss == log.figures["ce_refusal"]


@pytest.mark.parametrize("slots", [("harmful",), ("harmless",), ("harmful", "harmless")])
def test_an_attacker_learns_all_it_holds(new_bundle, uneven, slots):
    """Harmful only, benign only, or both mixed; batches go over them together."""
    texts = {s: uneven[s] for s in slots}
    bundle = new_bundle()
    run = FullSFT(batch_size=8 * len(slots)).start(handed(bundle, **texts))
    log, _ = gradient_left(run)
    expected = ce(bundle, [e for s in slots for e in texts[s]], "response")
    assert log.loss == pytest.approx(expected.item(), rel=1e-5)


def test_a_training_follows_any_gradient():
    """Not every method has a loss: what counts is what is left in `.grad`."""

    class Bundle:
        model = torch.nn.Linear(2, 1, bias=False)

    with torch.no_grad():
        Bundle.model.weight.copy_(torch.tensor([[1.0, 2.0]]))

    def gradient(model, step):
        model.weight.grad = torch.tensor([[3.0, -4.0]]) * (step + 1)
        return StepLog(figures={"figure": float(step)})

    settings = Training(lr=0.5, optimizer="sgd", clip_norm=100.0)
    run = settings.descend(Bundle, gradient, horizon=2)
    log = run.step()
    assert log.loss is None and log.grad_norm == pytest.approx(5.0)
    assert log.figures == {"figure": 0.0}
    assert Bundle.model.weight.tolist() == [[-0.5, 4.0]]
    assert run.step().grad_norm == pytest.approx(10.0)
    assert Bundle.model.weight.tolist() == [[-3.5, 8.0]]


def test_what_is_not_trained_is_not_stored(new_bundle, uneven):
    bundle = new_bundle()
    run = FullSFT(layers=(1,)).start(handed(bundle, **uneven))
    run.step()
    stored = run.state_dict()
    assert stored["weights"] and all(n.startswith("model.layers.1.") for n in stored["weights"])


# -- schedules -------------------------------------------------------------------------------------


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


def test_beyond_the_horizon_nothing_is_learned():
    """A negative rate would climb, and a cosine would rise again."""
    for schedule in ("linear", "cosine"):
        assert [schedule_factor(schedule, s, warmup=2, horizon=10) for s in (11, 17, 40)] == [0] * 3


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


# -- weight edits ----------------------------------------------------------------------------------


def test_weight_noise_has_the_size_it_says(new_bundle):
    bundle = new_bundle()
    before = weights(bundle.model)
    run = WeightNoise(scale=0.02).start(handed(bundle, seed=1))
    run.step()
    for name, value in weights(bundle.model).items():
        if value.ndim == 2:
            assert float((value - before[name]).norm() / before[name].norm()) == pytest.approx(
                0.02, rel=1e-3
            )
        else:
            assert torch.equal(value, before[name])


def test_weight_noise_walks_at_random(new_bundle):
    """Independent steps of length s lead about s·√t away, not s·t."""
    bundle = new_bundle()
    before = weights(bundle.model)
    run = WeightNoise(scale=0.01).start(handed(bundle, seed=1, horizon=16))
    for _ in range(16):
        run.step()
    name = next(n for n, w in before.items() if w.ndim == 2)
    moved = float((weights(bundle.model)[name] - before[name]).norm() / before[name].norm())
    assert moved == pytest.approx(0.04, rel=0.05)


def test_an_edit_ends_when_its_work_is_done(new_bundle):
    bundle = new_bundle()
    seen = []
    run = EditRun(bundle, lambda model, step: {"step": float(seen.append(step) or step)}, edits=2)
    logs = [run.step() for _ in range(3)]
    assert [log and log.figures for log in logs] == [{"step": 0.0}, {"step": 1.0}, None]
    assert seen == [0, 1] and logs[0].loss is None and logs[0].grad_norm is None
    assert EditRun(bundle, lambda model, step: {}, edits=0).step() is None


def test_an_edit_resumes_with_its_weights(new_bundle):
    def edit(model, step):
        next(model.parameters()).add_(step + 1.0)
        return {}

    first = EditRun(new_bundle(), edit, edits=3)
    first.step()
    state = first.state_dict()
    again = EditRun(new_bundle(), edit, edits=3)
    again.load_state_dict(
        {"taken": 1, "weights": {n: w.clone() for n, w in state["weights"].items()}}
    )
    for run in (first, again):
        while run.step() is not None:
            pass
    close(weights(first.model().model), weights(again.model().model), rtol=0)
