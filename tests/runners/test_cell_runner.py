"""One cell brought together, run and written down; and the models it is made from."""

from dataclasses import replace

import pytest
import torch

import titer
from helpers.running import OWN_ATTACKS, numbers, numbers_of
from titer.assets.models import load_model
from titer.assets.saving import save_model
from titer.data.pools import Pools
from titer.engine.planning import plan
from titer.errors import AssetError, RunError
from titer.methods.attacks.lora_sft import LoraSFT
from titer.records.store import RunStore
from titer.runners import broker
from titer.runners.broker import Broker
from titer.runners.cell_runner import CellRunner, relative_distance
from titer.study.cell import Start
from titer.study.plugins import load_plugins
from titer.study.reference import ModelRef

CPU = torch.device("cpu")


@pytest.fixture
def opened(tmp_path):
    """opened(study): a cell runner in an empty directory, and the cells by purpose, candidate, seed
    (and attack, where there are several).
    """

    def open_(study, **options):
        pools = Pools(study)
        cells = plan(study, pools, lambda digest: None).cells
        runner = CellRunner(RunStore(tmp_path / "run"), pools, study.runtime, CPU, **options)
        found = {}
        for planned in cells:
            for role in planned.roles:
                found[role.purpose, role.candidate, role.seed] = planned
                found[role.purpose, role.candidate, role.seed, role.attack] = planned
        return runner, found

    return open_


@pytest.fixture
def undefended(opened, small_study):
    """(cell runner, the attack cells on the undefended model) of the small study."""
    runner, cells = opened(small_study(candidates=["none"]))
    return runner, [cells["attack", "none", seed] for seed in (1, 2)]


# -- models ---------------------------------------------------------------------------------------


def test_a_kept_model_is_never_changed(undefended):
    runner, cells = undefended
    first = [numbers_of(runner.run(p).record) for p in cells]
    assert len(runner.broker._kept) == 1
    assert [numbers_of(runner.run(p).record) for p in cells] == first


def test_a_large_model_is_loaded_anew_with_the_same_results(undefended, monkeypatch):
    runner, cells = undefended
    first = numbers_of(runner.run(cells[0]).record)
    runner.broker._kept.clear()
    monkeypatch.setattr(broker, "PRISTINE_BYTES", 1)
    assert numbers_of(runner.run(cells[0]).record) == first
    assert not runner.broker._kept


TINY = Start(ref=ModelRef(source="tiny", name="aligned"))


@pytest.mark.parametrize("limit", [broker.PRISTINE_BYTES, 1], ids=["small", "large"])
@pytest.mark.parametrize("first", ["copy", "frozen"])
def test_a_model_that_is_only_read_is_not_the_one_that_is_changed(
    tmp_path, monkeypatch, limit, first
):
    monkeypatch.setattr(broker, "PRISTINE_BYTES", limit)
    lender = Broker(RunStore(tmp_path), CPU)
    if first == "copy":
        changed, read = lender.copy(TINY), lender.frozen(TINY)
    else:
        read, changed = lender.frozen(TINY), lender.copy(TINY)
    before = {n: p.detach().clone() for n, p in read.model.named_parameters()}
    with torch.no_grad():
        for parameter in changed.model.parameters():
            parameter.zero_()
    assert all(torch.equal(p, before[n]) for n, p in read.model.named_parameters())
    assert lender.frozen(TINY) is read  # one for all who ask, while the cell runs
    assert not any(p.requires_grad for p in read.model.parameters()) and not read.model.training
    again = lender.copy(TINY)
    assert all(torch.equal(p, before[n]) for n, p in again.model.named_parameters())
    lender.give_back()
    assert not lender._borrowed


def test_models_from_elsewhere_go_before_memory_does(tmp_path, monkeypatch, tiny):
    size = sum(p.numel() * p.element_size() for p in tiny.model.parameters())
    monkeypatch.setattr(broker, "PRISTINE_BYTES", 2.5 * size)
    lender = Broker(RunStore(tmp_path), CPU)
    starts = [Start(ref=ModelRef(source="tiny", name=n)) for n in ("aligned", "base", "untaught")]
    for start in (*starts[:2], starts[0], starts[2]):
        lender.copy(start)
    assert list(lender._kept) == [starts[0], starts[2]]  # the one least recently asked for is gone


def test_a_model_that_was_not_made_is_refused_readably(tmp_path):
    with pytest.raises(
        AssetError, match="the model a cell starts from is missing or has changed"
    ) as caught:
        Broker(RunStore(tmp_path), CPU).copy(Start(ref=TINY.ref, parent="0" * 16))
    assert caught.value.value == "0" * 16


