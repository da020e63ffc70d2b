"""Bringing a study to its end: what is done, what is not done again, and what a failure leaves."""

import errno
import os
import shutil
from concurrent.futures import BrokenExecutor, Future
from contextlib import nullcontext

import pytest

import titer
from helpers.running import ALL, done, failing, files, numbers, purpose_of
from titer.cli.main import main
from titer.errors import BusyRunError, RunError, StorageError, StudyError, UsageError
from titer.records.store import RunStore
from titer.runners import execute

ALIGN, BEFORE = ("align", "", 0), ("stability", "before_alignment", 0)


# -- doing, and not doing again -------------------------------------------------------------------


def test_a_run_does_every_cell_and_leaves_no_half_made_weights(small_study, tmp_path, performed):
    store = titer.run(small_study(), tmp_path / "run")
    assert performed == ALL
    view = store.view()
    assert view.missing == 0 and view.problems == ()
    assert not store.work.exists()
    # Weights are kept of what the defender made, and of nothing else.
    ((building, _),) = [(p, r) for p in view.plan.cells for r in p.roles if r.purpose == "defense"]
    assert [p.name for p in store.models.iterdir()] == [building.digest]
    assert view.records[building.digest].artifact.bytes > 1e5


def test_a_finished_run_is_not_done_again(small_study, copied, performed):
    before = files(copied)
    titer.run(small_study(), copied)
    assert performed == [] and files(copied) == before


def test_progress_is_reported(small_study, tmp_path):
    told = []
    titer.run(small_study(), tmp_path / "run", report=lambda *a: told.append(a))
    assert [t[0] for t in told] == [
        "planned",
        "defense refusal 0",
        *(f"attack {c} full_sft {s}" for _, c, s in ALL[1:]),
    ]
    assert [t[1] for t in told] == list(range(6)) and {t[3] for t in told} == {5}
    assert (
        told[0][2] == 0
        and told[-1][2] == told[-1][4]
        and [t[2] for t in told] == sorted(t[2] for t in told)
    )


