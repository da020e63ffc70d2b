"""A plan that was changed by hand is found out from the study and the cells."""

import copy
import json
from pathlib import Path

import pytest

from helpers.factory import BENCH_FACTS, BREAKS, RESISTS, STABILITY, Make, bench, realistic
from helpers.report_example import save
from titer.records.files import sealed
from titer.records.plan_validation import disagreements
from titer.records.required import lacking
from titer.records.store import RunStore
from titer.study.cell import Plan
from titer.verdicts import judge

RESULTS = Path(__file__).parents[2] / "docs" / "results" / "records"


@pytest.fixture(scope="module")
def view():
    return realistic().view()


def built() -> Make:
    """Every way a candidate can be made: two stages with several seeds, a model from elsewhere, a
    service; and attacks with budgets of their own.
    """
    stages = [
        {"method": "sft_refusal", "steps": 20},
        {
            "method": {"name": "adversarial_loss", "settings": {"alpha": 0.1}},
            "steps": 40,
            "data": {"harmful": "harm/search", "harmless": "harmless/train"},
        },
    ]
    service = {"method": {"name": "lisa", "settings": {"rho": 1}}}
    make = Make(
        attacks={
            "full_sft": {},
            "short": {"attack": "full_sft", "budget": 4},
            "costly": {"attack": "lora_sft", "budget": {"flops": 6e9, "steps": 16}},
        },
        candidates=[
            {"name": "staged", "stages": stages, "seeds": [1, 2, 3, 4, 5]},
            {"name": "outside", "model": "hub:a/b"},
            {"name": "hosted", "service": service},
        ],
        stability=STABILITY,
    )
    make.defense("staged")
    for name, curve in (("none", BREAKS), ("staged", RESISTS), ("outside", RESISTS)):
        make.attack(name, "full_sft", curve).attack(name, "short", curve[:4])
        make.attack(name, "costly", curve[:4], probes=(0, 1, 2, 6))
    make.attack("hosted", "full_sft", RESISTS)
    for checkpoint in (1, 2, 3, 4, 5):
        make.benchmark("staged", bench_outcomes(), BENCH_FACTS, checkpoint=checkpoint)
    return make


def bench_outcomes():
    import numpy as np

    return bench(np.random.default_rng(1))


def changed(view, change):
    """Digests found out after `change(plan as a dictionary)`."""
    plan = copy.deepcopy(view.plan.model_dump(mode="json"))
    change(plan)
    return disagreements(view.study, Plan.model_validate(plan), view.records)


def roles(plan, purpose, **where):
    return [
        r
        for p in plan["cells"]
        for r in p["roles"]
        if r["purpose"] == purpose and all(r[k] == v for k, v in where.items())
    ]


def swap(plan, purpose, field, one, other):
    for role in roles(plan, purpose):
        role[field] = {one: other, other: one}.get(role[field], role[field])


@pytest.mark.parametrize("make", [realistic, built])
def test_a_plan_that_titer_made_agrees(make):
    assert changed(make().view(), lambda plan: None) == {}


def test_the_plans_of_the_committed_runs_agree():
    runs = sorted(p.parent for p in RESULTS.glob("*/study.json"))
    assert runs and all(RunStore(run).view().problems == () for run in runs)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda p: swap(p, "attack", "candidate", "none", "immune"),
            "did not start from that model",
        ),
        (
            lambda p: swap(p, "stability", "candidate", "none", "sft_refusal"),
            "did not start from that model",
        ),
        (
            lambda p: swap(p, "trainability", "candidate", "none", "sft_refusal"),
            "did not start from that model",
        ),
        (
            lambda p: swap(p, "generalization", "defended_on", "left", "right"),
            "did not start from that model",
        ),
        (lambda p: swap(p, "generalization", "attacked_on", "left", "right"), "of the domains"),
        (lambda p: swap(p, "attack", "attack", "full_sft", "elsewhere"), "it is a run of"),
        (lambda p: swap(p, "attack", "seed", 1, 2), "its seed is"),
        (
            lambda p: [r.update(attack="mine") for r in roles(p, "attack", seed=1)],
            "no such attack",
        ),
        (
            lambda p: [r.update(candidate="mine") for r in roles(p, "defense")],
            "no such candidate",
        ),
        (lambda p: [r.update(stage=1) for r in roles(p, "defense")], "no such defense"),
        (
            lambda p: [r.update(task="mine") for r in roles(p, "trainability", seed=1)],
            "no such task",
        ),
        (
            lambda p: [r.update(purpose="align") for r in roles(p, "defense", candidate="mute")],
            "the study aligns nothing",
        ),
    ],
)
def test_roles_that_were_swapped_are_found(view, change, says):
    found = changed(view, change)
    assert found and any(says in why for why in found.values()), found


