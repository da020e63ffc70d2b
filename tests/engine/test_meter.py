"""FLOPs against torch's own counter, everything else against counting by hand.

torch's counter knows plain ("eager") attention, but not the products inside the fused CPU kernel.
"""

import copy
import time
from contextlib import contextmanager

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from titer.data.encoding import collate, encode
from titer.data.tally import count_judge_calls, judge_calls
from titer.engine import meter as meter_module
from titer.engine.meter import Meter
from titer.methods.losses import response_ce
from titer.records.model import Cost


@pytest.fixture
def bundle(new_bundle):
    made = new_bundle()
    made.model.set_attn_implementation("eager")
    made.model.requires_grad_(True).train()
    return made


@pytest.fixture
def model(bundle):
    return bundle.model


@pytest.fixture
def batch(bundle, harm):
    return batch_of(bundle, harm[:8])


def batch_of(bundle, examples):
    """Every other answer is cut to one word: batches need padding."""
    rows = [
        encode(bundle.tokenizer, e, e.response.split()[0] if i % 2 else e.response, 32)
        for i, e in enumerate(examples)
    ]
    return collate(rows, bundle.tokenizer.pad_token_id, bundle.device)


def with_lora(model, **settings):
    config = {"r": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    return get_peft_model(model.requires_grad_(False), LoraConfig(**config | settings))


def metered(work, **settings):
    """What work() costs."""
    meter = Meter(**settings)
    with meter.charging("step"):
        work()
    return meter.cost()


def torch_flops(work):
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def both(work, **settings):
    """(titer's FLOPs, torch's) of work(), which is done twice."""
    return metered(work, **settings).flops, torch_flops(work)


def forward(model, batch, **more):
    return model(input_ids=batch.input_BT, attention_mask=batch.mask_BT, **more)


# -- FLOPs: what is trained -----------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 16])
def test_full_fine_tuning(bundle, harm, rows):
    batch = batch_of(bundle, harm[:rows])
    mine, torchs = both(lambda: response_ce(bundle.model, batch).backward())
    assert mine == torchs > 0


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_lora_on_all_linear_layers(model, batch, dropout):
    model = with_lora(model, lora_dropout=dropout)
    mine, torchs = both(lambda: response_ce(model, batch).backward())
    assert mine == torchs > 0


def test_lora_on_queries_and_values(model, batch):
    """In the lowest block the keys need no gradient, which the rule for attention overlooks."""
    model = with_lora(model, target_modules=["q_proj", "v_proj"])
    mine, torchs = both(lambda: response_ce(model, batch).backward())
    assert 1 <= mine / torchs < 1.02


def last_block(model):
    return model.model.layers[-1]


@pytest.mark.parametrize(
    "trained",
    [
        last_block,
        lambda model: last_block(model).mlp,
        lambda model: last_block(model).self_attn.o_proj,
        lambda model: model.lm_head,
    ],
)
def test_frozen_layers_below_the_lowest_trained_one_cost_their_forward_pass(model, batch, trained):
    trained(model.requires_grad_(False)).requires_grad_(True)
    mine, torchs = both(lambda: response_ce(model, batch).backward())
    assert mine == torchs > 0


def test_soft_prompt(model, batch):
    """Gradient to the embeddings only."""
    model.requires_grad_(False)
    prompt = torch.zeros(4, model.config.hidden_size, requires_grad=True)

    def step():
        text = model.get_input_embeddings()(batch.input_BT)
        rows = (prompt * 1.0).expand(len(text), -1, -1)
        model(inputs_embeds=torch.cat([rows, text], 1)).logits.mean().backward()

    mine, torchs = both(step)
    assert mine == torchs > 0


def test_a_perturbation_alone_is_asked_for_though_all_weights_are_trained(model, batch):
    """autograd then leaves the weights' gradients out, and so does the meter."""
    embedded = model.get_input_embeddings()(batch.input_BT).detach()
    shift = torch.zeros_like(embedded, requires_grad=True)

    def step():
        loss = model(inputs_embeds=embedded + shift).logits.mean()
        torch.autograd.grad(loss, shift)

    mine, torchs = both(step)
    assert mine == torchs > 0


@pytest.mark.parametrize("wanted", ["all", "the last block"])
def test_gradients_asked_for_by_name(model, batch, wanted):
    weights = list((model if wanted == "all" else last_block(model)).parameters())
    mine, torchs = both(lambda: torch.autograd.grad(response_ce(model, batch), weights))
    assert mine == torchs > 0


def test_weights_that_a_function_is_called_with(model, batch):
    """As in meta-learning: the gradient goes on through the weights of an inner step."""
    plain = dict(model.named_parameters())

    def step():
        moved = {n: p * 0.9 for n, p in plain.items()}
        given = {"input_ids": batch.input_BT, "use_cache": False}
        torch.func.functional_call(model, moved, kwargs=given).logits.mean().backward()

    mine, torchs = both(step)
    assert mine == torchs > 0


# -- FLOPs: what the loss reads, and further passes -----------------------------------------------


@pytest.mark.parametrize("layer", [1, -1])
def test_a_loss_on_hidden_states(model, batch, layer):
    def step():
        hidden = forward(model, batch, output_hidden_states=True).hidden_states
        hidden[layer].pow(2).mean().backward()

    mine, torchs = both(step)
    assert mine == torchs > 0


def test_a_model_without_its_head(model, batch):
    mine, torchs = both(lambda: forward(model.model, batch).last_hidden_state.mean().backward())
    assert mine == torchs > 0


def test_a_lens_on_every_layer(model, batch):
    def step():
        hidden = forward(model, batch, output_hidden_states=True).hidden_states
        sum(model.lm_head(model.model.norm(h)).logsumexp(-1).mean() for h in hidden).backward()

    mine, torchs = both(step)
    assert mine == torchs > 0


def test_a_frozen_reference_model_beside(model, batch):
    reference = copy.deepcopy(model).requires_grad_(False)

    def step():
        with torch.no_grad():
            wanted = forward(reference, batch).logits
        (forward(model, batch).logits - wanted).pow(2).mean().backward()

    cost, torchs = metered(step), torch_flops(step)
    assert cost.flops == torchs > 0
    assert cost.tokens == cost.forward_tokens == int(batch.mask_BT.sum())


def test_a_model_copied_on_the_way(model, batch):
    def step():
        copied = copy.deepcopy(model)
        response_ce(copied, batch).backward()
        response_ce(model, batch).backward()
        response_ce(copy.deepcopy(copied), batch)

    cost, torchs = metered(step), torch_flops(step)
    assert cost.flops == torchs > 0
    assert cost.examples == 3 * 8


@pytest.mark.parametrize(
    "settings", [{}, {"use_cache": False}, {"cache_implementation": "static"}, {"num_beams": 2}]
)
def test_sampling(model, batch, settings):
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = 0, None

    def sample():
        model.generate(
            batch.input_BT.flip(1),
            attention_mask=batch.mask_BT.flip(1),
            max_new_tokens=4,
            **settings,
        )

    mine, torchs = both(sample)
    assert mine == torchs > 0


def test_gradient_accumulation(model, batch):
    def step():
        for part in (slice(0, 2), slice(2, 6), slice(6, 8)):
            (response_ce(model, batch.rows(part)) / 3).backward()

    mine, torchs = both(step)
    assert mine == torchs > 0


# transformers 5 is about to give it another name.
@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_:FutureWarning")
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_activations_cost_a_second_forward_pass(model, batch, reentrant):
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    step = metered(lambda: response_ce(model, batch).backward())
    assert step.flops == torch_flops(lambda: response_ce(model, batch).backward())
    assert step.examples == 8
    model.gradient_checkpointing_disable()
    assert step.flops > metered(lambda: response_ce(model, batch).backward()).flops


def test_two_backward_passes_through_one_graph(model, batch):
    def step():
        logits = forward(model, batch).logits
        logits.mean().backward(retain_graph=True)
        logits.pow(2).mean().backward()

    mine, torchs = both(step)
    assert mine == torchs > 0


def test_a_pass_without_backward_costs_only_its_forward(model, batch):
    once = metered(lambda: response_ce(model, batch)).flops
    # All parameters are trained: backward is twice forward.
    assert 3 * once == metered(lambda: response_ce(model, batch).backward()).flops


def test_the_kernel_of_attention_makes_no_difference(model, batch):
    found = set()
    for kernel in ("eager", "sdpa"):
        model.set_attn_implementation(kernel)
        for exact in (False, True):
            found.add(metered(lambda: response_ce(model, batch).backward(), exact=exact).flops)
    assert len(found) == 1


# -- FLOPs: odd modules ---------------------------------------------------------------------------


class Packed(nn.Linear):
    """Two weights in a byte, as quantised layers have it."""

    def __init__(self):
        super().__init__(6, 4, bias=False)
        self.weight = nn.Parameter(torch.zeros(12, 1, dtype=torch.uint8), requires_grad=False)

    def forward(self, x):
        return x[..., :4] * 1.0


class PackedApart(nn.Module):
    in_features, out_features = 6, 4
    forward = Packed.forward


@pytest.mark.parametrize("kind", [Packed, PackedApart])
def test_packed_weights_count_by_their_features(kind):
    x = torch.randn(3, 5, 6, requires_grad=True)
    one = 2 * 6 * 4 * 15
    assert metered(lambda: kind()(x)).flops == one
    assert metered(lambda: kind()(x).sum().backward()).flops == 2 * one


class SortedExperts(nn.Module):
    """Rows come sorted, as many for each expert."""

    def __init__(self):
        super().__init__()
        self.up = nn.Parameter(torch.randn(3, 6, 4))
        self.down = nn.Parameter(torch.randn(3, 4, 6))

    def forward(self, x):
        return torch.bmm(torch.bmm(x.view(3, -1, 6), self.up), self.down).view(-1, 6)


@pytest.mark.parametrize("gradient", [True, False])
def test_experts_without_an_index(gradient):
    experts, x = SortedExperts(), torch.randn(12, 6, requires_grad=gradient)
    mine, torchs = both(lambda: experts(x * 1.0).sum().backward())
    assert mine == torchs > 0


class Positions(nn.Module):
    """Parameters of two and three dimensions that are added, not multiplied."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(5, 6))
        self.shift = nn.Parameter(torch.randn(1, 5, 6))

    def forward(self, x):
        return x + self.table + self.shift


@pytest.mark.parametrize(
    "module, x",
    [
        (Positions(), torch.randn(2, 5, 6)),
        (nn.Embedding(5, 6), torch.zeros(2, 5, dtype=torch.long)),
        (nn.LayerNorm((5, 6)), torch.randn(2, 5, 6)),
    ],
)
def test_what_multiplies_no_matrix_costs_nothing(module, x):
    assert metered(lambda: module(x).sum().backward()).flops == 0


@pytest.mark.parametrize(
    "layer, shape",
    [(nn.Conv1d(4, 6, 3, padding=1), (2, 4, 9)), (nn.Conv2d(4, 6, (3, 2), stride=2), (2, 4, 8, 9))],
)
def test_convolutions(layer, shape):
    x = torch.randn(shape, requires_grad=True)
    mine, torchs = both(lambda: layer(x * 1.0).sum().backward())
    assert mine == torchs > 0


# -- exact ----------------------------------------------------------------------------------------


def test_a_gradient_of_a_gradient_is_counted_exactly(model, batch):
    weights = list(model.parameters())

    def step():
        slopes = torch.autograd.grad(response_ce(model, batch), weights, create_graph=True)
        sum(s.pow(2).sum() for s in slopes).backward()

    cost = metered(step, exact=True)
    assert cost.flops == torch_flops(step) > metered(step).flops
    assert (cost.examples, cost.tokens) == (8, int(batch.mask_BT.sum()))


def test_exact_sees_products_outside_modules():
    x = torch.randn(4, 5)
    assert metered(lambda: x @ x.T, exact=True).flops == 2 * 4 * 4 * 5
    assert metered(lambda: x @ x.T).flops == 0


def test_exact_with_respect_to_what_a_module_was_given():
    """torch's counter, as it comes, fails here."""
    layer, x = nn.Linear(6, 4, bias=False), torch.randn(3, 6, requires_grad=True)
    found = metered(lambda: torch.autograd.grad(layer(x).sum(), x), exact=True)
    assert found.flops == 2 * 2 * 3 * 6 * 4


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
