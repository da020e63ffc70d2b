"""A plan that was changed by hand is found out from the study and the cells."""

import copy
import json
from pathlib import Path

import pytest

from titer.records.agreement import disagreements
from titer.records.store import RunStore
from titer.study.cell import Plan
from titer.verdicts import judge

RUN = RunStore(Path(__file__).parents[2] / "docs" / "results" / "records" / "quickstart")


@pytest.fixture(scope="module")
def view():
    return RUN.view()


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


def test_a_plan_that_titer_made_agrees(view):
    assert changed(view, lambda plan: None) == {} and view.problems == ()


def swap(plan, purpose, field, one, other):
    for role in roles(plan, purpose):
        role[field] = {one: other, other: one}.get(role[field], role[field])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda p: swap(p, "attack", "candidate", "none", "adversarial_loss"),
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
            lambda p: swap(p, "generalization", "defended_on", "first", "second"),
            "did not start from that model",
        ),
        (
            lambda p: swap(p, "attack", "attack", "full_sft@lr=0.0001", "full_sft@lr=0.001"),
            "its lr is",
        ),
        (
            lambda p: swap(p, "attack", "attack", "full_sft@lr=0.001", "lora_sft@lr=0.001"),
            "it is a run of",
        ),
        (lambda p: swap(p, "attack", "seed", 101, 102), "its seed is"),
        (
            lambda p: [r.update(attack="mine") for r in roles(p, "attack", seed=101)],
            "no such attack",
        ),
        (lambda p: [r.update(candidate="mine") for r in roles(p, "defense")], "no such defense"),
    ],
)
def test_roles_that_were_swapped_are_found(view, change, says):
    found = changed(view, change)
    assert found and any(says in why for why in found.values())


def test_settings_are_compared_as_numbers(view):
    assert (
        changed(
            view,
            lambda p: [
                r.update(point={"lr": "1e-3"})
                for r in roles(p, "attack", attack="full_sft@lr=0.001")
            ],
        )
        == {}
    )
    assert changed(
        view,
        lambda p: [
            r.update(point={"lr": 2e-3}) for r in roles(p, "attack", attack="full_sft@lr=0.001")
        ],
    )


def test_what_was_swapped_is_not_judged_but_named(tmp_path, view):
    store = RunStore(tmp_path)
    store.cells.mkdir()
    for name in ("study.json", "plan.json"):
        (tmp_path / name).write_bytes((RUN.root / name).read_bytes())
    for path in RUN.cells.glob("*.json"):
        (store.cells / path.name).write_bytes(path.read_bytes())
    plan = json.loads((tmp_path / "plan.json").read_text("utf-8"))
    swap(plan, "attack", "candidate", "none", "adversarial_loss")
    (tmp_path / "plan.json").write_text(json.dumps(plan), "utf-8")
    verdict = judge(store.view())
    assert verdict.status == "incomplete" and "corrupted_records" in {f.code for f in verdict.flags}
    assert all(c.overall != "holds" for c in verdict.candidates)
