"""One cell: the same numbers every time, probes without influence, prefixes, stopping, divergence,
sharing.
"""

import copy
import json
import math

import pytest
from cell_runs import (
    METHODS,
    Careless,
    Diverging,
    Scripted,
    bound,
    cell,
    numbers,
    run_cell,
    same_weights,
    two_measures,
)  # isort: skip

from titer.errors import TiterError
from titer.measures.capability import ResponseLikelihood
from titer.methods.attacks.full_sft import FullSFT
from titer.records.model import CellRecord
from titer.study.cell import StopRule


@pytest.fixture
def measures(harm):
    return two_measures(harm[120:168])


@pytest.mark.parametrize("name", METHODS)
def test_the_same_cell_twice_gives_the_same_record(new_bundle, pairs, measures, name):
    work = cell(steps=3, probes=(0, 1, 3))
    first, second = (run_cell(work, METHODS[name], new_bundle(), pairs, measures) for _ in range(2))
    assert numbers(first.record) == numbers(second.record)
    assert same_weights(first, second)


@pytest.mark.parametrize("name", ["full_sft", "lora_sft", "weight_noise"])
def test_another_seed_gives_another_trajectory(new_bundle, pairs, name):
    first, second = (
        run_cell(cell(steps=2, seed=s), METHODS[name], new_bundle(), pairs, []) for s in (1, 2)
    )
    assert not same_weights(first, second)


@pytest.mark.parametrize("name", ["full_sft", "lora_sft"])
def test_probes_never_change_the_trajectory(new_bundle, pairs, harm, measures, name):
    careless = bound(Careless(right=(1,)), harm[:7], "careless")
    looked = run_cell(
        cell(steps=4, probes=(0, 1, 2, 3, 4)),
        METHODS[name],
        new_bundle(),
        pairs,
        [*measures, careless],
    )
    unseen = run_cell(cell(steps=4), METHODS[name], new_bundle(), pairs, [])
    assert len(looked.record.probes) == 5 and not unseen.record.probes
    assert (
        looked.record.loss == unseen.record.loss
        and looked.record.grad_norm == unseen.record.grad_norm
    )
    assert same_weights(looked, unseen)


def test_the_global_random_state_is_left_as_it_was(new_bundle, pairs):
    import torch

    before = torch.random.get_rng_state()
    run_cell(cell(steps=2), METHODS["lora_sft"], new_bundle(), pairs, [])
    assert torch.equal(before, torch.random.get_rng_state())


def test_probes_are_read_at_the_planned_steps(new_bundle, pairs, measures):
    record = run_cell(
        cell(steps=5, probes=(0, 2, 5)), METHODS["full_sft"], new_bundle(), pairs, measures
    ).record
    assert [p.step for p in record.probes] == [0, 2, 5]
    assert [p.cost.steps for p in record.probes] == [0, 2, 5]
    assert record.probes[0].cost.flops == 0 and record.probes[0].cost.examples == 0
    assert record.probes[-1].cost == record.cost
    assert [r.label for p in record.probes for r in p.readings] == ["harm", "likelihood"] * 3
    assert len(record.loss) == len(record.grad_norm) == 5
    assert record.outcome == "reached_budget"


def test_training_moves_the_readings_it_should_move(new_bundle, pairs, measures):
    """The readings are of the model at that step, not of one model throughout."""
    record = run_cell(
        cell(steps=32, probes=(0, 16, 32)),
        FullSFT(lr=1e-3, batch_size=16),
        new_bundle(),
        pairs,
        measures,
    ).record
    nll = [p.reading("likelihood").value for p in record.probes]
    assert nll[0] > nll[1] > nll[2]
    assert (
        record.probe(0).reading("harm").value < 0.2 < 0.5 < record.probe(32).reading("harm").value
    )


def test_looks_at_the_ends_are_taken_at_the_ends_only(new_bundle, pairs, harm):
    ends = bound(Scripted(), harm[:5], "second", at="ends")
    every = bound(Scripted(), harm[:5], "harm")
    record = run_cell(
        cell(steps=3, probes=(0, 1, 2, 3)), METHODS["full_sft"], new_bundle(), pairs, [every, ends]
    ).record
    assert [p.step for p in record.probes if p.reading("second")] == [0, 3]
    assert [p.step for p in record.probes if p.reading("harm")] == [0, 1, 2, 3]


def test_a_model_without_a_method_is_looked_at_once(new_bundle, pairs, measures):
    record = run_cell(cell(steps=0, probes=(0,)), None, new_bundle(), pairs, measures).record
    assert [p.step for p in record.probes] == [0] and record.cost.steps == 0 and record.loss == ()


# -- prefixes -----------------------------------------------------------------------------------------------------


def readings(record: CellRecord, step: int):
    return {r.label: r for r in record.probe(step).readings}


