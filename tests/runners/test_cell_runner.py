"""Starting models are kept in memory only while that is cheap; whether they are changes nothing."""

import pytest

from running import numbers_of  # isort: skip

from titer.data.pools import Pools
from titer.engine.planning import plan
from titer.methods.method import MethodData
from titer.records.store import RunStore
from titer.runners import cell_runner
from titer.runners.cell_runner import CellRunner


@pytest.fixture
def bench(tmp_path, small_study):
    """(workbench, the planned attack cells on the undefended model) of a small study."""
    study = small_study(candidates=["none"])
    pools = Pools(study)
    cells = [
        p for p in plan(study, pools, lambda digest: None).cells if p.roles[0].purpose == "attack"
    ]
    return CellRunner(RunStore(tmp_path / "run"), pools, study.runtime), cells


def test_a_kept_model_is_never_changed(bench):
    made, cells = bench
    first = [numbers_of(made.run_cell(p).record) for p in cells]
    assert len(made._models) == 1
    assert [numbers_of(made.run_cell(p).record) for p in cells] == first


def test_a_large_model_is_loaded_anew_with_the_same_results(bench, monkeypatch):
    made, cells = bench
    first = numbers_of(made.run_cell(cells[0]).record)
    made._models.clear()
    monkeypatch.setattr(workbench, "PRISTINE_BYTES", 1)
    assert numbers_of(made.run_cell(cells[0]).record) == first
    assert not made._models


def test_a_defense_that_trains_adapters_leaves_an_ordinary_model(bench, monkeypatch):
    """What is kept must load without peft and speak as the adapted model does."""
    import torch

    from titer.assets.models import load_model
    from titer.methods.attacks.lora_sft import LoraSFT
    from titer.study.reference import ModelRef

    made, cells = bench
    bundle = made.bundle(cells[0])
    data = made.pools.part("harm/attack")[:16]
    run = LoraSFT(lr=3e-3, batch_size=4).start(bundle, MethodData(harmful=data), seed=0, horizon=2)
    run.step()
    run.model.eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        expected = run.model(input_ids=ids).logits
        artifact = made._keep(run.model, bundle.tokenizer, "abc")
        loaded = load_model(ModelRef(source="path", name=str(made.store.models / "abc")))
        assert torch.allclose(loaded.model(input_ids=ids).logits, expected, atol=1e-5)
    assert loaded.provenance["sha256"] == artifact.sha256