@pytest.mark.parametrize(
    ("change", "says"),
    [
        # Checkpoints that were exchanged, and stages.
        (lambda p: swap(p, "attack", "defense_seed", 1, 2), "did not start from that model"),
        (
            lambda p: [r.update(defense_seed=None) for r in roles(p, "stability")],
            "0 cells are said to have made that model",
        ),
        (lambda p: swap(p, "defense", "stage", 0, 1), "it is a run of"),
        (lambda p: swap(p, "defense", "defense_seed", 1, 2), "its seed is"),
        # A service that was not there, and one that was.
        (
            lambda p: [r.update(candidate="hosted") for r in roles(p, "attack", candidate="none")],
            "no service ran it",
        ),
        (
            lambda p: [r.update(candidate="none") for r in roles(p, "attack", candidate="hosted")],
            "run by the service lisa",
        ),
        (
            lambda p: [r.update(defense_seed=1) for r in roles(p, "attack", candidate="hosted")],
            "has a single checkpoint",
        ),
        # Budgets.
        (lambda p: swap(p, "attack", "attack", "full_sft", "short"), "it was run to step"),
        (
            lambda p: [r.update(attack="costly") for r in roles(p, "attack", attack="full_sft")],
            "it is a run of",
        ),
    ],
)
def test_checkpoints_stages_services_and_budgets(change, says):
    found = changed(built().view(), change)
    assert found and any(says in why for why in found.values()), found


def test_every_attack_seed_meets_a_checkpoint_of_its_own():
    make = built().attack("staged", "short", RESISTS[:4], checkpoint=3)
    found = changed(make.view(), lambda p: None)
    wrong = [why for why in found.values() if "not 3" in why]
    assert len(wrong) == len(found) == 4  # the third seed meets it rightly
    assert any("it belongs to the checkpoint of seed 5, not 3" in why for why in wrong)


def test_a_budget_in_flops_is_no_budget_in_steps():
    make = built()
    for digest, (cell, made) in list(make.cells.items()):
        if made[0].attack == "costly" and made[0].candidate == "none":
            other = cell.model_copy(update={"flops": None})
            make.records[digest] = make.records[digest].model_copy(update={"cell": other})
    assert "its budget is in steps, not 6e+09 FLOPs" in str(changed(make.view(), lambda p: None))


def test_a_model_that_two_cells_are_said_to_have_made():
    view = built().view()
    plan = view.plan.model_dump(mode="json")
    of = {r["stage"]: p for p in plan["cells"] for r in p["roles"] if r["defense_seed"] == 1}
    of[0]["roles"] += [{**of[1]["roles"][0]}]
    found = disagreements(view.study, Plan.model_validate(plan), view.records)
    assert any("2 cells are said to have made that model" in why for why in found.values())


def test_texts_are_those_of_the_study():
    make = built()
    digest, (cell, _) = next((d, v) for d, v in make.cells.items() if v[1][0].purpose == "attack")
    use = cell.texts["harmful"]
    for texts, says in (
        ({}, "its text is none, not harmful"),
        ({"harmful": use, "harmless": use}, "its text is harmful, harmless, not harmful"),
        ({"harmful": use.model_copy(update={"part": "other/attack"})}, "is other/attack, not"),
        ({"harmful": use.model_copy(update={"examples": 3})}, "is 3 examples, not None"),
        ({"harmful": use.model_copy(update={"domains": ("a",)})}, "of the domains ('a',)"),
    ):
        record = make.records[digest]
        odd = record.model_copy(update={"cell": cell.model_copy(update={"texts": texts})})
        found = disagreements(make.study, make.view().plan, {digest: odd})
        assert says in found[digest]


