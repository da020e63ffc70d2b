"""Starting models are kept in memory only while that is cheap; whether they are changes nothing."""

import pytest

from running import numbers_of  # isort: skip

from titer.data.pools import Pools
from titer.engine.planning import plan
from titer.records.store import RunStore
from titer.runners import workbench
from titer.runners.workbench import Workbench


@pytest.fixture
def bench(tmp_path, small_study):
    """(workbench, the planned attack cells on the undefended model) of a small study."""
    study = small_study(candidates=["none"])
    pools = Pools(study)
    cells = [p for p in plan(study, pools, lambda digest: None).cells if p.roles[0].purpose == "attack"]
    return Workbench(RunStore(tmp_path / "run"), pools, study.runtime), cells


def test_a_kept_model_is_never_changed(bench):
    made, cells = bench
    first = [numbers_of(made.drive(p).record) for p in cells]
    assert len(made._models) == 1
    assert [numbers_of(made.drive(p).record) for p in cells] == first


def test_a_large_model_is_loaded_anew_with_the_same_results(bench, monkeypatch):
    made, cells = bench
    first = numbers_of(made.drive(cells[0]).record)
    made._models.clear()
    monkeypatch.setattr(workbench, "PRISTINE_BYTES", 1)
    assert numbers_of(made.drive(cells[0]).record) == first
    assert not made._models


def test_a_model_that_is_slow_to_load_is_kept_alone(bench, monkeypatch):
    made, cells = bench
    monkeypatch.setattr(workbench, "PRISTINE_BYTES", 1)
    monkeypatch.setattr(workbench, "SLOW_LOAD_S", -1.0)
    made._models["another"] = (None, None)
    made.subject(cells[0])
    assert list(made._models) == [workbench._start(cells[0].cell)]