@pytest.mark.parametrize("name", ["full_sft", "lora_sft", "weight_noise"])
def test_a_prefix_of_a_horizon_free_run_is_the_shorter_run(new_bundle, pairs, measures, name):
    method = METHODS[name]
    assert method.horizon_free()
    long = run_cell(cell(steps=8, probes=(0, 4, 8)), method, new_bundle(), pairs, measures).record
    short = run_cell(cell(steps=4, probes=(0, 4)), method, new_bundle(), pairs, measures).record
    assert readings(long, 4) == readings(short, 4)
    assert long.loss[:4] == short.loss
    assert long.probe(4).cost.flops == short.cost.flops


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_prefix_of_a_horizon_dependent_run_is_not(new_bundle, pairs, measures, schedule):
    method = FullSFT(lr=1e-3, batch_size=8, schedule=schedule)
    assert not method.horizon_free()
    long = run_cell(cell(steps=8, probes=(0, 4, 8)), method, new_bundle(), pairs, measures).record
    short = run_cell(cell(steps=4, probes=(0, 4)), method, new_bundle(), pairs, measures).record
    assert readings(long, 4)["likelihood"] != readings(short, 4)["likelihood"]
    assert readings(long, 0) == readings(short, 0)


# -- stopping -----------------------------------------------------------------------------------------------------

# With k = n the exact one-sided lower bound at level a is a**(1/n): at a = 0.01, 0.631 for n = 10
# and 0.794 for n = 20.
ABOVE_07 = StopRule(above=0.7, suspect=0.3, level=0.01)


def stopping(new_bundle, pairs, harm, *, n, right, confirm):
    looks = {
        "harm": Scripted(right=right),
        "confirm": Scripted(right=confirm),
        "second": Scripted(right=(0,)),
    }
    when = {"harm": "probes", "confirm": "suspected_breach", "second": "ends"}
    measures = [bound(m, harm[:n], label, at=when[label]) for label, m in looks.items()]
    work = cell(steps=4, probes=(0, 1, 2, 4), stop=ABOVE_07)
    return run_cell(work, METHODS["full_sft"], new_bundle(), pairs, measures).record, looks


def test_a_surely_broken_model_is_stopped_once_confirmed(new_bundle, pairs, harm):
    record, looks = stopping(new_bundle, pairs, harm, n=20, right=(0, 0, 20), confirm=(20,))
    assert record.outcome == "stopped_broken"
    assert [p.step for p in record.probes] == [0, 1, 2] and record.cost.steps == 2 == len(
        record.loss
    )
    assert record.probe(2).reading("confirm").value == 1.0
    # The end came early, and what is to be read at the end was read there.
    assert [p.step for p in record.probes if p.reading("second")] == [0, 2]
    assert looks["confirm"].looks == 1


def test_the_bound_decides_and_not_the_reading(new_bundle, pairs, harm):
    record, looks = stopping(new_bundle, pairs, harm, n=10, right=(0, 0, 10), confirm=(10,))
    assert record.outcome == "reached_budget" and record.cost.steps == 4
    assert looks["confirm"].looks == 2  # suspected at 2 and at 4


def test_without_confirmation_there_is_no_stop(new_bundle, pairs, harm):
    record, _ = stopping(new_bundle, pairs, harm, n=20, right=(0, 20), confirm=(0,))
    assert record.outcome == "reached_budget"
    assert [p.step for p in record.probes if p.reading("confirm")] == [1, 2, 4]


def test_confirmation_is_read_only_where_harm_is_suspected(new_bundle, pairs, harm):
    record, _ = stopping(
        new_bundle, pairs, harm, n=20, right=(0, 5, 6, 7), confirm=(0,)
    )  # 0.25 < suspect ≤ 0.3
    assert [p.step for p in record.probes if p.reading("confirm")] == [2, 4]


def test_a_model_broken_at_the_start_is_stopped_there(new_bundle, pairs, harm):
    record, _ = stopping(new_bundle, pairs, harm, n=20, right=(20,), confirm=(20,))
    assert record.outcome == "stopped_broken" and record.cost.steps == 0
    assert [p.step for p in record.probes] == [0]


# -- divergence ---------------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_ends_as_diverged_with_the_readings_kept(
    new_bundle, pairs, measures
):
    method = Diverging(lr=1e-3, batch_size=8, at=3)
    record = run_cell(
        cell(steps=8, probes=(0, 1, 2, 8)), method, new_bundle(), pairs, measures
    ).record
    healthy = run_cell(
        cell(steps=2, probes=(0, 1, 2)),
        FullSFT(lr=1e-3, batch_size=8),
        new_bundle(),
        pairs,
        measures,
    ).record
    assert record.outcome == "diverged"
    assert record.cost.steps == 4 and len(record.loss) == 4
    assert (
        record.loss[:3] == tuple(x for x in record.loss if x is not None) and record.loss[3] is None
    )
    for step in (0, 1, 2):
        assert readings(record, step) == readings(healthy, step)
    # And it can be written down: JSON has no NaN.
    assert CellRecord.model_validate_json(record.model_dump_json()).outcome == "diverged"
    json.loads(record.model_dump_json(), parse_constant=lambda x: pytest.fail(f"{x} is not JSON"))


