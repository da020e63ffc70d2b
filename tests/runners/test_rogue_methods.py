"""Methods that break the rules by mistake: the run says so, and no other cell suffers."""

import warnings

import pytest
import torch

from helpers import rogue_attacks
from helpers.running import numbers_of
from titer.cli.main import main
from titer.data.pools import Pools
from titer.engine.planning import plan
from titer.errors import RunError, StudyError
from titer.records.store import RunStore
from titer.runners.cell_runner import CellRunner
from titer.study.plugins import load_plugins

FILE = rogue_attacks.__file__


@pytest.fixture
def cells(small_study, tmp_path):
    """cells(attack) or cells(defense=…): a cell runner, the rogue's cells, and all others."""
    load_plugins([FILE])

    def made(attack=None, *, defense=None):
        study = small_study()
        resistance = study.resistance.model_dump(mode="json", exclude_defaults=True)
        settings = {"settings": {"lr": 1e-3, "batch_size": 16}}
        resistance["attacks"] = [{"attack": "full_sft", **settings}]
        rogue = attack and {"attack": attack, **(settings if attack in TRAINED else {})}
        candidates = ["none"]
        if attack:
            resistance["attacks"].insert(0, rogue)
        else:
            candidates.append({"name": "rogue", "defense": defense, "steps": 1})
        study = small_study(resistance=resistance, candidates=candidates, plugins=[FILE])
        pools = Pools(study)
        runner = CellRunner(RunStore(tmp_path / "run"), pools, study.runtime, torch.device("cpu"))
        planned = plan(study, pools, lambda digest: None).cells
        bad = [
            p
            for p in planned
            if p.roles[0].purpose == "defense" or (attack and p.roles[0].attack == attack)
        ]
        return runner, bad, [p for p in planned if p not in bad]

    return made


TRAINED = ("free", "unread_facts")


@pytest.mark.parametrize(
    ("attack", "says"),
    [
        ("free", "runs a model when its own is asked for"),
        ("late", "in the call of `step` that returned None"),
        ("trains_reference", "changed the model tiny:aligned"),
        ("adapts_reference", "changed the model tiny:aligned"),
        ("edits_tokenizer", "changed the tokenizer of tiny:aligned"),
        ("exits", "a cell failed \\(SystemExit"),
    ],
)
def test_an_attack_against_the_rules_fails_and_leaves_the_others_alone(cells, attack, says):
    runner, bad, others = cells(attack)
    ours = [p for p in others if p.roles[0].candidate == "none"]
    expected = [numbers_of(runner.run(p).record) for p in ours]
    for planned in bad:
        with pytest.raises(RunError, match=says):
            runner.perform(planned)
        assert runner.store.record(planned.digest) is None
    assert [numbers_of(runner.run(p).record) for p in ours] == expected


@pytest.mark.parametrize(
    ("defense", "says"),
    [
        ("ships_system_turn", "wording of its own"),
        ("adds_parameter", "cannot be kept"),
        ("wrapped_twice", "wrapped in adapters twice"),
    ],
)
def test_a_model_that_cannot_be_kept_is_refused_where_it_is_made(cells, defense, says):
    runner, bad, _ = cells(defense=defense)
    with pytest.raises(RunError, match=says), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runner.perform(bad[0])
    assert not list(runner.store.models.glob("*"))


@pytest.mark.parametrize("defense", ["in_double", "in_half"])
def test_a_model_in_another_precision_can_be_attacked(cells, defense):
    runner, bad, others = cells(defense=defense)
    runner.perform(bad[0])
    attack = next(p for p in others if p.roles[0].candidate == "rogue")
    assert runner.perform(attack).outcome in ("reached_budget", "stopped_broken")


def test_a_method_that_fails_when_it_is_planned_is_named(cells):
    with pytest.raises(StudyError, match="unread_facts fails when it is planned"):
        cells("unread_facts")


def test_a_method_that_ends_the_process_does_not_end_titer_in_silence(capsys):
    status = main(["attack", "tiny:aligned", "--method", "exits", "--plugin", FILE, "--steps", "1"])
    assert status == 1
    assert "SystemExit" in capsys.readouterr().err
