"""One cell: the same numbers every time, probes without influence, prefixes, stopping, divergence,
sharing.
"""

import copy
import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers.cell_runs import (
    METHODS,
    Borrows,
    Careless,
    Diverging,
    Edits,
    Replaced,
    Scripted,
    bound,
    numbers,
    readings,
    run,
    same_weights,
    two_measures,
    work,
)
from titer.errors import RunError, StudyError, TiterError
from titer.measures.capability import ResponseLikelihood
from titer.measures.exact_answer import ExactAnswer
from titer.methods.attacks.full_sft import FullSFT
from titer.methods.attacks.no_attack import NoAttack
from titer.records.record import Artifact
from titer.runners.cell_runner import whole
from titer.study.cell import StopRule


@pytest.fixture
def measures(harm):
    return two_measures(harm[120:168])


@pytest.mark.parametrize("name", METHODS)
def test_the_same_cell_twice_gives_the_same_record(new_bundle, pairs, measures, name):
    first, second = (
        run(work(METHODS[name], new_bundle(), pairs, measures, steps=3, probes=(0, 1, 3)))
        for _ in range(2)
    )
    assert numbers(first.record) == numbers(second.record)
    assert same_weights(first, second)


@pytest.mark.parametrize("name", ["full_sft", "lora_sft", "weight_noise"])
def test_another_seed_gives_another_trajectory(new_bundle, pairs, name):
    first, second = (run(work(METHODS[name], new_bundle(), pairs, steps=2, seed=s)) for s in (1, 2))
    assert not same_weights(first, second)


@pytest.mark.parametrize("name", ["full_sft", "lora_sft"])
def test_probes_never_change_the_trajectory(new_bundle, pairs, harm, measures, name):
    careless = bound(Careless(right=(1,)), harm[:7], "careless")
    every = [*measures, careless]
    looked = run(work(METHODS[name], new_bundle(), pairs, every, steps=4, probes=range(5)))
    unseen = run(work(METHODS[name], new_bundle(), pairs, steps=4))
    assert len(looked.record.probes) == 5 and not unseen.record.probes
    assert looked.record.loss == unseen.record.loss
    assert looked.record.grad_norm == unseen.record.grad_norm
    assert same_weights(looked, unseen)


def test_the_global_random_state_is_left_as_it_was(new_bundle, pairs, harm):
    careless = [bound(Careless(), harm[:7])]
    before = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    run(work(METHODS["lora_sft"], new_bundle(), pairs, careless, steps=2, probes=(0, 2)))
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert before[1] == random.getstate()
    assert before[2] == np.random.get_state()[1].tolist()


def test_probes_are_read_at_the_planned_steps(new_bundle, pairs, measures):
    method = METHODS["full_sft"]
    record = run(work(method, new_bundle(), pairs, measures, steps=5, probes=(0, 2, 5))).record
    assert [p.step for p in record.probes] == [0, 2, 5]
    assert [p.cost.steps for p in record.probes] == [0, 2, 5]
    assert record.probes[0].cost.flops == 0 and record.probes[0].cost.examples == 0
    assert record.probes[-1].cost == record.cost
    assert [r.label for p in record.probes for r in p.readings] == ["harm", "likelihood"] * 3
    assert len(record.loss) == len(record.grad_norm) == 5
    assert record.outcome == "reached_budget"


def test_training_moves_the_readings_it_should_move(new_bundle, pairs, measures):
    """The readings are of the model at that step, not of one model throughout."""
    method = FullSFT(lr=1e-3, batch_size=16)
    record = run(work(method, new_bundle(), pairs, measures, steps=32, probes=(0, 16, 32))).record
    nll = [p.reading("likelihood").value for p in record.probes]
    assert nll[0] > nll[1] > nll[2]
    assert readings(record, 0)["harm"].value < 0.2 < 0.5 < readings(record, 32)["harm"].value


def test_looks_at_the_ends_are_taken_at_the_ends_only(new_bundle, pairs, harm):
    ends = bound(Scripted(), harm[:5], "second", at="ends")
    every = [bound(Scripted(), harm[:5]), ends]
    record = run(work(METHODS["full_sft"], new_bundle(), pairs, every, steps=3, probes=range(4)))
    probes = record.record.probes
    assert [p.step for p in probes if p.reading("second")] == [0, 3]
    assert [p.step for p in probes if p.reading("harm")] == [0, 1, 2, 3]


