"""Cells of a fine-tuning service: it runs the customer's training, and hands out a model."""

import pytest

from helpers.cell_runs import (
    Dampens,
    Edits,
    Scripted,
    bound,
    numbers,
    readings,
    run,
    same_weights,
    two_measures,
    weights,
    work,
)
from titer.methods.attacks.full_sft import FullSFT
from titer.methods.method import ServiceDefense
from titer.methods.services.lisa import Lisa

SFT = FullSFT(lr=1e-3, batch_size=8)


@pytest.fixture
def measures(harm):
    return two_measures(harm[120:168])


def hosted(new_bundle, pairs, measures, host, **fields):
    fields = {"steps": 4, "probes": (0, 2, 4)} | fields
    own = {"harmful": pairs["harmful"][:32], "harmless": pairs["harmless"][:32]}
    return run(work(SFT, new_bundle(), pairs, measures, host=host, host_texts=own, **fields))


def alone(new_bundle, pairs, measures, **fields):
    fields = {"steps": 4, "probes": (0, 2, 4)} | fields
    return run(work(SFT, new_bundle(), pairs, measures, **fields))


def test_what_is_released_is_probed_and_training_goes_on_without_it(new_bundle, pairs, measures):
    """The losses are those of the unreleased weights, the readings those of the released ones."""
    host = Dampens(by=0.0)
    released = hosted(new_bundle, pairs, measures, host)
    trained = alone(new_bundle, pairs, measures)
    assert released.record.loss == trained.record.loss
    assert released.record.grad_norm == trained.record.grad_norm
    for step in (0, 2, 4):
        at_release, at_training = readings(released.record, step), readings(trained.record, step)
        assert at_release["harm"].value == 0.0
        assert at_release["likelihood"] != at_training["likelihood"]
    assert not any(w.any() for w in weights(released).values())
    assert host.released == 3  # at every probe, and not once more


def test_a_service_that_releases_what_was_trained_changes_nothing(new_bundle, pairs, measures):
    class Plain(ServiceDefense):
        """Runs what it is given."""

        name = "plain"
        reference = "test"

    released = hosted(new_bundle, pairs, measures, Plain())
    trained = alone(new_bundle, pairs, measures)
    assert released.record.probes[-1].readings == trained.record.probes[-1].readings
    assert same_weights(released, trained)


@pytest.mark.parametrize("first", ["hosted", "alone"])
def test_what_is_released_at_the_start_is_not_taken_for_the_model_itself(
    new_bundle, pairs, measures, first
):
    """Readings at step 0 are shared between cells of one model; a released model is another one."""
    memo: dict = {}

    def go(host):
        cell = work(SFT, new_bundle(), pairs, measures, steps=1, probes=(0, 1), host=host)
        return readings(run(cell, at_start=memo).record, 0)["likelihood"].value

    hosts = [Dampens(by=0.5), None]
    found = [go(h) for h in (hosts if first == "hosted" else hosts[::-1])]
    assert found[0] != found[1]


def test_the_service_is_given_the_defenders_text(new_bundle, pairs):
    """And the model that is being trained; the customer's text stays the customer's."""
    seen = []

    class Reads(ServiceDefense):
        """Notes what it is given."""

        name = "reads"
        reference = "test"

        def host(self, run, given):
            seen.append(given)
            return run

    own = {"harmful": pairs["harmful"][:3]}
    cell = work(SFT, new_bundle(), pairs, steps=1, host=Reads(), host_texts=own)
    run(cell)
    (given,) = seen
    assert given.text.examples("harmful") == tuple(own["harmful"])
    assert "harmless" not in given.text and given.reward is None
    assert given.model is cell.bundle and given.seed == 1 and given.horizon == 1


def test_the_steps_of_a_service_belong_to_the_run(new_bundle, pairs, measures):
    """But the budget counts the customer's."""
    host = Lisa(lr=1e-3, batch_size=8, alignment_steps=2, user_steps=2, rho=0.1)
    served = hosted(new_bundle, pairs, measures, host).record
    plain = alone(new_bundle, pairs, measures).record
    assert served.cost.steps == plain.cost.steps == 4 and len(served.loss) == 4
    assert served.loss != plain.loss
    # Two alignment steps (of two batches) before each of two phases.
    assert served.cost.examples == plain.cost.examples + 2 * 2 * 2 * 8
    assert served.facts.name == "full_sft"


def test_a_hosted_run_is_the_same_every_time(new_bundle, pairs, measures):
    host = Lisa(lr=1e-3, batch_size=8, alignment_steps=1, user_steps=2)
    first, second = (hosted(new_bundle, pairs, measures, host) for _ in range(2))
    assert numbers(first.record) == numbers(second.record) and same_weights(first, second)


def test_a_service_finishes_when_the_run_it_serves_does(new_bundle, harm):
    looks = bound(Scripted(right=(1, 2, 3)), harm[:5])
    host = Dampens(by=1.0)
    record = run(work(Edits(edits=1), new_bundle(), {}, [looks], steps=4, probes=(0, 4), host=host))
    assert record.record.outcome == "finished"
    assert [(p.step, p.reading("harm").value) for p in record.record.probes] == [
        (0, 0.2),
        (1, 0.4),
        (4, 0.4),
    ]