def test_a_defense_that_trains_adapters_leaves_an_ordinary_model(undefended):
    """What is kept must load without peft and speak as the adapted model does."""
    runner, cells = undefended
    work = replace(runner.work(cells[0]), method=LoraSFT(lr=3e-3, batch_size=4))
    run = work.begin()
    run.step()
    ids = torch.tensor([[5, 6, 7, 8]])
    with run.model().reading() as model:
        expected = model(input_ids=ids).logits
    artifact = runner._keep(run.model(), "abc")
    loaded = load_model(ModelRef(source="path", name=str(runner.store.models / "abc")))
    with torch.no_grad():
        assert torch.allclose(loaded.model(input_ids=ids).logits, expected, atol=1e-5)
    assert loaded.provenance["sha256"] == artifact.sha256


# -- cells ----------------------------------------------------------------------------------------


def test_transcripts_are_written_only_if_asked_for(opened, small_study):
    runner, cells = opened(small_study())
    attack = cells["attack", "none", 1]
    assert not runner.perform(attack).transcripts and not runner.store.transcripts.exists()
    runner, cells = opened(small_study(), keep_transcripts=True)
    record = runner.perform(attack)
    rows = runner.store.read_transcripts(attack.digest)
    read = [(p.step, r.label, r.n) for p in record.probes for r in p.readings]
    assert len(rows) == sum(n for *_, n in read)
    assert {(r["step"], r["label"]) for r in rows} == {x[:2] for x in read}
    assert record.transcripts


def test_an_attack_that_asks_in_its_own_words_shares_no_reading(opened, small_study):
    """Readings at step 0 are shared between cells of one model, if it is asked in one way."""
    attacks = [
        {"attack": "full_sft", "settings": {"batch_size": 16}},
        {"attack": "soft_prompt", "settings": {"batch_size": 16, "length": 3}},
    ]
    study = small_study(
        candidates=["none"],
        resistance=small_study().resistance.model_dump(mode="json")
        | {"attacks": attacks, "budget": 1},
    )
    runner, cells = opened(study)
    plain = runner.perform(cells["attack", "none", 1, "full_sft"])
    worded = runner.perform(cells["attack", "none", 1, "soft_prompt"])
    assert worded.wording == {"placeholders": 3} and plain.wording == {}
    alone = opened(study)[0].perform(cells["attack", "none", 1, "soft_prompt"])
    assert worded.probe(0).readings == alone.probe(0).readings
    # And the next cell of the plain kind takes what the first one read.
    (shared,) = runner._at_start.values()
    held = dict(shared)
    runner.perform(cells["attack", "none", 2, "full_sft"])
    assert shared == held


def test_a_look_outside_a_run_writes_neither_record_nor_checkpoint(opened, small_study, tmp_path):
    runner, cells = opened(small_study(), checkpoint_every_s=0.0)
    runner.run(cells["attack", "none", 1])
    assert not list(tmp_path.rglob("*"))


def test_a_cell_of_a_service_is_run_by_it(opened, small_study):
    lisa = {"name": "lisa", "settings": {"lr": 1e-3, "alignment_steps": 1, "user_steps": 4}}
    study = small_study(
        threat_model="fine_tuning_service",
        candidates=["none", {"name": "served", "service": {"method": lisa}}],
    )
    runner, cells = opened(study)
    alone, served = (runner.perform(cells["attack", c, 1]) for c in ("none", "served"))
    assert served.cell.host.method.name == "lisa" and alone.cell.host is None
    assert served.cost.steps == alone.cost.steps == 8
    assert served.cost.examples > alone.cost.examples and served.loss != alone.loss
    # The defender's text is drawn for the cell's seed, as the attacker's is.
    work = runner.work(cells["attack", "served", 1])
    assert {s: len(e) for s, e in work.host_texts.items()} == {"harmful": 96, "harmless": 96}
    assert {s: len(e) for s, e in work.texts.items()} == {"harmful": 64}


def test_a_model_from_elsewhere_is_compared_with_the_control(opened, small_study, tmp_path, tiny):
    save_model(tiny.model, tiny.tokenizer, tmp_path / "same")
    given = {"name": "given", "model": str(tmp_path / "same")}
    runner, cells = opened(small_study(candidates=["none", given]))
    start = runner.perform(cells["stability", "given", 0]).start
    assert start.compared and start.distance == 0.0
    assert start.parameters == sum(p.numel() for p in tiny.model.parameters())
    attacked = runner.perform(cells["attack", "given", 1]).start
    assert not attacked.compared and attacked.distance is None
    assert attacked.weights == start.weights


