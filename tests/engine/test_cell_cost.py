"""What a cell costs: steps, examples and tokens exact, setup charged; budgets in FLOPs."""

import copy
from dataclasses import replace

import pytest

from helpers.cell_runs import (
    METHODS,
    Around,
    Borrows,
    Scripted,
    ThinksFirst,
    bound,
    run,
    two_measures,
    work,
)
from titer.data import texts as module
from titer.data.encoding import collate
from titer.methods.attacks.full_sft import FullSFT
from titer.methods.losses import response_ce

SFT = FullSFT(lr=1e-3, batch_size=8)


def uneven(examples):
    """The same questions, every other answer cut to one word: batches need padding."""
    return tuple(
        replace(e, response=e.response.split()[0]) if i % 2 else e for i, e in enumerate(examples)
    )


def cost(method, bundle, texts=None, measures=(), **fields):
    return run(work(method, bundle, texts, measures, **fields)).record.cost


@pytest.mark.parametrize(
    "name, batches", [("full_sft", 1), ("lora_sft", 1), ("sft_refusal", 2), ("adversarial_loss", 3)]
)
def test_steps_examples_and_tokens_are_exact(new_bundle, pairs, monkeypatch, name, batches):
    seen = []
    # Every batch that any of the methods makes passes here.
    monkeypatch.setattr(module, "collate", lambda *a: seen.append(collate(*a)) or seen[-1])
    texts = {"harmful": uneven(pairs["harmful"])}
    if not name.endswith("_sft"):
        texts["harmless"] = uneven(pairs["harmless"])
    found = cost(METHODS[name], new_bundle(), texts, steps=3)
    assert len(seen) == 3 * batches
    assert found.steps == 3
    assert found.examples == 3 * batches * 8 == sum(b.input_BT.shape[0] for b in seen)
    assert found.tokens == sum(int(b.mask_BT.sum()) for b in seen)
    # Padding there was, and it is not counted.
    assert found.tokens < sum(b.input_BT.numel() for b in seen)


def test_probes_are_not_counted(new_bundle, pairs, harm):
    measures = two_measures(harm[120:168])
    often, never = (
        cost(SFT, new_bundle(), pairs, measures, steps=4, probes=p) for p in (range(5), ())
    )
    assert timeless(often) == timeless(never)


def timeless(found):
    """A cost without the seconds, which no two runs share."""
    return found.model_copy(update={"seconds": 0.0})


def test_an_edit_costs_no_flops(new_bundle, pairs):
    found = cost(METHODS["weight_noise"], new_bundle(), pairs, steps=2)
    assert (found.steps, found.examples, found.tokens, found.flops) == (2, 0, 0, 0.0)
    assert found.seconds > 0


# -- setup ----------------------------------------------------------------------------------------


def test_work_before_the_first_step_is_charged_as_setup(new_bundle, pairs, harm):
    measures = [bound(Scripted(), harm[:5])]
    fields = {"steps": 2, "probes": (0, 1, 2)}
    plain, setup = (
        run(work(m, new_bundle(), pairs, measures, **fields)).record
        for m in (SFT, ThinksFirst(lr=1e-3, batch_size=8))
    )
    assert plain.cost.setup_flops == 0 and plain.probe(0).cost.flops == 0
    spent = setup.probe(0).cost
    assert spent.setup_flops == spent.flops > 0 and spent.steps == 0
    # One pass more than two steps, of the same size.
    assert setup.cost.setup_flops == spent.setup_flops
    assert setup.cost.flops == plain.cost.flops + spent.setup_flops
    assert setup.cost.examples == plain.cost.examples + 8
    assert spent.seconds > 0


def test_the_defense_of_a_service_is_set_up_at_a_cost_too(new_bundle, pairs):
    from titer.methods.method import ServiceDefense

    class Prepares(ServiceDefense):
        """Reads its own text once before the customer's first step."""

        name = "prepares"
        reference = "test"

        def host(self, run, given):
            batches = given.text.stream("refusal", of="harmful", batch_size=4, seed=0)
            response_ce(given.model.model, batches.one(0)).backward()
            given.model.model.zero_grad(set_to_none=True)
            return run

    hosted = {"host": Prepares(), "host_texts": {"harmful": pairs["harmful"][:8]}}
    plain, found = (cost(SFT, new_bundle(), pairs, steps=1, **more) for more in ({}, hosted))
    assert found.setup_flops > 0 and found.flops == plain.flops + found.setup_flops


