"""What every executor does alike: the same records, failures told, nothing lost that was finished.

A further executor is a further row of EXECUTORS (and of APART, if its workers are processes of
their own).
"""

import time
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass, replace
from typing import Any

import pytest

from helpers.running import ALL, numbers_of, purpose_of
from titer.data.pools import Pools
from titer.engine.planning import plan
from titer.errors import RunError, TiterError
from titer.records.record import CellRecord
from titer.records.store import RunStore
from titer.runners.executors import InProcess, Pool, Setup, executor
from titer.runners.placement import place


def with_workers(count):
    def opened(setup: Setup):
        return executor(replace(setup, runtime=setup.runtime.model_copy(update={"workers": count})))

    return opened


EXECUTORS = {"in this process": with_workers(1), "pool of two": with_workers(2)}
"""name → function from a setup to a context with an executor."""
TRAINING = {"lr": 1e-3, "batch_size": 16}
APART = {"pool of two": EXECUTORS["pool of two"]}
"""Those that survive the death of a worker."""


def setup_of(study, root) -> tuple[Setup, list]:
    """What an executor is opened with, and the cells of the study in the order of its plan."""
    pools = Pools(study)
    cells = list(plan(study, pools, lambda digest: None).cells)
    RunStore(root).cells.mkdir(parents=True)
    return Setup(
        root=root,
        pools=pools,
        runtime=study.runtime,
        placement=place("cpu"),
        plugins=study.plugins,
    ), cells


@dataclass(frozen=True)
class Session:
    """What one executor did with a study of which some cells fail: how each one ended, and what
    was on the disk at that moment.
    """

    store: RunStore
    slots: int
    ended: dict[tuple, Any]
    """(purpose, candidate, attack, seed) → record or error."""
    stored: dict[tuple, CellRecord | None]


_sessions: dict[str, Session] = {}


@pytest.fixture(params=EXECUTORS)
def session(request, own_attack, tmp_path_factory):
    """One session of each executor, shared by the tests below: a pool takes seconds to open."""
    if request.param not in _sessions:
        root = tmp_path_factory.mktemp("session") / "run"
        study = own_attack("fails", TRAINING | {"at": [2]})
        _sessions[request.param] = _run(EXECUTORS[request.param], study, root)
    return _sessions[request.param]


def _run(opened, study, root) -> Session:
    setup, cells = setup_of(study, root)
    store, ended, stored = RunStore(root), {}, {}

    def note(planned, future):
        role = planned.roles[0]
        key = (role.purpose, role.candidate, role.attack, role.seed)
        error = future.exception()
        ended[key] = error or future.result()
        stored[key] = None if error else store.record(planned.digest)

    with opened(setup) as running:
        building = [p for p in cells if p.cell.keep]
        rest = [p for p in cells if not p.cell.keep]
        for group in (building, rest):  # what is submitted has its models made
            futures = []
            for planned in group:
                futures.append(running.submit(planned))
                futures[-1].add_done_callback(lambda f, planned=planned: note(planned, f))
            for future in futures:
                future.exception()
        until = time.monotonic() + 60
        while len(ended) < len(cells) and time.monotonic() < until:
            time.sleep(0.01)  # a callback runs after the one who waits is told
        return Session(store, running.slots, ended, stored)


def test_its_slots_are_its_workers(session, request):
    assert session.slots == {"in this process": 1, "pool of two": 2}[request.node.callspec.id]


def test_the_records_are_those_of_a_run_in_one_process(session, finished):
    """To the last digit."""
    expected = {
        purpose_of(p): numbers_of(RunStore(finished).record(p.digest))
        for p in RunStore(finished).plan().cells
    }
    found = {
        (purpose, candidate, seed): numbers_of(made)
        for (purpose, candidate, attack, seed), made in session.ended.items()
        if attack != "fails"
    }
    assert found == expected and set(expected) == set(ALL)


def test_a_record_is_safe_before_its_future_ends(session):
    records = {k: r for k, r in session.ended.items() if isinstance(r, CellRecord)}
    assert len(records) == 7
    assert {k: session.stored[k] for k in records} == records


def test_a_cell_that_fails_is_told_and_takes_nothing_with_it(session):
    failed = {k: e for k, e in session.ended.items() if not isinstance(e, CellRecord)}
    assert set(failed) == {("attack", c, "fails", 2) for c in ("none", "refusal")}
    for (_, candidate, _, _), error in failed.items():
        assert isinstance(error, RunError) and isinstance(error, TiterError)
        assert "ArithmeticError: made to fail; own_attacks.py:" in error.problem
        assert error.value.endswith(f"(attack {candidate})")


def test_a_failed_cell_leaves_no_record(session):
    assert len(list(session.store.cells.glob("*.json"))) == 7
    assert not list(session.store.root.rglob("*.tmp"))


@pytest.mark.parametrize("name", APART)
def test_a_dying_worker_breaks_the_executor_and_loses_nothing_that_was_finished(
    own_attack, tmp_path, name
):
    setup, cells = setup_of(own_attack("dies", TRAINING), tmp_path / "run")
    of = {(p.roles[0].attack, *purpose_of(p)): p for p in cells}
    with APART[name](setup) as running:
        finished = running.submit(of["full_sft", "attack", "none", 1]).result()
        broken = running.submit(of["dies", "attack", "none", 1])
        with pytest.raises(BrokenExecutor):
            broken.result()
        with pytest.raises(BrokenExecutor):
            running.submit(of["full_sft", "attack", "none", 2])
    store = RunStore(tmp_path / "run")
    assert [p.name for p in store.cells.iterdir()] == [f"{finished.digest}.json"]
    assert store.record(finished.digest) == finished


def test_the_number_of_workers_picks_the_executor(small_study, tmp_path):
    setup, _ = setup_of(small_study(), tmp_path / "run")
    for count, kind in ((1, InProcess), (2, Pool)):
        with with_workers(count)(setup) as running:  # no worker starts before there is work
            assert isinstance(running, kind) and running.slots == count
