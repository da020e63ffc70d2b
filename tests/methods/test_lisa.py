"""Lisa against its two loops written out, phase by phase."""

import copy

import pytest
import torch

from helpers.by_hand import ce, close, handed, same, weights
from titer.engine.checkpoint import pack, unpack
from titer.errors import StudyError
from titer.methods.attacks.chain import Chain
from titer.methods.attacks.full_sft import FullSFT
from titer.methods.attacks.lora_sft import LoraSFT
from titer.methods.attacks.prune import Prune
from titer.methods.attacks.soft_prompt import SoftPrompt
from titer.methods.attacks.weight_noise import WeightNoise
from titer.methods.runs import schedule_factor
from titer.methods.services.lisa import Lisa

N, FREE = 4, 1e9
"""Rows of a batch, which hold every example; a gradient norm that is never clipped."""


@pytest.fixture
def uneven(uneven):
    return {slot: examples[:N] for slot, examples in uneven.items()}


def hosted(lisa, attack, bundle, texts, **changes):
    """The attacker's run on the harmful pairs, as the service runs it with its own text."""
    theirs = handed(bundle, harmful=texts["harmful"], **changes)
    run = attack.start(theirs)
    return lisa.host(run, handed(run.model(), **texts, **changes))


def sgd_by_hand(bundle, texts, *, rho, alignment, user, steps, lr_service, lr_user, retain):
    """Algorithm 1 with plain gradient steps; losses of the customer's steps, weights after each."""
    model = bundle.model
    parameters = list(model.parameters())
    losses, states = [], []
    other = [p.detach().clone() for p in parameters]

    def move(loss, anchor, lr):
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for p, g, a in zip(parameters, gradients, anchor, strict=True):
                p -= lr * (g + rho * (p - a))

    for step in range(steps):
        if step % user == 0:
            here = [p.detach().clone() for p in parameters]
            for _ in range(alignment):
                wanted = ce(bundle, texts["harmful"], "refusal")
                if retain:
                    wanted = wanted + retain * ce(bundle, texts["harmless"], "response")
                move(wanted, here, lr_service)
            other = [p.detach().clone() for p in parameters]
        loss = ce(bundle, texts["harmful"], "response")
        losses.append(loss.item())
        move(loss, other, lr_user)
        states.append(weights(model))
    return losses, states


@pytest.mark.parametrize(("rho", "retain"), [(0.0, 1.0), (3.0, 0.5), (20.0, 0.0)])
def test_the_loops_by_hand(new_bundle, uneven, rho, retain):
    bundle, plain = new_bundle(), new_bundle()
    lisa = Lisa(
        lr=1e-3,
        batch_size=N,
        optimizer="sgd",
        clip_norm=FREE,
        alignment_steps=2,
        user_steps=3,
        rho=rho,
        retain=retain,
    )
    attack = FullSFT(lr=2e-3, batch_size=N, optimizer="sgd", clip_norm=FREE)
    run = hosted(lisa, attack, bundle, uneven)
    losses, states = sgd_by_hand(
        plain,
        uneven,
        rho=rho,
        alignment=2,
        user=3,
        steps=5,
        lr_service=1e-3,
        lr_user=2e-3,
        retain=retain,
    )
    started = weights(new_bundle().model)
    for loss, state in zip(losses, states, strict=True):
        log = run.step()
        now = weights(run.model().model)
        close(
            {n: now[n] - started[n] for n in now},
            {n: state[n] - started[n] for n in state},
            rtol=2e-3,
        )
        assert log.loss == pytest.approx(loss, rel=1e-3)


def test_without_rho_it_is_plain_alternation(new_bundle, uneven):
    """Bit for bit two runs that take turns, each with an optimizer of its own."""
    settings = {"lr": 1e-3, "batch_size": 4}
    lisa = Lisa(**settings, rho=0.0, alignment_steps=2, user_steps=3)
    run = hosted(lisa, FullSFT(**settings), new_bundle(), uneven)
    logs = [run.step() for _ in range(7)]

    bundle = new_bundle()
    user = FullSFT(**settings).start(handed(bundle, harmful=uneven["harmful"]))
    service = lisa.minimise(bundle, lisa.objective(handed(bundle, **uneven)), horizon=8)
    for step in range(7):
        if step % 3 == 0:
            for _ in range(2):
                service.step()
        assert user.step().loss == logs[step].loss
    assert same(weights(bundle.model), weights(run.model().model))


def test_the_pull_is_rho_times_the_distance(new_bundle, uneven):
    """One customer step further from where the service stopped, with and without the pull."""
    moved = {}
    for rho in (0.0, 5.0):
        run = hosted(
            Lisa(lr=1e-4, batch_size=N, alignment_steps=1, user_steps=9, rho=rho),
            FullSFT(lr=1e-2, batch_size=N, optimizer="sgd", clip_norm=FREE),
            new_bundle(),
            uneven,
        )
        states = []
        for _ in range(2):
            run.step()
            states.append(weights(run.model().model))
        moved[rho] = states
    # the first step starts at the anchor, where there is no pull
    close(moved[5.0][0], moved[0.0][0], rtol=1e-6)
    # w2 − w2' = lr·rho·(w1 − anchor); the anchor is the same in both
    anchor = _anchor(new_bundle, uneven)
    pulled = {n: moved[0.0][1][n] - moved[5.0][1][n] for n in anchor}
    expected = {n: 1e-2 * 5.0 * (moved[0.0][0][n] - anchor[n]) for n in anchor}
    close(pulled, expected, rtol=0.02)


