"""Records that contradict themselves are not believed, though their checksum is right."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.stored import cell, reading, record
from titer.errors import RecordError
from titer.records.record import Cost, MeasureFacts, ProbeRecord, Reading
from titer.records.record_validation import contradiction
from titer.records.store import RunStore
from titer.study.cell import CellMethod
from titer.study.facts import MethodFacts


def at(*steps, readings=None):
    readings = readings or (reading(),)
    return tuple(ProbeRecord(step=s, cost=Cost(steps=s), readings=readings) for s in steps)


def with_reading(**changes):
    return record(probes=at(0, readings=(reading().model_copy(update=changes),)))


def test_an_honest_record_is_sound():
    assert contradiction(record()) == ""
    assert contradiction(record(probes=at(0, 2))) == ""
    assert contradiction(record(probes=at(0, readings=(reading(outcomes=(1.0, None)),)))) == ""
    assert contradiction(record(probes=())) == ""


@pytest.mark.parametrize(
    ("odd", "says"),
    [
        (lambda: with_reading(value=9.0), "not the mean"),
        (lambda: with_reading(value=0.0), "not the mean"),
        (lambda: with_reading(outcomes=(0.0, 0.0, 0.0)), "not the mean"),
        (lambda: with_reading(n=2), "3 outcomes for n = 2"),
        (lambda: with_reading(n=0, outcomes=()), "without finite outcomes"),
        (lambda: with_reading(outcomes=(1.0, None, 1.0)), "without finite outcomes"),
        (lambda: with_reading(outcomes=(0.5, 0.75, 0.75), value=2 / 3), "other than 0 and 1"),
        (lambda: record(probes=at(2, 0)), "do not increase"),
        (lambda: record(probes=at(0, 0)), "do not increase"),
        (lambda: record(probes=at(0, 1, 2)), "not to be read at step 1"),
    ],
)
def test_contradictions(odd, says, tmp_path):
    assert says in contradiction(odd())
    store = RunStore(tmp_path)
    store.cells.mkdir()
    store.write_record(odd())
    with pytest.raises(RecordError, match="contradicts itself"):
        store.record(odd().digest)


def test_a_run_stopped_between_probes_may_end_there():
    assert contradiction(record(probes=at(0, 1))) == ""  # a diverged run is read where it ended


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30))
def test_means_survive_the_rounding_of_outcomes(outcomes):
    made = Reading(
        label="harm",
        value=sum(outcomes) / len(outcomes),
        n=len(outcomes),
        se=None,
        outcomes=tuple(outcomes),
    )
    mean = {
        "harm": MeasureFacts(
            name="m", version=1, higher="worse", harm_construct="capability", scale="mean"
        )
    }
    stored = Reading.model_validate_json(made.model_dump_json())
    assert contradiction(record(measures=mean, probes=at(0, readings=(stored,)))) == ""


# -- steps, methods and budgets -------------------------------------------------------------------


EDIT = MethodFacts(
    kind="attack", name="prune", version=1, reference="r", cost="0", trains=False, role="reference"
)
PRUNE = CellMethod(kind="attack", name="prune", version=1, settings={})


def finished(**changes):
    """An edit of one step, its readings repeated up to the budget."""
    last = ProbeRecord(step=1, cost=Cost(steps=1, flops=3.0), readings=(reading(),))
    fields = {
        "cell": cell().model_copy(update={"method": PRUNE, "steps": 4, "probes": (0, 1, 2, 4)}),
        "outcome": "finished",
        "facts": EDIT,
        "probes": (
            ProbeRecord(step=0, cost=Cost(), readings=(reading(outcomes=(0.0, 0.0, 0.0)),)),
            *(last.model_copy(update={"step": step}) for step in (1, 2, 4)),
        ),
        "loss": (None,),
        "grad_norm": (None,),
        "cost": Cost(steps=1, flops=3.0),
        "figures": {"pruned": (17.0,)},
    }
    return record(**{**fields, **changes})


def declared(**changes):
    return EDIT.model_copy(update=changes)


def carried(step, **changes):
    """The record of `finished` with one of its probes changed."""
    probes = finished().probes
    return finished(
        probes=tuple(p.model_copy(update=changes) if p.step == step else p for p in probes)
    )


def spent(steps: int, flops: float):
    """A run with a budget of 100 FLOPs in at most 8 steps that ended after so many."""
    end = ProbeRecord(step=steps, cost=Cost(steps=steps, flops=flops), readings=(reading(),))
    at = cell().model_copy(update={"steps": 8, "flops": 100.0, "probes": (0, 4, 8)})
    return record(cell=at, probes=(*at_start(), end), cost=end.cost, loss=())


def at_start():
    return (ProbeRecord(step=0, cost=Cost(), readings=(reading(),)),)


def test_what_a_run_of_today_looks_like_is_sound():
    assert contradiction(finished()) == ""
    # It may end where no probe was planned: after three steps.
    read = [p.model_copy(update={"cost": Cost(steps=min(p.step, 3))}) for p in at(0, 1, 2, 3, 4)]
    three = {"cost": Cost(steps=3), "loss": (None,) * 3, "grad_norm": (None,) * 3, "figures": {}}
    assert contradiction(finished(probes=tuple(read), **three)) == ""
    # A step that was not finite, and one that has no loss.
    logs = {"loss": (0.5, None, None), "grad_norm": (1.0, None, 2.0), "nonfinite": (1,)}
    assert contradiction(record(outcome="diverged", **logs)) == ""
    assert contradiction(spent(4, 100.0)) == contradiction(spent(8, 50.0)) == ""
    assert contradiction(spent(6, 120.0)) == ""  # read where the FLOPs were spent


@pytest.mark.parametrize(
    ("odd", "says"),
    [
        (lambda: record(figures={"part": (0.0,)}), "part has 1 places for 2 steps"),
        (lambda: record(figures={"part": ()}), "part has no place for any of 2 steps"),
        (lambda: record(grad_norm=(1.0,)), "grad_norm has 1 places for 2 steps"),
        (lambda: record(nonfinite=(2,)), "not among 2 steps"),
        (lambda: record(nonfinite=(-1,)), "not among 2 steps"),
        (lambda: record(nonfinite=(1, 1)), "not among 2 steps in order"),
        (lambda: record(nonfinite=(0,)), "step 0 was not finite, but its loss"),
        (
            lambda: record(loss=(1.0, 1.0), grad_norm=(1.0, None), nonfinite=(0, 1)),
            "step 0 was not finite, but its loss",
        ),
        (lambda: finished(probes=finished().probes[:3]), "not repeated at step 4"),
        (lambda: carried(4, readings=(reading(outcomes=(0.0, 0.0, 0.0)),)), "step 4 differs"),
        (lambda: carried(2, cost=Cost(steps=2, flops=9.0)), "step 2 differs"),
        (lambda: finished(facts=declared(name="quantize")), "facts of the attack quantize"),
        (lambda: finished(facts=declared(version=2)), "facts of the attack prune v2"),
        (lambda: record(facts=EDIT), "no method was run"),
        (lambda: spent(4, 60.0), "took 4 of 8 steps and spent 60 of 100 FLOPs"),
    ],
)
def test_contradictions_about_steps_methods_and_budgets(odd, says):
    assert says in contradiction(odd())