def test_a_caller_keeps_its_threads(small_study, tmp_path):
    import torch

    torch.set_num_threads(2)
    try:
        titer.run(small_study(), tmp_path / "run", stop_after=1, threads=1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("damage", [b"", b"{", None])
def test_a_damaged_record_alone_is_done_anew(small_study, copied, finished, performed, damage):
    store, before = RunStore(copied), files(copied)
    victim = next(p for p in store.plan().cells if purpose_of(p) == ("attack", "refusal", 1))
    path = store.cells / f"{victim.digest}.json"
    path.write_bytes(path.read_bytes()[:-100] if damage is None else damage)
    assert len(store.view().problems) == 1
    titer.run(small_study(), copied)
    assert performed == [("attack", "refusal", 1)]
    after = files(copied)
    assert {n: c for n, c in after.items() if n != path.name} == {
        n: c for n, c in before.items() if n != path.name
    }
    assert numbers(copied) == numbers(finished)


def test_weights_that_are_gone_are_made_anew_only_if_needed(
    small_study, copied, finished, performed
):
    store = RunStore(copied)
    shutil.rmtree(store.models)
    titer.run(small_study(), copied)
    assert performed == []
    victim = next(p for p in store.plan().cells if purpose_of(p) == ("attack", "refusal", 2))
    (store.cells / f"{victim.digest}.json").unlink()
    titer.run(small_study(), copied)
    assert performed == [("defense", "refusal", 0), ("attack", "refusal", 2)]
    assert numbers(copied) == numbers(finished)


def test_weights_that_were_changed_are_made_again(small_study, copied, finished):
    store = RunStore(copied)
    (weights,) = store.models.glob("*/model.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    victim = next(p for p in store.plan().cells if purpose_of(p) == ("attack", "refusal", 2))
    (store.cells / f"{victim.digest}.json").unlink()
    titer.run(small_study(), copied)
    assert numbers(copied) == numbers(finished)


def test_the_run_can_stop_after_so_many_cells(small_study, finished, tmp_path, performed):
    for cells in (1, 3):
        titer.run(small_study(), tmp_path / "run", stop_after=cells)
        assert len(done(tmp_path / "run")) == len(performed) == {1: 1, 3: 4}[cells]
    titer.run(small_study(), tmp_path / "run")
    assert performed == ALL
    assert numbers(tmp_path / "run") == numbers(finished)


def test_a_search_is_followed_by_its_confirmation(small_study, tmp_path, performed):
    attack = {"attack": "full_sft", "settings": {"batch_size": 16}, "search": {"lr": [1e-5, 1e-3]}}
    resistance = small_study().resistance.model_dump(mode="json")
    study = small_study(
        candidates=["none"],
        resistance=resistance
        | {"attacks": [attack], "budget": 16, "seeds": [1], "search_seeds": [11]},
    )
    store = titer.run(study, tmp_path / "run")
    assert performed == [("search", "none", 11)] * 2 + [("attack", "none", 1)]
    (entry,) = store.view().entries("attack")
    assert entry.role.point == {"lr": 1e-3}  # the other moves nothing within 16 steps
    assert store.plan().complete


# -- reuse ----------------------------------------------------------------------------------------


def test_reuse_takes_records_and_weights_over_and_computes_nothing(
    small_study, finished, tmp_path, performed
):
    store = titer.run(small_study(), tmp_path / "run", reuse=(finished,))
    assert performed == []
    assert {n: c[1] for n, c in files(store.root).items()} == {
        n: c[1] for n, c in files(finished).items()
    }
    assert sorted(p.name for p in store.models.rglob("*")) == sorted(
        p.name for p in RunStore(finished).models.rglob("*")
    )
    # And it is enough to go on from: a cell that starts from the weights can be done.
    victim = next(p for p in store.plan().cells if purpose_of(p) == ("attack", "refusal", 1))
    (store.cells / f"{victim.digest}.json").unlink()
    titer.run(small_study(), tmp_path / "run")
    assert performed == [("attack", "refusal", 1)]
    assert numbers(tmp_path / "run") == numbers(finished)


def test_a_larger_study_takes_over_what_fits(small_study, finished, tmp_path, performed):
    resistance = small_study().resistance.model_dump(mode="json") | {"seeds": [1, 2, 3]}
    titer.run(
        small_study(name="larger", resistance=resistance), tmp_path / "run", reuse=(finished,)
    )
    assert performed == [("attack", "none", 3), ("attack", "refusal", 3)]


def test_a_damaged_record_is_not_taken_over(small_study, copied, tmp_path, performed):
    path = next(iter(RunStore(copied).cells.glob("*.json")))
    path.write_text(path.read_text()[:-1])
    titer.run(small_study(), tmp_path / "run", reuse=(copied,))
    assert len(performed) == 1


@pytest.mark.parametrize("kind", ["missing", "file", "empty"])
def test_a_directory_without_a_run_cannot_be_reused(small_study, tmp_path, performed, kind):
    other = tmp_path / "other"
    {"missing": lambda: None, "file": lambda: other.write_text("x"), "empty": other.mkdir}[kind]()
    with pytest.raises(UsageError, match="no records to take over") as caught:
        titer.run(small_study(), tmp_path / "run", reuse=(other,))
    assert caught.value.value == str(other) and performed == [] and not (tmp_path / "run").exists()


def test_a_full_disk_while_taking_weights_over_is_told_readably(
    small_study, finished, tmp_path, monkeypatch
):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(execute.shutil, "copytree", full)
    with pytest.raises(StorageError, match="the disk is full"):
        titer.run(small_study(), tmp_path / "run", reuse=(finished,))


# -- failures -------------------------------------------------------------------------------------


def test_a_failing_cell_does_not_stop_the_others(small_study, tmp_path, monkeypatch):
    seen = failing(
        monkeypatch, lambda purpose, candidate, seed: (purpose, candidate) == ("attack", "none")
    )
    with pytest.raises(RunError, match="made to fail") as caught:
        titer.run(small_study(), tmp_path / "run")
    assert caught.value.value == "attack none 1"  # the first of two
    assert seen == ALL and done(tmp_path / "run") == set(ALL) - {
        ("attack", "none", 1),
        ("attack", "none", 2),
    }


def test_the_command_line_says_what_failed_and_returns_1(tmp_path, monkeypatch, capsys, study_file):
    failing(monkeypatch, lambda purpose, candidate, seed: seed == 1)
    assert main(["run", str(study_file), "--run", str(tmp_path / "run"), "--quiet"]) == 1
    assert "made to fail" in capsys.readouterr().err


def test_what_depends_on_a_lost_cell_is_not_tried(small_study, tmp_path, monkeypatch):
    """Alignment, defense, attack: a chain, of which the first link breaks."""
    align = {
        "method": {"name": "sft_refusal", "settings": {"batch_size": 16}},
        "data": {"harmful": "harm/defense"},
        "steps": 2,
    }
    seen = failing(monkeypatch, lambda purpose, *_: purpose == "align")
    with pytest.raises(RunError, match="made to fail"):
        titer.run(small_study(align=align), tmp_path / "run")
    assert seen == [ALIGN, BEFORE]


def test_what_does_not_depend_on_a_lost_cell_is_done(small_study, tmp_path, monkeypatch):
    seen = failing(monkeypatch, lambda purpose, *_: purpose == "defense")
    with pytest.raises(RunError):
        titer.run(small_study(), tmp_path / "run")
    assert seen == [c for c in ALL if c[:2] != ("attack", "refusal")]
    assert done(tmp_path / "run") == {("attack", "none", 1), ("attack", "none", 2)}
    monkeypatch.undo()
    titer.run(small_study(), tmp_path / "run")
    assert done(tmp_path / "run") == set(ALL)


# -- further models -------------------------------------------------------------------------------


@pytest.fixture
def compared(small_study, tmp_path, tiny):
    """A study that looks at a model from elsewhere beside the control, which it aligns itself: one
    cell needs two models, of which only the further one is made here.
    """
    from titer.assets.saving import save_model

    save_model(tiny.model, tiny.tokenizer, tmp_path / "model")
    align = {"method": "sft_refusal", "data": {"harmful": "harm/defense"}, "steps": 2}
    given = {"name": "given", "model": str(tmp_path / "model")}
    return small_study(align=align, candidates=["none", given])


LOOK = ("stability", "given", 0)


def test_a_cell_waits_for_every_model_it_needs(compared, tmp_path):
    from titer.data.pools import Pools
    from titer.engine.planning import plan

    cells = {purpose_of(p): p for p in plan(compared, Pools(compared), lambda digest: None).cells}
    align, look = cells[ALIGN], cells[LOOK]
    assert look.cell.parent is None and execute.made_by(look) == {align.digest}
    waiting = {p.digest: p for p in (look, align)}
    assert execute._ready(waiting, {}) is align
    assert execute._ready({look.digest: look}, {align.digest: Future()}) is None
    assert execute._ready({look.digest: look}, {}) is look


def test_what_needs_a_further_model_that_is_lost_is_not_tried(compared, tmp_path, monkeypatch):
    seen = failing(monkeypatch, lambda purpose, *_: purpose == "align")
    with pytest.raises(RunError, match="made to fail"):
        titer.run(compared, tmp_path / "run")
    assert seen == [ALIGN, BEFORE, ("attack", "given", 1), ("attack", "given", 2)]


def test_a_further_model_whose_weights_are_gone_is_made_anew(compared, tmp_path, performed):
    store = titer.run(compared, tmp_path / "run")
    before = numbers(store.root)
    look = next(p for p in store.plan().cells if purpose_of(p) == LOOK)
    assert store.record(look.digest).start.distance > 0
    shutil.rmtree(store.models)
    (store.cells / f"{look.digest}.json").unlink()
    performed.clear()
    titer.run(compared, tmp_path / "run")
    assert performed == [ALIGN, LOOK]
    assert numbers(store.root) == before


# -- a full disk, and whatever else may happen ----------------------------------------------------


def test_after_a_full_disk_nothing_more_is_started(small_study, tmp_path, monkeypatch):
    seen = failing(
        monkeypatch, lambda purpose, candidate, seed: seed == 1, StorageError("the disk is full")
    )
    with pytest.raises(StorageError, match="the disk is full"):
        titer.run(small_study(), tmp_path / "run")
    assert seen == ALL[:2]


def test_a_disk_that_fills_up_keeps_what_is_finished_and_the_work_begun(
    small_study, finished, tmp_path, monkeypatch
):
    """The record of the third cell cannot be written; its checkpoint stays, and the same command
    goes on from there.
    """
    real, count = os.fsync, []

    def fsync(handle):
        name = os.readlink(f"/proc/self/fd/{handle}")
        count.extend([1] if "/cells/" in name else [])
        if len(count) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(StorageError, match="the disk is full"):
        titer.run(small_study(), tmp_path / "run", checkpoint_every_s=0.0)
    store = RunStore(tmp_path / "run")
    assert done(store.root) == set(ALL[:2])
    (left,) = store.work.iterdir()
    monkeypatch.setattr(os, "fsync", real)
    titer.run(small_study(), tmp_path / "run")
    assert store.record(left.name).resumed == 1 and not store.work.exists()
    assert numbers(store.root) == numbers(finished)


@pytest.mark.parametrize(
    "error", [RuntimeError("odd shape"), KeyError("gone"), TypeError("not a tensor"), MemoryError()]
)
def test_whatever_a_method_raises_is_told_with_its_place(small_study, tmp_path, monkeypatch, error):
    def start(self, given):
        raise error

    monkeypatch.setattr("titer.methods.attacks.full_sft.FullSFT.start", start)
    with pytest.raises(RunError, match=type(error).__name__) as caught:
        titer.run(small_study(), tmp_path / "run")
    assert "test_execute.py:" in caught.value.problem and caught.value.__cause__ is error
    assert done(tmp_path / "run") == {("defense", "refusal", 0)}


class Broken:
    """An executor that loses a worker: `at` cells are done, the next one breaks it."""

    slots = 2

    def __init__(self, runner, at, *, when):
        self.runner, self.left, self.when = runner, at, when

    def submit(self, planned):
        future = Future()
        self.left -= 1
        if self.left >= 0:
            future.set_result(self.runner.perform(planned))
        elif self.when == "submitted" or self.left < -1:
            raise BrokenExecutor("the pool is broken")
        else:
            future.set_exception(BrokenExecutor("a process was terminated"))
        return future


@pytest.mark.parametrize("when", ["submitted", "at work"])
def test_a_worker_that_dies_is_told_readably(small_study, tmp_path, monkeypatch, when):
    """Which cells were at work is told, and what is finished stays."""
    monkeypatch.setattr(
        execute, "executor", lambda setup: nullcontext(Broken(setup.open(0), 2, when=when))
    )
    with pytest.raises(RunError, match="a worker process died") as caught:
        titer.run(small_study(), tmp_path / "run")
    assert "--workers" in caught.value.remedy and caught.value.exit_status == 1
    lost = set(caught.value.value.split(" or "))
    cells = RunStore(tmp_path / "run").plan().cells
    expected = ALL[2:3] if when == "submitted" else ALL[2:4]
    assert [purpose_of(p) for p in cells if p.digest in lost] == expected
    assert done(tmp_path / "run") == set(ALL[:2])


def test_a_device_that_is_not_there_is_refused_readably_whatever_the_workers(
    small_study, tmp_path, monkeypatch
):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(RunError, match="no CUDA device"):
        titer.run(
            small_study(runtime={"max_length": 32, "device": "cuda"}), tmp_path / "run", workers=2
        )


# -- one run at a time, one study in a directory --------------------------------------------------


@pytest.fixture
def study_file(small_study, tmp_path):
    import yaml

    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(small_study().model_dump(mode="json")))
    return path


def test_a_second_run_in_the_same_directory_is_refused(
    small_study, finished, copied, study_file, performed, capsys
):
    with RunStore(copied).locked():
        with pytest.raises(BusyRunError):
            titer.run(small_study(), copied)
        assert main(["run", str(study_file), "--run", str(copied), "--quiet"]) == 1
    assert "another titer process" in capsys.readouterr().err and performed == []
    assert files(copied).keys() == files(finished).keys()


def test_another_study_in_the_same_directory_is_refused(small_study, copied, performed):
    before = files(copied)
    with pytest.raises(UsageError, match="holds another study"):
        titer.run(small_study(name="another"), copied)
    assert performed == [] and files(copied) == before


def test_a_study_that_is_refused_leaves_the_directory_to_its_corrected_form(
    small_study, tmp_path, performed
):
    wrong = small_study(defense_data={"harmless": "harmless/defense"})
    with pytest.raises(StudyError):
        titer.run(wrong, tmp_path / "run")
    assert performed == []
    titer.run(small_study(), tmp_path / "run", stop_after=1)
    assert performed == ALL[:1]


def test_a_file_in_place_of_the_run_directory_is_told_readably(small_study, tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        titer.run(small_study(), tmp_path / "run")