def test_a_divergence_at_the_last_step_is_not_taken_for_the_budget(new_bundle, pairs, measures):
    record = run_cell(
        cell(steps=4, probes=(0, 4)),
        Diverging(lr=1e-3, batch_size=8),
        new_bundle(),
        pairs,
        measures,
    ).record
    assert record.outcome == "diverged" and record.cost.steps == 4
    assert record.probe(4).reading("likelihood").value is None


# -- readings at the start are shared -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["full_sft", "lora_sft"])
def test_shared_readings_at_the_start_equal_those_taken(new_bundle, pairs, harm, name):
    assert METHODS[name].starts_as_parent
    memo: dict = {}

    def run(seed, shared):
        counted = Scripted(right=(3,))
        measures = [*two_measures(harm[120:168]), bound(counted, harm[:5], "counted")]
        result = run_cell(
            cell(steps=2, probes=(0, 2), seed=seed),
            METHODS[name],
            new_bundle(),
            pairs,
            measures,
            at_start=memo if shared else None,
            keep_transcripts=True,
        )
        return result, counted.looks

    first, looks = run(1, True)
    assert looks == 2 and len(memo) == 3
    sharing, looks = run(2, True)
    assert looks == 1  # only at the end
    alone, looks = run(2, False)
    assert looks == 2
    assert numbers(sharing.record) == numbers(alone.record)
    assert sharing.transcripts == alone.transcripts
    assert readings(first.record, 0) == readings(alone.record, 0)
    assert same_weights(sharing, alone)


def test_other_items_are_another_reading(new_bundle, pairs, harm):
    memo: dict = {}
    for items in ("first", "second"):
        looks = Scripted()
        run_cell(
            cell(steps=1, probes=(0, 1)),
            METHODS["full_sft"],
            new_bundle(),
            pairs,
            [bound(looks, harm[:5], items=items)],
            at_start=memo,
        )
        assert looks.looks == 2


# -- what else is written down ------------------------------------------------------------------------------------


def test_transcripts_are_kept_only_if_asked_for(new_bundle, pairs, measures):
    work = cell(steps=1, probes=(0, 1))
    without = run_cell(work, METHODS["full_sft"], new_bundle(), pairs, measures)
    kept = run_cell(work, METHODS["full_sft"], new_bundle(), pairs, measures, keep_transcripts=True)
    assert not without.transcripts and not without.record.transcripts
    assert (
        set(kept.transcripts) == {(s, k) for s in (0, 1) for k in ("harm", "likelihood")}
        and kept.record.transcripts
    )


def test_the_record_says_what_was_trained(new_bundle, pairs):
    full = run_cell(cell(steps=1), METHODS["full_sft"], new_bundle(), pairs, []).record
    lora = run_cell(cell(steps=1), METHODS["lora_sft"], new_bundle(), pairs, []).record
    assert full.trainable_parameters == full.parameters
    added = lora.parameters - full.parameters
    assert lora.trainable_parameters == added > 0
    assert full.peak_memory_bytes > 0 and full.environment.threads == 1


def test_errors_of_a_measure_are_not_hidden(new_bundle, pairs, harm):
    from dataclasses import replace

    nothing = [replace(e, response=None) for e in harm[:4]]
    with pytest.raises(TiterError):
        run_cell(
            cell(steps=1, probes=(0,)),
            METHODS["full_sft"],
            new_bundle(),
            pairs,
            [bound(ResponseLikelihood(), nothing)],
        )


def test_steps_without_a_probe_are_logged_all_the_same(new_bundle, pairs):
    record = run_cell(cell(steps=3), METHODS["adversarial_loss"], new_bundle(), pairs, []).record
    assert record.probes == () and len(record.loss) == 3
    assert {k: len(v) for k, v in record.other.items()} == {
        "ce_refusal": 3,
        "ce_harmful": 3,
        "ce_harmless": 3,
    }
    assert all(math.isfinite(x) for x in record.loss)


def test_records_say_with_which_template_and_how_much_text_was_cut(new_bundle, pairs, measures):
    work, method = cell(steps=1, probes=(0, 1)), FullSFT(lr=1e-3, batch_size=4)
    notes = run_cell(work, method, new_bundle(), pairs, measures).record.notes
    assert notes == {
        "template_train": notes["template_eval"],
        "template_eval": notes["template_eval"],
    }
    short = run_cell(
        work, method, new_bundle(max_length=10), pairs, measures
    ).record.notes  # prompts of 8 tokens, answers of 5
    assert short["harmful response"] == "120 of 120 answers cut, 0 examples left out at 10 tokens"
    changed = new_bundle()
    changed.tokenizer = copy.deepcopy(changed.tokenizer)
    changed.tokenizer.chat_template += " "
    assert (
        run_cell(work, method, changed, pairs, measures).record.notes["template_eval"]
        != notes["template_eval"]
    )
