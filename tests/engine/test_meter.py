"""What a meter counts beside FLOPs, against counting by hand; where it counts and where it does
not.
"""

import copy
import time
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from helpers.metering import batch_of, both, forward, last_block, metered, trained, with_lora
from titer.data.tally import count_judge_calls, judge_calls
from titer.engine import meter as meter_module
from titer.engine.meter import Meter
from titer.methods.losses import response_ce
from titer.records.record import Cost


@pytest.fixture
def bundle(new_bundle):
    return new_bundle()


@pytest.fixture
def model(bundle):
    return trained(bundle)


@pytest.fixture
def batch(bundle, harm):
    return batch_of(bundle, harm[:8])


# -- examples and tokens --------------------------------------------------------------------------


def counts(work):
    cost = metered(work)
    return cost.examples, cost.tokens, cost.forward_tokens


def test_padding_is_no_token(model, batch):
    real = int(batch.mask_BT.sum())
    assert real < batch.input_BT.numel()
    assert counts(lambda: forward(model, batch)) == (8, real, 0)
    assert counts(lambda: model(batch.input_BT, batch.mask_BT)) == (8, real, 0)
    assert counts(lambda: forward(with_lora(model), batch)) == (8, real, 0)


def test_without_a_mask_every_position_is_a_token(model, batch):
    everything = (8, batch.input_BT.numel(), 0)
    embedded = model.get_input_embeddings()(batch.input_BT).detach()
    square = torch.zeros(8, 1, *[batch.input_BT.shape[1]] * 2)
    assert counts(lambda: model(batch.input_BT)) == everything
    assert counts(lambda: model(inputs_embeds=embedded)) == everything
    assert counts(lambda: model(batch.input_BT, attention_mask=square)) == everything
    assert counts(lambda: model(inputs_embeds=embedded, attention_mask=batch.mask_BT)) == (
        8,
        int(batch.mask_BT.sum()),
        0,
    )


def test_passes_without_gradient_show_no_example(model, batch):
    def look():
        with torch.no_grad():
            forward(model, batch)

    assert counts(look) == (0, 0, int(batch.mask_BT.sum()))
    mine, torchs = both(look)
    assert mine == torchs > 0


def test_sampling_counts_the_prompt_once_and_then_one_token_a_row(model, batch):
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = 0, None
    given = {"attention_mask": batch.mask_BT.flip(1), "max_new_tokens": 4}
    found = counts(lambda: model.generate(batch.input_BT.flip(1), **given))
    assert found == (0, 0, int(batch.mask_BT.sum()) + 3 * 8)


# -- what is inside and what is not ---------------------------------------------------------------

SPENT = Cost(
    steps=3,
    examples=5,
    tokens=7,
    forward_tokens=9,
    flops=11.0,
    setup_flops=2.0,
    search_flops=4.0,
    judge_calls=6,
    seconds=13.0,
)


class Clock:
    now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(meter_module, "time", Clock())
    return meter_module.time


def timeless(cost):
    return cost.model_copy(update={"seconds": 0.0})


def test_nothing_outside_is_counted(model, batch):
    meter = Meter(SPENT)
    response_ce(model, batch).backward()
    assert meter.cost() == SPENT
    with meter.charging("step"):
        loss = response_ce(model, batch)
    before = meter.cost()
    loss.backward()
    count_judge_calls(1)
    assert meter.cost() == before


def test_a_meter_that_is_gone_leaves_nothing_behind(model, batch):
    """Modules are called as torch has it, and nothing hangs on them; copies bring nothing along."""
    call = nn.Module._call_impl
    meters = [Meter(), Meter(exact=True)]
    for meter in meters:
        with meter.charging("step"):
            response_ce(model, batch).backward()
    for part in copy.deepcopy(model).modules():
        assert not part._forward_hooks and not part._forward_pre_hooks and not part._backward_hooks
    del meter
    meters.pop()
    assert nn.Module._call_impl is not call
    meters.pop()
    assert nn.Module._call_impl is call


def test_a_cost_goes_on_from_what_was_spent(model, batch):
    once = metered(lambda: response_ce(model, batch))
    meter = Meter(SPENT)
    with meter.charging("step"):
        response_ce(model, batch)
    meter.steps += 1
    cost = meter.cost()
    assert timeless(cost) == timeless(SPENT).model_copy(
        update={
            "steps": 4,
            "examples": 5 + 8,
            "tokens": 7 + once.tokens,
            "flops": 11.0 + once.flops,
        }
    )


def test_setup_and_search_are_told_apart_and_included(model, batch):
    once = metered(lambda: response_ce(model, batch)).flops
    meter = Meter()
    for account, times in (("setup", 1), ("step", 2), ("search", 3)):
        with meter.charging(account):
            for _ in range(times):
                response_ce(model, batch)
    cost = meter.cost()
    assert (cost.setup_flops, cost.search_flops, cost.flops) == (once, 3 * once, 6 * once)
    assert cost.examples == 6 * 8