def test_the_distance_between_models(tiny):
    import copy

    other = copy.deepcopy(tiny.model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    assert relative_distance(other, tiny.model) == pytest.approx(0.5)
    assert relative_distance(tiny.model, tiny.model) == 0.0
    assert relative_distance(tiny.model, torch.nn.Linear(2, 2)) is None


def test_a_method_reads_the_further_models_of_its_cell(opened, own_attack):
    """The control is the model before the defense; the parent is the one the run starts from."""
    names = ["parent", "control", "base"]
    runner, cells = opened(own_attack("borrows", {"of": names}, models={"base": "tiny:base"}))
    runner.perform(cells["defense", "refusal", 0])
    size = {}
    for candidate in ("none", "refusal"):
        figures = runner.perform(cells["attack", candidate, 1, "borrows"]).figures
        size[candidate] = {name: figures[f"size_{i}"][0] for i, name in enumerate(names)}
    assert size["none"]["parent"] == size["none"]["control"] == size["refusal"]["control"]
    assert size["refusal"]["parent"] != size["refusal"]["control"]
    assert size["none"]["base"] == size["refusal"]["base"] != size["none"]["control"]
    assert not runner.broker._borrowed  # given back


def test_a_method_trains_on_the_reward_of_its_cell(opened, own_attack):
    """It is told replies alone, and scores them as the measure would."""
    reward = {"reward": {"measure": "refusal_rate", "settings": {"max_new_tokens": 8}}}
    runner, cells = opened(own_attack("rewarded", fields=reward))
    record = runner.perform(cells["attack", "none", 1, "rewarded"])
    assert record.cell.reward.name == "refusal_rate"
    assert record.figures == {"refused": (1.0,), "answered": (0.0,), "silent": (None,)}


def test_a_cell_is_not_run_with_other_code_than_it_was_planned_with(opened, own_attack, tmp_path):
    """A worker may start after a plug-in file was edited."""
    file = tmp_path / "own.py"
    file.write_text(OWN_ATTACKS.read_text())
    study = own_attack("fails").model_copy(update={"plugins": (str(file),)})
    runner, cells = opened(study)
    file.write_text(OWN_ATTACKS.read_text().replace("made to fail", "made to fail again"))
    load_plugins(study.plugins)
    with pytest.raises(RunError, match="the code of fails has changed") as caught:
        runner.perform(cells["attack", "none", 1, "fails"])
    assert caught.value.field == "plugins" and "same command again" in caught.value.remedy
    assert not runner.store.cells.exists()
    runner.perform(cells["attack", "none", 1, "full_sft"])  # what it does not concern goes on


# -- files that change -----------------------------------------------------------------------------


@pytest.fixture
def by_path(opened, small_study, tiny, tmp_path):
    """(cell runner, attack cells on the control) of the small study on a model directory; the
    directory."""
    save_model(tiny.model, tiny.tokenizer, tmp_path / "model")
    study = small_study(model=f"path:{tmp_path / 'model'}", candidates=["none"])
    runner, cells = opened(study)
    return runner, [cells["attack", "none", seed] for seed in (1, 2)], tmp_path / "model"


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer_config.json", "config.json"])
def test_a_cell_is_not_run_on_other_files_than_it_was_planned_with(by_path, monkeypatch, name):
    monkeypatch.setattr(broker, "PRISTINE_BYTES", 1)  # loaded for every cell
    runner, cells, folder = by_path
    runner.perform(cells[0])
    data = (folder / name).read_bytes()
    changed = data[:-1] + bytes([data[-1] ^ 1]) if name.endswith("tensors") else data + b" "
    (folder / name).write_bytes(changed)
    with pytest.raises(AssetError, match="have changed since the run was planned"):
        runner.perform(cells[1])
    assert runner.store.record(cells[1].digest) is None


@pytest.mark.parametrize("name", ["model.safetensors", "chat_template.jinja", "config.json"])
def test_a_kept_model_that_was_changed_is_made_again(small_study, tmp_path, name):
    study = small_study()
    store = titer.run(study, tmp_path / "run")
    before = numbers(store.root)
    made = next(store.models.iterdir())
    view = store.view()
    lost = next(p.digest for p in view.plan.cells if p.start.parent == made.name)
    (store.cells / f"{lost}.json").unlink()
    data = (made / name).read_bytes()
    (made / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    titer.run(study, tmp_path / "run")
    assert numbers(store.root) == before