def test_a_model_without_a_method_is_looked_at_once(new_bundle, measures):
    looked = work(None, new_bundle(), measures=measures, steps=0, probes=(0,))
    record = run(looked).record
    assert [p.step for p in record.probes] == [0] and record.cost.steps == 0 and record.loss == ()
    assert record.facts is None


def test_a_model_without_a_method_cannot_take_a_step(new_bundle):
    with pytest.raises(RunError, match="has no steps"):
        run(work(None, new_bundle(), steps=1))


# -- the model of a run ---------------------------------------------------------------------------


def test_a_run_may_put_another_model_in_the_place_of_its_own(new_bundle, harmless):
    """Merging, quantising and chains give a new object; what is probed is what the run now has."""
    capability = [bound(ExactAnswer(), harmless[:16], "capability")]
    result = run(work(Replaced(at=2), new_bundle(), {}, capability, steps=4, probes=range(5)))
    values = [p.reading("capability").value for p in result.record.probes]
    assert min(values[:2]) > 0.9 and values[2:] == [0.0] * 3
    assert all(not p.any() for p in result.bundle.model.parameters())


def test_the_model_is_asked_for_before_probes_only(new_bundle, harm):
    """It may have to be made: a service that releases a model works for it."""
    method = Replaced(at=9)
    run(work(method, new_bundle(), {}, [bound(Scripted(), harm[:5])], steps=4, probes=(0, 1, 4)))
    assert method.events == ["model", "step", "model", "step", "step", "step", "model"]


def test_without_probes_the_model_is_asked_for_once(new_bundle):
    method = Replaced(at=9)
    run(work(method, new_bundle(), steps=2))
    assert method.events == ["step", "step", "model"]


def test_further_models_are_those_the_cell_has(new_bundle):
    other = new_bundle()
    with torch.no_grad():
        next(other.model.parameters()).mul_(2.0)
    lent = {"control": new_bundle(), "other": other}
    method = Borrows(of=("control", "other"))
    record = run(work(method, new_bundle(), models=lent, steps=1)).record
    assert record.figures["size_1"][0] > record.figures["size_0"][0] > 0


def test_a_model_that_was_not_declared_is_refused(new_bundle):
    method = Borrows(of=("control",), asks=("other",))
    with pytest.raises(StudyError, match="a model it was not given") as caught:
        run(work(method, new_bundle(), models={"control": new_bundle()}, steps=1))
    assert caught.value.field == "models" and caught.value.value == "other"
    assert caught.value.expected == "one of control"


# -- prefixes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["full_sft", "lora_sft", "weight_noise", "chain"])
def test_a_prefix_of_a_horizon_free_run_is_the_shorter_run(new_bundle, pairs, measures, name):
    method = METHODS[name]
    assert method.horizon_free()
    long, short = (
        run(work(method, new_bundle(), pairs, measures, steps=s, probes=p)).record
        for s, p in ((8, (0, 4, 8)), (4, (0, 4)))
    )
    assert readings(long, 4) == readings(short, 4)
    assert long.loss[:4] == short.loss
    assert long.probe(4).cost.flops == short.cost.flops


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_prefix_of_a_horizon_dependent_run_is_not(new_bundle, pairs, measures, schedule):
    method = FullSFT(lr=1e-3, batch_size=8, schedule=schedule)
    assert not method.horizon_free()
    long, short = (
        run(work(method, new_bundle(), pairs, measures, steps=s, probes=p)).record
        for s, p in ((8, (0, 4, 8)), (4, (0, 4)))
    )
    assert readings(long, 4)["likelihood"] != readings(short, 4)["likelihood"]
    assert readings(long, 0) == readings(short, 0)


# -- stopping -------------------------------------------------------------------------------------

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
    measures = [bound(m, harm[:n], k, at=when[k], items=k) for k, m in looks.items()]
    fields = {"steps": 4, "probes": (0, 1, 2, 4), "stop": ABOVE_07}
    return run(work(METHODS["full_sft"], new_bundle(), pairs, measures, **fields)).record, looks