# -- copies and further models --------------------------------------------------------------------


def test_a_copy_of_the_model_made_within_a_step_costs_nothing(new_bundle, pairs):
    """A copy brings along whatever hangs on the modules it copies."""
    plain, copied = (
        cost(Around(lr=1e-3, batch_size=8).calling(before), new_bundle(), pairs, steps=3)
        for before in (lambda model: None, copy.deepcopy)
    )
    assert timeless(copied) == timeless(plain) and plain.flops > 0


def test_what_a_copy_does_is_charged_once(new_bundle, pairs, harm):
    bundle = new_bundle()
    batch = collate(
        [bundle.encode(e, e.response, 32) for e in harm[:4]],
        bundle.tokenizer.pad_token_id,
        bundle.device,
    )

    def through_a_copy(model):
        response_ce(copy.deepcopy(model), batch)

    def itself(model):
        response_ce(model, batch)

    once, copied = (
        cost(Around(lr=1e-3, batch_size=8).calling(before), new_bundle(), pairs, steps=2)
        for before in (itself, through_a_copy)
    )
    plain = cost(SFT, new_bundle(), pairs, steps=2)
    assert timeless(copied) == timeless(once)
    assert once.flops > plain.flops


def test_what_a_further_model_does_is_charged(new_bundle, pairs, harm):
    """A frozen reference costs its forward passes, whichever model they go through."""
    lent = new_bundle()
    batch = collate(
        [lent.encode(e, e.response, 32) for e in harm[:4]], lent.tokenizer.pad_token_id, lent.device
    )

    class Compares(Borrows):
        name = "compares"

        def start(self, given):
            made = super().start(given)
            control, edit = given.models.frozen("control"), made.edit

            def both(model, step):
                with control.reading() as frozen:
                    frozen(input_ids=batch.input_BT, attention_mask=batch.mask_BT)
                return edit(model, step)

            made.edit = both
            return made

    found = cost(Compares(), new_bundle(), models={"control": lent}, steps=2)
    assert found.flops > 0 and found.examples == found.tokens == 0
    assert found.forward_tokens == 2 * int(batch.mask_BT.sum())


# -- budgets in FLOPs -----------------------------------------------------------------------------


@pytest.fixture
def step_flops(new_bundle, harm):
    """What one step of full fine-tuning costs on text of which all rows are equally long."""
    return cost(SFT, new_bundle(), even(harm), steps=1).flops


def even(harm):
    return {"harmful": [harm[0]] * 16}


@pytest.mark.parametrize("budget, steps", [(0.5, 1), (1.0, 1), (2.5, 2), (3.0, 3), (3.999, 3)])
def test_a_budget_in_flops_ends_before_the_step_that_would_exceed_it(
    new_bundle, harm, step_flops, budget, steps
):
    looks = Scripted()
    cell = work(
        SFT,
        new_bundle(),
        even(harm),
        [bound(looks, harm[:5]), bound(Scripted(), harm[:5], "second", at="ends")],
        steps=8,
        probes=(0, 2, 8),
        flops=budget * step_flops,
    )
    record = run(cell).record
    assert record.outcome == "reached_budget"
    assert record.cost.steps == steps == len(record.loss)
    expected = sorted({0, 2, steps} if steps >= 2 else {0, steps})
    assert [p.step for p in record.probes] == expected and looks.looks == len(expected)
    assert record.probes[-1].cost == record.cost
    assert [p.step for p in record.probes if p.reading("second")] == [0, steps]


def test_steps_end_a_run_that_does_not_reach_its_flops(new_bundle, harm, step_flops):
    cell = work(SFT, new_bundle(), even(harm), steps=2, probes=(0, 2), flops=1e3 * step_flops)
    record = run(cell).record
    assert record.outcome == "reached_budget" and record.cost.steps == 2


def test_a_setup_may_use_the_budget_up(new_bundle, harm, step_flops):
    """The model is then read at step 0, and no step is taken."""
    cell = work(
        ThinksFirst(lr=1e-3, batch_size=8, passes=2),
        new_bundle(),
        even(harm),
        [bound(Scripted(right=(2,)), harm[:5])],
        steps=8,
        probes=(0, 8),
        flops=1.5 * step_flops,
    )
    record = run(cell).record
    assert record.outcome == "reached_budget" and record.cost.steps == 0
    assert [p.step for p in record.probes] == [0]
    assert record.probe(0).cost.flops == pytest.approx(2 * step_flops)
