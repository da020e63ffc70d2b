"""FLOPs against torch's own counter; everything else against counting by hand."""

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode

from titer.data.encoding import collate, encode
from titer.engine.meter import Meter
from titer.methods.losses import response_ce
from titer.methods.method import MethodData
from titer.records.model import Cost

from cell_runs import METHODS, cell, run_cell, two_measures  # isort: skip


def uneven(examples):
    """The same questions, every other answer cut to one word: batches need padding."""
    return tuple(
        replace(e, response=e.response.split()[0]) if i % 2 else e for i, e in enumerate(examples)
    )


def batch_of(bundle, examples):
    examples = uneven(examples)
    rows = [encode(bundle.tokenizer, e, e.response, 32) for e in examples]
    return collate(rows, bundle.tokenizer.pad_token_id, bundle.device)


@pytest.fixture
def bundle(new_bundle):
    made = new_bundle()
    # torch counts the products of plain attention but not those inside the fused CPU kernel.
    made.model.set_attn_implementation("eager")
    made.model.requires_grad_(True).train()
    return made


def with_lora(model, **settings):
    # Trains only adapters, and all linear layers get one.
    model.requires_grad_(False)
    return get_peft_model(
        model, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM", **settings)
    )


def both_counts(model, work):
    """(titer's cost, torch's FLOPs) of work()."""
    meter = Meter(model)
    with FlopCounterMode(display=False) as counter:
        meter.start()
        work()
        meter.stop()
    meter.close()
    return meter.cost(), counter.get_total_flops()


@pytest.mark.parametrize("rows", [1, 16])
def test_full_fine_tuning_costs_exactly_what_torch_counts(bundle, harm, rows):
    batch = batch_of(bundle, harm[:rows])
    cost, torch_flops = both_counts(
        bundle.model, lambda: response_ce(bundle.model, batch).backward()
    )
    assert cost.flops == torch_flops > 0


def test_lora_costs_what_torch_counts_and_the_lowest_layer_it_skips(bundle, harm):
    batch = batch_of(bundle, harm[:8])
    config = bundle.model.config
    model = with_lora(bundle.model, lora_dropout=0.1)
    cost, torch_flops = both_counts(model, lambda: response_ce(model, batch).backward())
    # The documented formula counts the gradient with respect to the input of the very first
    # projections (q, k, v of layer 0 and their adapters' A); nothing below them is trained, so
    # autograd leaves it out. That, and no more.
    first = 3 * (config.hidden_size * config.hidden_size + 8 * config.hidden_size)
    assert config.num_key_value_heads == config.num_attention_heads
    assert cost.flops - torch_flops == 2 * first * batch.input_BT.numel()
    assert cost.flops / torch_flops < 1.05


def test_forward_only_work_costs_flops_but_shows_the_method_no_example(bundle, harm):
    batch = batch_of(bundle, harm[:8])

    def look():
        with torch.no_grad():
            response_ce(bundle.model, batch)

    cost, torch_flops = both_counts(bundle.model, look)
    assert cost.flops == torch_flops > 0
    assert (cost.examples, cost.tokens) == (0, 0)


def test_a_pass_without_backward_costs_only_its_forward(bundle, harm):
    batch = batch_of(bundle, harm[:8])
    forward, _ = both_counts(bundle.model, lambda: response_ce(bundle.model, batch))
    both, torch_flops = both_counts(
        bundle.model, lambda: response_ce(bundle.model, batch).backward()
    )
    assert (
        both.flops == torch_flops == 3 * forward.flops
    )  # all parameters are trained: backward is twice forward


def test_nothing_is_counted_while_the_meter_is_stopped(bundle, harm):
    batch = batch_of(bundle, harm[:4])
    meter = Meter(bundle.model, Cost(steps=3, examples=5, tokens=7, flops=11.0, seconds=13.0))
    response_ce(bundle.model, batch).backward()
    assert meter.cost() == Cost(steps=3, examples=5, tokens=7, flops=11.0, seconds=13.0)
    meter.start()
    meter.stop()
    meter.close()
    before = meter.cost()
    response_ce(bundle.model, batch)
    assert meter.cost() == before


@pytest.mark.parametrize(
    "name, batches", [("full_sft", 1), ("lora_sft", 1), ("sft_refusal", 2), ("adversarial_loss", 3)]
)
def test_steps_examples_and_tokens_are_exact(new_bundle, pairs, monkeypatch, name, batches):
    seen = []
    module = {"adversarial_loss": "titer.methods.defenses.adversarial_loss"}.get(
        name, "titer.methods.runs"
    )
    for place in {module, "titer.methods.runs"}:  # every batch any of the methods makes passes here
        monkeypatch.setattr(f"{place}.collate", lambda *a: seen.append(collate(*a)) or seen[-1])
    data = MethodData(
        harmful=uneven(pairs.harmful),
        harmless=() if name.endswith("_sft") else uneven(pairs.harmless),
    )
    cost = run_cell(cell(steps=3), METHODS[name], new_bundle(), data, []).record.cost
    assert len(seen) == 3 * batches
    assert cost.steps == 3
    assert cost.examples == 3 * batches * 8 == sum(b.input_BT.shape[0] for b in seen)
    assert cost.tokens == sum(int(b.mask_BT.sum()) for b in seen)
    assert cost.tokens < sum(
        b.input_BT.numel() for b in seen
    )  # padding there was, and it is not counted


def test_probes_are_not_counted(new_bundle, pairs, harm):
    def cost(probes):
        result = run_cell(
            cell(steps=4, probes=probes),
            METHODS["full_sft"],
            new_bundle(),
            pairs,
            two_measures(harm[120:168]),
        )
        return result.record.cost.model_copy(update={"seconds": 0.0})

    assert cost((0, 1, 2, 3, 4)) == cost(())


def test_an_edit_costs_no_flops(new_bundle, pairs):
    cost = run_cell(cell(steps=2), METHODS["weight_noise"], new_bundle(), pairs, []).record.cost
    assert (cost.steps, cost.examples, cost.tokens, cost.flops) == (2, 0, 0, 0.0)
    assert cost.seconds > 0
