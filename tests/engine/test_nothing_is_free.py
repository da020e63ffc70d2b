"""What could be computed without being counted: torch.func, compiled code, gradients of few inputs;
and a budget in FLOPs that one step exceeds.
"""

import os
import sys

import pytest
import torch
from torch.func import functional_call, grad, jvp, vmap
from torch.utils.flop_counter import FlopCounterMode

from helpers.cell_runs import run, two_measures, work
from helpers.metering import batch_of, metered, trained
from titer.engine.meter import DYNAMO, Meter
from titer.errors import RunError
from titer.methods.attacks.full_sft import FullSFT
from titer.records.record import Cost


@pytest.fixture
def model(new_bundle):
    model = trained(new_bundle())
    model.set_attn_implementation("eager")  # other kernels know no vmap
    return model


@pytest.fixture
def batch(new_bundle, harm):
    return batch_of(new_bundle(), harm[:6])


def per_example(model, batch):
    weights = {k: v.detach() for k, v in model.named_parameters()}

    def loss(weights, ids_T):
        given = {"input_ids": ids_T[None], "labels": ids_T[None], "use_cache": False}
        return functional_call(model, weights, (), given).loss

    return vmap(grad(loss), in_dims=(None, 0))(weights, batch.input_BT)


def test_a_batch_that_modules_do_not_see_is_refused(model, batch):
    with pytest.raises(RunError, match="vmap") as caught:
        metered(lambda: per_example(model, batch))
    assert "exact_flops" in caught.value.expected

    def along(ids_BTD):
        return model(inputs_embeds=ids_BTD, use_cache=False).logits

    at = model.get_input_embeddings()(batch.input_BT).detach()
    with pytest.raises(RunError, match="jvp"):
        metered(lambda: jvp(along, (at,), (torch.ones_like(at),)))


def test_counted_operation_by_operation_it_is_allowed(model, batch):
    meter = Meter(exact=True)
    with meter.charging("step"):
        per_example(model, batch)
    with FlopCounterMode(display=False) as torchs:
        per_example(model, batch)
    assert meter.cost().flops == torchs.get_total_flops() > 0


@pytest.mark.parametrize("which", ["lm_head", "embedding"])
def test_a_backward_pass_for_one_weight_costs_what_it_does(model, batch, which):
    weight = {
        "lm_head": model.lm_head.weight,
        "embedding": model.get_input_embeddings().weight,
    }[which]

    def step():
        out = model(batch.input_BT, batch.mask_BT, labels=batch.labels_BT, use_cache=False)
        out.loss.backward(inputs=[weight])

    with FlopCounterMode(display=False) as torchs:
        step()
    assert metered(step).flops == pytest.approx(torchs.get_total_flops(), rel=0.05)


def test_compiled_code_is_counted_as_plain_code(model, batch):
    plain = metered(lambda: model(batch.input_BT, batch.mask_BT))
    meter = Meter()
    compiled = torch.compile(model, backend="eager")
    with meter.charging("step"):
        compiled(batch.input_BT, batch.mask_BT)
    assert meter.cost().flops == plain.flops > 0
    del meter
    assert "torch._dynamo" not in sys.modules or DYNAMO not in os.environ


# -- budgets in FLOPs -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flops", "setup", "steps", "spent"),
    [
        (90.0, 0.0, 9, False),
        (91.0, 0.0, 9, True),
        (100.0, 0.0, 10, True),
        (95.0, 50.0, 9, False),
        (0.0, 0.0, 0, False),
        (100.0, 100.0, 0, True),
    ],
)
def test_a_budget_has_room_for_a_step_or_not(flops, setup, steps, spent):
    assert Cost(flops=flops, setup_flops=setup, steps=steps).spends(100.0) == spent


def test_no_step_is_taken_that_would_exceed_the_budget(new_bundle, pairs, harm):
    attack, measures = FullSFT(lr=1e-3, batch_size=8), two_measures(harm[120:136])
    one = run(work(attack, new_bundle(), pairs, steps=1)).record.cost.flops

    def record(budget):
        cell = work(attack, new_bundle(), pairs, measures, steps=9, probes=(0, 9), flops=budget)
        return run(cell).record

    assert record(3.9 * one).cost.flops <= 3.9 * one
    assert record(3.9 * one).cost.steps == 3
    assert record(0.5 * one).cost.steps == 1  # the first step's cost is not known before
