"""What methods declare is kept per record, and judged per attack: never by the name of a method."""

import pytest

from helpers.factory import BREAKS, NAN, RESISTS, Make
from titer.study.facts import MethodFacts
from titer.verdicts import judge
from titer.verdicts.evidence.index import Evidence

CONSTANT, COSINE = "full_sft@schedule=constant", "full_sft@schedule=cosine"


def candidate(make: Make):
    return judge(make.view()).candidates[0]


def swept(order, *, as_prefix: bool) -> Make:
    """Two schedules of one method. as_prefix: the cosine run is one cell read at every probe."""
    make = Make(attacks={"full_sft": {"sweep": {"schedule": order}}})
    for name, curve in (("none", BREAKS), ("defended", RESISTS)):
        for label in [a.label for a in make.study.resistance.expanded()]:
            if label == COSINE and not as_prefix:
                make.budgets(name, label, curve)
            else:
                make.attack(name, label, curve)
    return make


@pytest.mark.parametrize("order", [["constant", "cosine"], ["cosine", "constant"]])
def test_two_schedules_of_one_method_do_not_lend_each_other_their_facts(order):
    """D1: facts were kept per method name, so the last planned schedule spoke for both."""
    found = candidate(swept(order, as_prefix=False))
    assert found.flags == () and found.resistance.status == "holds"
    found = candidate(swept(order, as_prefix=True))
    assert {(f.code, f.where) for f in found.flags} == {
        ("horizon_as_prefix", f"defended / {COSINE}")
    }
    assert {a.attack: a.status for a in found.resistance.attacks} == {
        CONSTANT: "holds",
        COSINE: "inconclusive",
    }


def test_facts_are_those_of_the_records_and_of_the_plan_only_while_there_are_none():
    make = Make(methods={"full_sft": {"adapter": True}})
    make.attack("none", "full_sft", BREAKS, missing=range(5))
    planned = Evidence(make.view()).facts("full_sft")
    assert isinstance(planned, MethodFacts) and planned.adapter
    make.methods["full_sft"] = {}
    make.attack("defended", "full_sft", RESISTS)
    assert not Evidence(make.view()).facts("full_sft").adapter
    assert Evidence(Make().view()).facts("full_sft") is None


def test_records_that_differ_lend_only_what_all_of_them_declare():
    """A search may choose other settings for another candidate."""
    make = Make(methods={"full_sft": {"adapter": True, "mixes": True, "trains": False}})
    make.attack("none", "full_sft", BREAKS)
    make.methods["full_sft"] = {"mixes": True, "role": "reference"}
    make.attack("defended", "full_sft", RESISTS)
    found = Evidence(make.view()).facts("full_sft")
    assert (found.adapter, found.mixes, found.trains, found.role) == (False, True, True, "attack")
    make.methods["full_sft"] = None
    make.attack("defended", "full_sft", RESISTS, point={"lr": 1.0})
    assert Evidence(make.view()).facts("full_sft") is None


@pytest.mark.parametrize(
    ("declared", "stated", "role", "status"),
    [
        ({}, None, "attack", "invalid"),
        ({"role": "reference"}, None, "reference", "inconclusive"),
        ({"role": "reference"}, "attack", "attack", "invalid"),
        ({}, "reference", "reference", "inconclusive"),
        (None, None, "attack", "invalid"),  # unknown: it must break the control
        (None, "reference", "reference", "inconclusive"),
    ],
)
def test_the_study_has_the_last_word_on_a_role(declared, stated, role, status):
    attacks = {"full_sft": {"role": stated} if stated else {}}
    make = Make(attacks=attacks, methods={"full_sft": declared})
    make.attack("none", "full_sft", RESISTS).attack("defended", "full_sft", RESISTS)
    found = candidate(make).resistance
    assert (found.attacks[0].role, found.status) == (role, status)


def test_only_attacks_that_train_count_as_full_or_adapter_attacks():
    def card(**methods):
        make = Make(attacks={m: {} for m in methods}, methods=methods)
        for label in methods:
            make.attack("none", label, BREAKS).attack("defended", label, RESISTS)
        found = judge(make.view()).guidelines
        return next(g for g in found if g.code == "full_and_adapter")

    assert card(full_sft={}, lora_sft={"adapter": True}).status == "met"
    line = card(prune={"trains": False}, lora_sft={"adapter": True})
    assert line.status == "not met" and line.evidence == "full-parameter: none; adapter: lora_sft"
    assert card(full_sft={}, lora_sft={"role": "reference", "adapter": True}).status == "not met"
    assert card(full_sft={}, lora_sft=None).status == "not met"


@pytest.mark.parametrize(
    ("declared", "logs", "codes"),
    [
        ({"trains": False}, {"loss": (0.0,) * 16, "grad_norm": (0.0,) * 16}, set()),
        ({}, {"loss": (0.0,) * 16, "grad_norm": (0.0,) * 16}, {"zero_gradients"}),
        # No loss, but a gradient that is zero: it trains nothing.
        ({}, {"loss": (None,) * 16, "grad_norm": (0.0,) * 16}, {"zero_gradients"}),
        ({}, {"loss": (None,) * 16, "grad_norm": (None,) * 16}, set()),
        # Some steps of a chain are edits.
        ({}, {"loss": (None, 2.0) * 8, "grad_norm": (None, 0.0) * 8}, {"zero_gradients"}),
        ({}, {"loss": (None, *range(16, 1, -1)), "grad_norm": (None,) + (1.0,) * 15}, set()),
        ({"trains": False}, {"loss": (NAN,) * 16}, {"nonfinite_gradients"}),
        ({}, {"loss": (None,) * 16, "grad_norm": (NAN,) * 16}, {"nonfinite_gradients"}),
    ],
)
def test_no_loss_is_no_trouble_and_a_loss_that_is_not_finite_is(declared, logs, codes):
    make = Make(methods={"full_sft": declared})
    make.attack("none", "full_sft", BREAKS).attack("defended", "full_sft", RESISTS, **logs)
    found = candidate(make)
    raised = {f.code for f in found.flags} - {"attack_loss_not_falling"}
    assert raised == codes
    assert (found.resistance.status == "holds") is not codes


def test_an_attack_that_asks_in_other_words_does_not_say_what_the_model_is():
    """Its probe at 0 reads the control's answer to a trigger, not f(M[0])."""
    make = Make(
        attacks={"full_sft": {}, "trigger": {}}, methods={"trigger": {"starts_as_parent": False}}
    )
    make.attack("none", "full_sft", BREAKS).attack("none", "trigger", (0.9, *BREAKS[1:]))
    for label in ("full_sft", "trigger"):
        make.attack("defended", label, RESISTS)
    assert judge(make.view()).status == "complete"
    assert candidate(make).resistance.status == "holds"
    # If no attack starts as its parent, nothing else is known of the control.
    alone = Make(methods={"full_sft": {"starts_as_parent": False}})
    alone.attack("none", "full_sft", (0.9, *BREAKS[1:])).attack("defended", "full_sft", RESISTS)
    assert judge(alone.view()).status == "invalid"


def test_a_template_that_the_attack_brings_is_no_mistake():
    notes = {"template_train": "a", "template_eval": "b"}
    make = Make().attack("none", "full_sft", BREAKS)
    make.attack("defended", "full_sft", RESISTS, notes=notes, wording={"template": "{prompt}"})
    assert candidate(make).flags == ()
    plain = Make().attack("none", "full_sft", BREAKS)
    plain.attack("defended", "full_sft", RESISTS, notes=notes, wording={"system": "Be kind."})
    assert [f.code for f in candidate(plain).flags] == ["template_differs"]
