"""Records that contradict themselves are not believed, though their checksum is right."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from titer.errors import RecordError
from titer.records.model import Cost, MeasureFacts, ProbeRecord, Reading
from titer.records.sound import contradiction
from titer.records.store import RunStore

from stored import reading, record  # isort: skip


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
        (lambda: with_reading(outcomes=(0.5, 0.75, 0.75), value=2 / 3), "beside 0 and 1"),
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