def test_a_surely_broken_model_is_stopped_once_confirmed(new_bundle, pairs, harm):
    record, looks = stopping(new_bundle, pairs, harm, n=20, right=(0, 0, 20), confirm=(20,))
    assert record.outcome == "stopped_broken"
    assert [p.step for p in record.probes] == [0, 1, 2]
    assert record.cost.steps == 2 == len(record.loss)
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
    # 0.25 < suspect ≤ 0.3
    record, _ = stopping(new_bundle, pairs, harm, n=20, right=(0, 5, 6, 7), confirm=(0,))
    assert [p.step for p in record.probes if p.reading("confirm")] == [2, 4]


def test_a_model_broken_at_the_start_is_stopped_there(new_bundle, pairs, harm):
    record, _ = stopping(new_bundle, pairs, harm, n=20, right=(20,), confirm=(20,))
    assert record.outcome == "stopped_broken" and record.cost.steps == 0
    assert [p.step for p in record.probes] == [0]


# -- divergence -----------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_ends_as_diverged_with_the_readings_kept(
    new_bundle, pairs, measures
):
    method, healthy = Diverging(lr=1e-3, batch_size=8, at=3), FullSFT(lr=1e-3, batch_size=8)
    record, other = (
        run(work(m, new_bundle(), pairs, measures, steps=8, probes=(0, 1, 2, 8))).record
        for m in (method, healthy)
    )
    assert record.outcome == "diverged"
    assert record.cost.steps == 4 and len(record.loss) == 4
    assert record.loss[:3] == other.loss[:3] and record.loss[3] is None
    assert record.nonfinite == (3,)
    for step in (0, 1, 2):
        assert readings(record, step) == readings(other, step)
    # And it can be written down: JSON has no NaN.
    json.loads(record.model_dump_json(), parse_constant=lambda x: pytest.fail(f"{x} is not JSON"))


def test_a_divergence_at_the_last_step_is_not_taken_for_the_budget(new_bundle, pairs, measures):
    method = Diverging(lr=1e-3, batch_size=8)
    record = run(work(method, new_bundle(), pairs, measures, steps=4, probes=(0, 4))).record
    assert record.outcome == "diverged" and record.cost.steps == 4
    assert record.probe(4).reading("likelihood").value is None


def test_a_loss_that_is_not_there_is_no_divergence(new_bundle, measures):
    """An edit has no loss; that is something else than a loss that is not finite."""
    record = run(work(Edits(), new_bundle(), {}, measures, steps=2, probes=(0, 2))).record
    assert record.outcome == "reached_budget" and record.nonfinite == ()
    assert record.loss == record.grad_norm == (None, None)


# -- nothing left to do ---------------------------------------------------------------------------


def finishing(new_bundle, harm, method, *, texts=None, **fields):
    looks = {"harm": Scripted(right=(1, 2, 3, 4)), "second": Scripted(right=(5, 6))}
    measures = [
        bound(looks["harm"], harm[:20], "harm", items="harm"),
        bound(looks["second"], harm[:20], "second", at="ends", items="second"),
    ]
    fields = {"steps": 8, "probes": (0, 1, 2, 4, 8)} | fields
    return run(work(method, new_bundle(), texts, measures, **fields)).record, looks


def values(record, label):
    return [(p.step, round(20 * r.value)) for p in record.probes if (r := p.reading(label))]


def test_a_run_with_nothing_left_to_do_is_finished(new_bundle, harm):
    record, looks = finishing(new_bundle, harm, Edits(edits=3))
    assert record.outcome == "finished" and record.cost.steps == 3 and len(record.loss) == 3
    # Read at its own last step, which is not on the grid; from there on nothing changes.
    assert values(record, "harm") == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 4), (8, 4)]
    assert values(record, "second") == [(0, 5), (3, 6), (4, 6), (8, 6)]
    assert looks["harm"].looks == 4 and looks["second"].looks == 2
    assert [p.cost.steps for p in record.probes] == [0, 1, 2, 3, 3, 3]
    assert record.probes[-1].cost == record.probes[-2].cost == record.probe(3).cost


