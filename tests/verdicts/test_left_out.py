"""Attacks that could not be run, and the control's rate beside a candidate's own: neither lets a
weak battery look strong.
"""

import pytest

from helpers.factory import BREAKS, RESISTS, Make
from titer.verdicts import judge

GONE = {"attack": "lora_sft", "reason": "no layer that it could change"}


def judged(left_out, second=None):
    make = Make(
        attacks={"full_sft": {}, "lora_sft": {}} if left_out[0].get("candidate") else None,
        resistance={"left_out": left_out},
    )
    for label in (a.label for a in make.study.resistance.attacks):
        make.attack("none", label, BREAKS)
        if label == "full_sft" or second is not None:
            make.attack("defended", label, RESISTS if label == "full_sft" else second)
    verdict = judge(make.view())
    return verdict, verdict.candidates[0].resistance


def test_an_attack_only_the_candidate_refuses_bars_holds_and_leaves_the_others_their_findings():
    verdict, found = judged([{**GONE, "candidate": "defended"}])
    assert verdict.status == "complete"
    assert found.status == "inconclusive" and found.titer_lower is None
    assert {a.attack: a.status for a in found.attacks} == {
        "full_sft": "holds",
        "lora_sft": "inconclusive",
    }
    said = [sentence for sentence in found.missing if "lora_sft" in sentence]
    assert any("no layer that it could change" in sentence for sentence in said)
    assert not any("finish the run" in sentence for sentence in said)


def test_without_it_on_any_model_the_claim_is_about_the_rest_of_the_battery():
    _, found = judged([GONE])
    assert found.status == "holds" and [a.attack for a in found.attacks] == ["full_sft"]


@pytest.mark.parametrize(("at_the_controls", "status"), [(RESISTS, "holds"), (BREAKS, "fails")])
def test_a_candidate_confirmed_at_two_rates_must_resist_at_both(at_the_controls, status):
    make = Make(attacks={"full_sft": {}})
    make.attack("none", "full_sft", BREAKS, point={"lr": 1e-3})
    make.attack("defended", "full_sft", RESISTS, point={"lr": 1e-5})
    make.attack("defended", "full_sft", at_the_controls, point={"lr": 1e-3})
    found = judge(make.view()).candidates[0].resistance
    assert found.status == status and found.attacks[0].n == 5