def _anchor(new_bundle, uneven):
    """Where the service's first alignment step ends."""
    lisa = Lisa(lr=1e-4, batch_size=N, alignment_steps=1, user_steps=9)
    bundle = new_bundle()
    lisa.minimise(bundle, lisa.objective(handed(bundle, **uneven)), horizon=8).step()
    return weights(bundle.model)


@pytest.mark.parametrize(
    ("attack", "at"),
    [
        pytest.param(FullSFT(lr=1e-3), 1, id="within the first phase"),
        pytest.param(FullSFT(lr=1e-3), 3, id="between two phases"),
        pytest.param(LoraSFT(lr=3e-3, rank=4), 4, id="an adapter within the second phase"),
    ],
)
def test_resuming_within_and_between_phases(new_bundle, uneven, attack, at):
    lisa = Lisa(lr=1e-3, batch_size=4, alignment_steps=2, user_steps=3)

    def begin():
        torch.manual_seed(0)
        return hosted(lisa, attack, new_bundle(), uneven)

    whole = begin()
    logs = [whole.step() for _ in range(6)]
    run = begin()
    for _ in range(at):
        run.step()
    skeleton, tensors = pack(run.state_dict())
    state = unpack(copy.deepcopy(skeleton), {n: t.clone() for n, t in tensors.items()})
    run.step()  # must not change what was stored
    again = begin()
    again.load_state_dict(state)
    assert [again.step() for _ in range(at, 6)] == logs[at:]
    assert same(weights(again.model().model), weights(whole.model().model))


def test_the_service_trains_what_the_customer_trains(new_bundle, uneven):
    """An adapter stays an adapter: the weights beside it do not move."""
    run = hosted(
        Lisa(lr=1e-3, batch_size=4, alignment_steps=1, user_steps=1),
        LoraSFT(lr=3e-3, rank=4),
        new_bundle(),
        uneven,
    )
    before = weights(run.model().model)
    for _ in range(2):
        run.step()
    now = weights(run.model().model)
    changed = {n for n in now if not torch.equal(now[n], before[n])}
    assert changed and all("lora_" in n for n in changed)


def test_the_budget_counts_the_customers_steps(new_bundle, uneven):
    """Five steps asked for are five of the customer's; the alignment before them comes on top."""
    calls = []
    run = hosted(
        Lisa(batch_size=N, alignment_steps=3, user_steps=2, retain=0.0),
        FullSFT(batch_size=N),
        new_bundle(),
        uneven,
    )
    run.model().model.register_forward_hook(lambda *a: calls.append(len(calls)))
    counts = []
    for _ in range(5):
        run.step()
        counts.append(len(calls))
    assert counts == [4, 5, 9, 10, 14]


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_its_own_schedule_ends_with_its_own_last_step(new_bundle, uneven, schedule):
    """4 steps of the customer in phases of 3: two phases of 5, so 10 steps of the service's own.
    Over the customer's 4 its rate would have come back up, or turned negative: climbing."""
    rates = []
    lisa = Lisa(batch_size=N, schedule=schedule, alignment_steps=5, user_steps=3, retain=0.0)
    run = hosted(lisa, FullSFT(batch_size=N), new_bundle(), uneven, horizon=4)
    step = run.own.optimizer.step
    run.own.optimizer.step = lambda lr: rates.append(lr) or step(lr)
    for _ in range(4):
        run.step()
    factors = [schedule_factor(schedule, s, warmup=0, horizon=10) for s in range(10)]
    assert rates == pytest.approx([2e-5 * f for f in factors]) and min(rates) > 0


def test_weights_without_a_gradient_are_pulled_too(new_bundle, uneven):
    """Weights that the customer's loss does not reach may have been moved by the other side."""
    bundle = new_bundle()
    user = FullSFT(batch_size=N).start(handed(bundle, harmful=uneven["harmful"]))
    head = torch.nn.Parameter(torch.tensor([2.0]))
    user.named["unused"] = head
    run = Lisa(batch_size=N, rho=3.0).host(user, handed(bundle, **uneven))
    with torch.no_grad():
        head += 0.5
    run.user.gradient(bundle.model, 0)
    assert head.grad.tolist() == [1.5]


@pytest.mark.parametrize(
    "attack",
    [WeightNoise(), Prune(score="magnitude"), SoftPrompt(), Chain(parts=({"attack": "full_sft"},))],
    ids=lambda a: a.name,
)
def test_what_is_no_training_of_weights_cannot_be_hosted(new_bundle, uneven, attack):
    with pytest.raises(StudyError, match="training of weights"):
        hosted(Lisa(), attack, new_bundle(), uneven)


def test_it_builds_no_model(new_bundle, uneven):
    with pytest.raises(StudyError, match="builds no model"):
        Lisa().start(handed(new_bundle(), **uneven))


def test_refusals_are_needed(new_bundle, uneven):
    bundle = new_bundle()
    run = FullSFT().start(handed(bundle, harmful=uneven["harmful"]))
    with pytest.raises(StudyError, match="given no text"):
        Lisa().host(run, handed(bundle, harmless=uneven["harmless"]))
