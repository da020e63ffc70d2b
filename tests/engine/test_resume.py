"""A cell interrupted at any step and continued equals one that was not: losses, readings, cost,
weights.
"""

from types import SimpleNamespace

import pytest

from helpers.cell_runs import (
    METHODS,
    Dampens,
    Edits,
    ThinksFirst,
    numbers,
    run,
    same_weights,
    two_measures,
    work,
)
from titer.engine import checkpoint
from titer.engine.checkpoint import Rolling
from titer.engine.run_cell import Stopped

STEPS = 5
PROBES = (0, 1, 2, 4, 5)


@pytest.fixture
def go(new_bundle, pairs, harm):
    """go(method, interrupt=k): run the cell on a fresh model, stopped before the step after k."""

    def go(method, *, interrupt=None, rolling=None, progress=None, cell=None, **options):
        def stop(done, total):
            assert total == STEPS
            if progress:
                progress(done)
            if done == interrupt:
                raise Stopped

        method = METHODS[method] if isinstance(method, str) else method
        fields = {"steps": STEPS, "probes": PROBES} | (cell or {})
        made = work(method, new_bundle(), pairs, two_measures(harm[120:136]), **fields)
        return run(made, rolling=rolling, progress=stop, **options)

    return go


@pytest.fixture
def every_step(tmp_path):
    """A rolling checkpoint written at every step."""
    return lambda: Rolling(tmp_path / "work" / "cell", every_s=0.0)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("at", [2, 3])
def test_an_interrupted_cell_continues_to_the_same_record(go, every_step, name, at):
    whole = go(name, keep_transcripts=True)
    with pytest.raises(Stopped):
        go(name, interrupt=at, rolling=every_step(), keep_transcripts=True)
    steps = []
    continued = go(name, rolling=every_step(), progress=steps.append, keep_transcripts=True)
    assert steps[0] == at  # it did go on from there, and not from the beginning
    assert continued.record.resumed == 1 and whole.record.resumed == 0
    assert numbers(continued.record) == numbers(whole.record)
    assert continued.transcripts == whole.transcripts
    assert same_weights(continued, whole)


def test_a_cell_may_be_interrupted_again_and_again(go, every_step):
    whole = go("lora_sft")
    for at in (0, 1, 2, 3, 4):
        with pytest.raises(Stopped):
            go("lora_sft", interrupt=at, rolling=every_step())
    continued = go("lora_sft", rolling=every_step())
    assert continued.record.resumed == 5
    assert numbers(continued.record) == numbers(whole.record) and same_weights(continued, whole)


@pytest.mark.parametrize("at", [0, 2])
def test_the_setup_is_charged_once_however_often_a_cell_begins(go, every_step, at):
    method = ThinksFirst(lr=1e-3, batch_size=8)
    whole = go(method).record
    with pytest.raises(Stopped):
        go(method, interrupt=at, rolling=every_step())
    continued = go(method, rolling=every_step()).record
    assert continued.resumed == 1 and continued.cost.setup_flops == whole.cost.setup_flops > 0
    assert continued.cost.flops == whole.cost.flops


def test_a_run_that_ends_by_itself_may_be_interrupted(go, every_step):
    whole = go(Edits(edits=4)).record
    with pytest.raises(Stopped):
        go(Edits(edits=4), interrupt=3, rolling=every_step())
    continued = go(Edits(edits=4), rolling=every_step()).record
    assert continued.outcome == "finished" and continued.resumed == 1
    assert continued.figures == {"third": (0.0, None, None, 3.0)}
    assert numbers(continued) == numbers(whole)


def test_a_budget_in_flops_counts_what_was_spent_before_the_interruption(go, every_step):
    step = go("full_sft").record.cost.flops / STEPS
    budget = {"flops": 3.5 * step}
    whole = go("full_sft", cell=budget).record
    assert whole.cost.steps == 3
    with pytest.raises(Stopped):
        go("full_sft", interrupt=2, rolling=every_step(), cell=budget)
    assert numbers(go("full_sft", rolling=every_step(), cell=budget).record) == numbers(whole)


def test_a_hosted_cell_continues_from_what_was_trained(new_bundle, pairs, harm, every_step):
    """A checkpoint holds the customer's run, not what the service hands out."""

    def cell():
        host = Dampens(by=0.5)
        measures = two_measures(harm[120:136])
        fields = {"steps": STEPS, "probes": PROBES, "host": host}
        return work(METHODS["full_sft"], new_bundle(), pairs, measures, **fields)

    def stop(done, total):
        if done == 3:
            raise Stopped

    whole = run(cell())
    with pytest.raises(Stopped):
        run(cell(), rolling=every_step(), progress=stop)
    continued = run(cell(), rolling=every_step())
    assert continued.record.resumed == 1
    assert numbers(continued.record) == numbers(whole.record) and same_weights(continued, whole)


@pytest.mark.parametrize("file", ["state.json", "tensors.safetensors"])
def test_a_damaged_checkpoint_means_starting_over(go, every_step, file):
    whole = go("lora_sft")
    with pytest.raises(Stopped):
        go("lora_sft", interrupt=3, rolling=every_step())
    path = every_step().directory / file
    path.write_bytes(path.read_bytes()[:-5])
    steps = []
    again = go("lora_sft", rolling=every_step(), progress=steps.append)
    assert steps[0] == 0 and again.record.resumed == 0
    assert numbers(again.record) == numbers(whole.record) and same_weights(again, whole)


def test_a_checkpoint_is_written_no_oftener_than_asked_and_there_is_at_most_one(
    go, tmp_path, monkeypatch
):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(checkpoint, "time", SimpleNamespace(monotonic=lambda: clock.now))
    rolling = Rolling(tmp_path / "work" / "cell", every_s=2.0)
    written, beside = [], []
    write = rolling.write
    monkeypatch.setattr(rolling, "write", lambda state: written.append(clock.now) or write(state))

    def tick(done):
        beside.append(len(list((tmp_path / "work").glob("*"))))
        clock.now += 1.0  # every step takes a second

    go("full_sft", rolling=rolling, progress=tick)
    assert written == [2.0, 4.0]
    assert max(beside) == 1


def test_a_short_cell_writes_no_checkpoint(go, tmp_path):
    go("full_sft", rolling=Rolling(tmp_path / "work" / "cell"))
    assert not (tmp_path / "work").exists()