def test_settings_are_compared_as_numbers(view):
    def point(value):
        return lambda p: [
            r.update(point={"lr": value}) for r in roles(p, "attack", attack="full_sft")
        ]

    assert changed(view, point("1e-4")) == {}
    assert "its lr is" in str(changed(view, point(2e-3)))
    nested = Make(
        attacks={"chain": {"settings": {"parts": [{"attack": "prune", "settings": {"a": 1}}]}}}
    ).attack("none", "chain", BREAKS)
    filled = {"parts": [{"attack": "prune", "settings": {"a": 1.0}, "steps": None}]}
    for digest, (cell, _) in nested.cells.items():
        method = cell.method.model_copy(update={"settings": filled})
        other = cell.model_copy(update={"method": method})
        nested.records[digest] = nested.records[digest].model_copy(update={"cell": other})
    assert changed(nested.view(), lambda p: None) == {}


def test_what_was_swapped_is_not_judged_but_named(tmp_path, view):
    store = save(view, tmp_path)
    assert store.view().problems == ()
    plan = json.loads((tmp_path / "plan.json").read_text("utf-8"))
    swap(plan, "attack", "candidate", "none", "immune")
    (tmp_path / "plan.json").write_text(json.dumps(plan), "utf-8")
    verdict = judge(store.view())
    assert verdict.status == "incomplete" and "corrupted_records" in {f.code for f in verdict.flags}
    assert all(c.overall != "holds" for c in verdict.candidates)


# -- plans that were thinned or edited -------------------------------------------------------------


@pytest.fixture
def stored(tmp_path, view):
    """A run on disk, and a function that edits its plan as somebody with an editor would."""
    store = save(view, tmp_path)

    def edit(change, *, seal):
        plan = json.loads((tmp_path / "plan.json").read_text("utf-8"))
        change(plan)
        if seal:
            plan.pop("seal")
            text = sealed(json.dumps(plan))
        else:
            text = json.dumps(plan, separators=(",", ":"))
        (tmp_path / "plan.json").write_text(text, "utf-8")
        return store.view()

    return edit


def thinned(purpose, keep=0):
    def change(plan):
        cells = [c for c in plan["cells"] if c["roles"][0]["purpose"] == purpose]
        plan["cells"] = [c for c in plan["cells"] if c not in cells[keep:]]

    return change


def emptied(plan):
    plan["cells"] = []


def unsearched(plan):
    plan["complete"] = False


def mixing(plan):
    for cell in plan["cells"]:
        if cell.get("facts"):
            cell["facts"] |= {"mixes": True, "repairs": True, "adaptive": True}


def test_a_plan_that_titer_made_lacks_nothing(stored):
    assert lacking(realistic().study, realistic().view().plan) == []
    assert stored(lambda plan: None, seal=True).plan_problems == ()


@pytest.mark.parametrize("seal", [True, False], ids=["sealed again", "not sealed"])
@pytest.mark.parametrize(
    "change",
    [
        emptied,
        unsearched,
        thinned("attack"),
        thinned("attack", keep=3),
        thinned("stability"),
        thinned("generalization", keep=1),
        thinned("trainability"),
    ],
    ids=lambda c: getattr(c, "__name__", "?"),
)
def test_a_thinned_plan_is_named_and_nothing_holds(stored, change, seal):
    view = stored(change, seal=seal)
    assert any("lacks" in p for p in view.plan_problems)
    verdict = judge(view)
    assert "changed_plan" in {f.code for f in verdict.flags}
    assert all(c.overall != "holds" for c in verdict.candidates)


def test_any_other_edit_breaks_the_seal(stored):
    edited = stored(mixing, seal=False)
    assert edited.plan_problems == ("plan.json was changed after it was written",)


def test_what_a_method_declares_is_read_from_its_record(stored):
    """Facts in the plan are for cells that have no record yet."""
    before = judge(stored(lambda plan: None, seal=True))
    assert judge(stored(mixing, seal=True)).candidates == before.candidates