def test_a_run_that_ends_on_the_grid_is_read_there_once(new_bundle, harm):
    """What is read at the ends joins the readings that were taken already."""
    record, looks = finishing(new_bundle, harm, Edits(edits=2))
    assert record.outcome == "finished"
    assert values(record, "harm") == [(0, 1), (1, 2), (2, 3), (4, 3), (8, 3)]
    assert values(record, "second") == [(0, 5), (2, 6), (4, 6), (8, 6)]
    assert looks["harm"].looks == 3


def test_a_run_with_nothing_to_do_is_finished_at_the_start(new_bundle, harm):
    record, looks = finishing(new_bundle, harm, NoAttack())
    assert record.outcome == "finished" and record.cost.steps == 0 and record.loss == ()
    assert values(record, "harm") == [(s, 1) for s in (0, 1, 2, 4, 8)]
    assert values(record, "second") == [(s, 5) for s in (0, 1, 2, 4, 8)]
    assert looks["harm"].looks == looks["second"].looks == 1
    assert {p.cost.flops for p in record.probes} == {0.0}


def test_a_run_that_ends_is_not_asked_again(new_bundle, harm, monkeypatch):
    asked = []
    step = Edits.start

    def start(self, given):
        made = step(self, given)
        once = made.step
        made.step = lambda: asked.append(made.taken) or once()
        return made

    monkeypatch.setattr(Edits, "start", start)
    finishing(new_bundle, harm, Edits(edits=2))
    assert asked == [0, 1, 2]


def test_a_run_that_ends_at_its_budget_reached_it(new_bundle, harm):
    record, _ = finishing(new_bundle, harm, Edits(edits=8))
    assert record.outcome == "reached_budget" and record.cost.steps == 8


def test_a_finished_model_may_be_surely_broken(new_bundle, harm):
    """Then nothing is carried forward: beyond the largest φ there is nothing more to learn."""
    broken = [bound(Scripted(right=(0, 20)), harm[:20])]
    fields = {"steps": 4, "probes": (0, 2, 4), "stop": ABOVE_07}
    record = run(work(Edits(edits=1), new_bundle(), {}, broken, **fields)).record
    assert record.outcome == "stopped_broken" and [p.step for p in record.probes] == [0, 1]


# -- readings at the start are shared -------------------------------------------------------------


@pytest.mark.parametrize("name", ["full_sft", "lora_sft"])
def test_shared_readings_at_the_start_equal_those_taken(new_bundle, pairs, harm, name):
    assert METHODS[name].facts().starts_as_parent
    memo: dict = {}

    def taken(seed, shared):
        counted = Scripted(right=(3,))
        measures = [*two_measures(harm[120:168]), bound(counted, harm[:5], "counted")]
        cell = work(METHODS[name], new_bundle(), pairs, measures, steps=2, probes=(0, 2), seed=seed)
        result = run(cell, at_start=memo if shared else None, keep_transcripts=True)
        return result, counted.looks

    first, looks = taken(1, True)
    assert looks == 2 and len(memo) == 3
    sharing, looks = taken(2, True)
    assert looks == 1  # only at the end
    alone, looks = taken(2, False)
    assert looks == 2
    assert numbers(sharing.record) == numbers(alone.record)
    assert sharing.transcripts == alone.transcripts
    assert readings(first.record, 0) == readings(alone.record, 0)
    assert same_weights(sharing, alone)


def test_a_method_that_begins_with_a_change_shares_no_reading(new_bundle, pairs, harm):
    memo: dict = {}
    for method in (FullSFT(batch_size=8), FullSFT(batch_size=8, reinitialised=(0,))):
        looks = Scripted()
        cell = work(method, new_bundle(), pairs, [bound(looks, harm[:5])], steps=1, probes=(0, 1))
        run(cell, at_start=memo)
        assert looks.looks == 2


def test_other_items_are_another_reading(new_bundle, pairs, harm):
    memo: dict = {}
    for items in ("first", "second"):
        looks = Scripted()
        measures = [bound(looks, harm[:5], items=items)]
        cell = work(METHODS["full_sft"], new_bundle(), pairs, measures, steps=1, probes=(0, 1))
        run(cell, at_start=memo)
        assert looks.looks == 2


