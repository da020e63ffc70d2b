"""A cell interrupted at any step and continued equals one that was not: losses, readings, cost,
weights.
"""

from types import SimpleNamespace

import pytest

from titer.engine import checkpoint
from titer.engine.checkpoint import Rolling
from titer.engine.run_cell import Stopped

from cell_runs import METHODS, cell, run_cell, numbers, same_weights, two_measures  # isort: skip

STEPS = 5
PROBES = (0, 1, 2, 4, 5)


@pytest.fixture
def go(new_bundle, pairs, harm, tmp_path):
    """go(name, interrupt=k): drive the cell on a fresh model, stopped before the step after k."""

    def run(name, *, interrupt=None, rolling=None, progress=None, **options):
        def stop(done, total):
            assert total == STEPS
            if progress:
                progress(done)
            if done == interrupt:
                raise Stopped

        return run_cell(
            cell(steps=STEPS, probes=PROBES),
            METHODS[name],
            new_bundle(),
            pairs,
            two_measures(harm[120:136]),
            rolling=rolling,
            progress=stop,
            **options,
        )

    return run


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