def test_a_backward_pass_is_charged_to_the_account_it_is_made_in(model, batch):
    once = metered(lambda: response_ce(model, batch)).flops
    meter = Meter()
    with meter.charging("setup"):
        loss = response_ce(model, batch)
    with meter.charging("step"):
        loss.backward()
    assert (meter.cost().setup_flops, meter.cost().flops) == (once, 3 * once)


@pytest.mark.parametrize("exact", [False, True])
def test_a_look_inside_a_block_sees_what_was_charged_so_far(model, batch, clock, exact):
    meter = Meter(exact=exact)
    with meter.charging("search"):
        response_ce(model, batch)
        clock.now += 2
        inside = meter.cost()
        clock.now += 1
    assert (inside.seconds, meter.cost().seconds) == (2, 3)
    assert timeless(meter.cost()) == timeless(inside)
    assert inside.search_flops == inside.flops > 0


def test_seconds_are_those_inside(clock):
    meter = Meter(SPENT)
    for _ in range(2):
        with meter.charging("step"):
            clock.now += 2
        clock.now += 100
    assert meter.cost().seconds == 13 + 4


def test_seconds_are_real():
    meter = Meter()
    with meter.charging("step"):
        time.sleep(0.02)
    assert meter.cost().seconds >= 0.02


def test_judge_calls_are_those_inside():
    meter = Meter()
    count_judge_calls(1)
    with meter.charging("step"):
        count_judge_calls(2)
    count_judge_calls(4)
    with meter.charging("search"):
        count_judge_calls(8)
    assert meter.cost().judge_calls == 10


def test_the_tally_of_judges_only_grows():
    before = judge_calls()
    count_judge_calls(3)
    count_judge_calls(0)
    assert judge_calls() == before + 3
    with pytest.raises(ValueError, match="-1"):
        count_judge_calls(-1)


@contextmanager
def interrupted(model, error):
    """The model's last block raises."""

    def fail(*args):
        raise error

    handle = last_block(model).mlp.register_forward_pre_hook(fail)
    with pytest.raises(type(error)):
        yield
    handle.remove()


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()])
@pytest.mark.parametrize("exact", [False, True])
def test_what_breaks_inside_breaks_no_count(model, batch, error, exact):
    once = metered(lambda: response_ce(model, batch), exact=exact)
    meter = Meter(exact=exact)
    with interrupted(model, error), meter.charging("step"):
        forward(model, batch)
    broken = meter.cost()
    assert (broken.examples, broken.tokens) == (0, 0) and 0 < broken.flops < once.flops
    with meter.charging("step"):
        with interrupted(model, error):
            forward(model, batch)
        response_ce(model, batch)
    cost = meter.cost()
    assert (cost.examples, cost.tokens) == (once.examples, once.tokens)
    assert cost.flops == 2 * broken.flops + once.flops


def test_a_meter_does_not_charge_inside_itself():
    meter = Meter()
    with meter.charging("step"):
        with pytest.raises(RuntimeError, match="already"), meter.charging("setup"):
            pass
        nn.Linear(2, 2)(torch.zeros(1, 2))
    assert meter.cost().flops == 8
    with meter.charging("step"):
        pass


@pytest.mark.parametrize("exact", [(False, False), (True, False), (False, True), (True, True)])
def test_of_two_meters_only_the_inner_one_counts(model, batch, clock, exact):
    once = metered(lambda: response_ce(model, batch).backward())
    outer, inner = (Meter(exact=e) for e in exact)
    with outer.charging("step"):
        clock.now += 1
        response_ce(model, batch).backward()
        with inner.charging("setup"):
            for _ in range(2):
                response_ce(model, batch).backward()
            count_judge_calls(5)
            clock.now += 2
        clock.now += 4
        count_judge_calls(1)
        response_ce(model, batch)
    assert inner.cost().flops == inner.cost().setup_flops == 2 * once.flops
    assert outer.cost().flops == once.flops + once.flops / 3
    assert (inner.cost().tokens, outer.cost().tokens) == (2 * once.tokens, 2 * once.tokens)
    assert (inner.cost().judge_calls, outer.cost().judge_calls) == (5, 1)
    assert (inner.cost().seconds, outer.cost().seconds) == (2, 5)


class Sentinel:
    gone = False

    def __del__(self):
        Sentinel.gone = True


def test_a_graph_that_nobody_holds_is_freed(model, batch):
    """The meter's hooks hang on the graph; were they to hold it, activations would pile up."""
    sentinel = Sentinel()
    with Meter().charging("step"):
        embedded = model.get_input_embeddings()(batch.input_BT)
        embedded.register_hook(lambda gradient, held=sentinel: None)
        logits = model(inputs_embeds=embedded, use_cache=False).logits
        del sentinel, embedded
        assert not Sentinel.gone
        del logits
        assert Sentinel.gone


def test_gradients_are_the_same_metered_or_not(model, batch):
    def gradients():
        model.zero_grad()
        response_ce(model, batch).backward()
        return [p.grad.clone() for p in model.parameters()]

    plain = gradients()
    with Meter().charging("step"):
        counted = gradients()
    assert all(map(torch.equal, plain, counted))