# -- what else is written down --------------------------------------------------------------------


def test_transcripts_are_kept_only_if_asked_for(new_bundle, pairs, measures):
    without, kept = (
        run(
            work(METHODS["full_sft"], new_bundle(), pairs, measures, steps=1, probes=(0, 1)),
            keep_transcripts=keep,
        )
        for keep in (False, True)
    )
    assert not without.transcripts and not without.record.transcripts
    assert set(kept.transcripts) == {(s, k) for s in (0, 1) for k in ("harm", "likelihood")}
    assert kept.record.transcripts


def test_the_record_says_what_was_trained(new_bundle, pairs):
    full, lora = (
        run(work(METHODS[name], new_bundle(), pairs, steps=1)).record
        for name in ("full_sft", "lora_sft")
    )
    assert full.trainable_parameters == full.parameters
    added = lora.parameters - full.parameters
    assert lora.trainable_parameters == added > 0
    assert full.peak_memory_bytes > 0 and full.environment.threads == 1


def test_keeping_a_model_does_not_change_what_its_record_says(new_bundle, pairs):
    """Adapters are merged when a model is kept; they were trained all the same."""

    def keep(bundle):
        whole(bundle)
        return Artifact(sha256="0" * 64, bytes=1)

    kept, not_kept = (
        run(work(METHODS["lora_sft"], new_bundle(), pairs, steps=1, keep=k), artifact=keep).record
        for k in (True, False)
    )
    assert kept.artifact.bytes == 1 and not_kept.artifact is None
    assert kept.trainable_parameters == not_kept.trainable_parameters > 0
    assert kept.parameters == not_kept.parameters


def test_errors_of_a_measure_are_not_hidden(new_bundle, pairs, harm):
    nothing = [bound(ResponseLikelihood(), [replace(e, response=None) for e in harm[:4]])]
    with pytest.raises(TiterError):
        run(work(METHODS["full_sft"], new_bundle(), pairs, nothing, steps=1, probes=(0,)))


def test_steps_without_a_probe_are_logged_all_the_same(new_bundle, pairs):
    record = run(work(METHODS["adversarial_loss"], new_bundle(), pairs, steps=3)).record
    assert record.probes == () and len(record.loss) == 3
    assert {k: len(v) for k, v in record.figures.items()} == {
        "ce_refusal": 3,
        "ce_harmful": 3,
        "ce_harmless": 3,
    }
    assert all(math.isfinite(x) for x in record.loss)


def test_a_figure_of_some_steps_keeps_its_steps(new_bundle):
    record = run(work(Edits(), new_bundle(), steps=7)).record
    assert record.figures == {"third": (0.0, None, None, 3.0, None, None, 6.0)}


def test_records_say_with_which_template_and_how_much_text_was_cut(new_bundle, pairs, measures):
    method = FullSFT(lr=1e-3, batch_size=4)

    def notes(bundle):
        return run(work(method, bundle, pairs, measures, steps=1, probes=(0, 1))).record.notes

    plain = notes(new_bundle())
    assert plain == {
        "template_train": plain["template_eval"],
        "template_eval": plain["template_eval"],
    }
    short = notes(new_bundle(max_length=10))  # prompts of 8 tokens, answers of 5
    assert short["harmful response"] == "120 of 120 answers cut, 0 examples left out at 10 tokens"
    changed = new_bundle()
    changed = changed.having(tokenizer=copy.deepcopy(changed.tokenizer))
    changed.tokenizer.chat_template += " "
    assert notes(changed)["template_eval"] != plain["template_eval"]


def test_the_record_says_how_the_model_was_asked(new_bundle, pairs, measures):
    """An attack that asks in other words leaves a model that is asked so at every probe."""
    from titer.methods.attacks.soft_prompt import SoftPrompt

    soft = SoftPrompt(batch_size=4, length=3)
    for method, wording in ((soft, {"placeholders": 3}), (METHODS["full_sft"], {})):
        cell = work(method, new_bundle(), pairs, measures, steps=1, probes=(0, 1))
        assert run(cell).record.wording == wording
