"""Cells that wait for a search: which are planned when, and with what."""

import pytest

from helpers.planned import (
    GENERALIZATION,
    TRAINABILITY,
    digests,
    planned,
    record,
    roles,
)
from titer.engine.planning import resistance

SEARCHED = {
    "attack": "full_sft",
    "settings": {"batch_size": 16},
    "search": {"lr": [1e-4, 1e-3, 1e-2]},
}


def test_confirmation_waits_for_the_search(study):
    first = planned(study({"attacks": [SEARCHED]}))
    assert not first.complete and not roles(first, "attack")
    searches = roles(first, "search")
    assert len(searches) == 2 * 3 * 2
    for p, r in searches:
        assert r.point == {"lr": p.cell.method.settings["lr"]} and r.seed in (11, 12)
        # the search sees no prompt that judges
        assert [(m.label, m.text.part) for m in p.cell.measures] == [("harm", "harm/search")]


def found_by_search(first, cheapest):
    """Records of all search cells; for each candidate the point `cheapest[candidate]` breaks
    soonest.
    """
    known = {}
    for p, r in roles(first, "search"):
        quick = r.point == {"lr": cheapest[r.candidate]}
        known[p.digest] = record(p.cell, (0, 0.9, 0.9, 0.9, 0.9) if quick else (0, 0, 0, 0, 0.9))
    return known


CHEAPEST = {"none": 1e-2, "refusal": 1e-4}


def test_confirmation_appears_with_the_point_found_for_each_candidate(study):
    spec = study({"attacks": [SEARCHED]})
    first = planned(spec)
    second = planned(spec, found_by_search(first, CHEAPEST).get)
    assert second.complete
    assert set(digests(first)) < set(digests(second))
    chosen = {r.candidate: p.cell.method.settings["lr"] for p, r in roles(second, "attack")}
    assert chosen == CHEAPEST
    for _, r in roles(second, "attack"):
        assert r.point == {"lr": chosen[r.candidate]} and r.seed in (1, 2)


def test_one_missing_search_record_holds_back_one_candidate(study):
    spec = study({"attacks": [SEARCHED]})
    first = planned(spec)
    known = found_by_search(first, CHEAPEST)
    del known[digests(first, "search", candidate="refusal")[-1]]
    second = planned(spec, known.get)
    assert not second.complete and {r.candidate for _, r in roles(second, "attack")} == {"none"}


def test_generalization_uses_the_point_that_was_found(study):
    spec = study({"attacks": [SEARCHED]}, generalization=GENERALIZATION)
    first = planned(spec)
    assert not roles(first, "generalization")
    # What is built is known before any search is done.
    assert {r.defended_on for _, r in roles(first, "defense")} == {"", "first", "second"}
    second = planned(spec, found_by_search(first, CHEAPEST).get)
    assert {
        (r.candidate, p.cell.method.settings["lr"], r.point["lr"])
        for p, r in roles(second, "generalization")
    } == {("none", 1e-2, 1e-2), ("refusal", 1e-4, 1e-4)}


def test_the_trainability_recipe_is_searched_for_each_candidate(study):
    spec = study(trainability=TRAINABILITY | {"search": {"lr": [1e-4, 1e-3]}, "search_seeds": [1]})
    first = planned(spec)
    assert not first.complete and not roles(first, "trainability")
    known = {}
    for p, r in roles(first, "trainability_search"):
        best = r.point == {"lr": {"none": 1e-4, "refusal": 1e-3}[r.candidate]}
        known[p.digest] = record(p.cell, (0, 0, 0, 0.9 if best else 0.1), "task", higher="capable")
        assert p.cell.measures[0].text.part == "harm/search"
    second = planned(spec, known.get)
    assert second.complete
    assert {r.candidate: r.point["lr"] for _, r in roles(second, "trainability")} == {
        "none": 1e-4,
        "refusal": 1e-3,
    }
    assert {p.cell.measures[0].text.part for p, _ in roles(second, "trainability")} == {
        "harmless/capability"
    }


def test_the_facts_of_a_searched_attack_are_those_of_the_point(study):
    """Where the schedule itself is searched, what is confirmed follows the one that was chosen."""
    searched = SEARCHED | {"search": {"schedule": ["constant", "cosine"]}}
    spec = study({"attacks": [searched]}, candidates=["none"])
    first = planned(spec)
    free = {r.point["schedule"]: p.facts.horizon_free for p, r in roles(first, "search")}
    assert free == {"constant": True, "cosine": False}
    known = {
        p.digest: record(p.cell, (0, 0.9 if r.point["schedule"] == "cosine" else 0, 0, 0, 0.9))
        for p, r in roles(first, "search")
    }
    confirmed = roles(planned(spec, known.get), "attack", seed=1)
    assert [r.prefix_budget for _, r in confirmed] == [1, 2, 4, 8]


class Halving:
    """Asks for the two ends of what may be tried, then for the middle: what a search that adapts
    does. Knows nothing but the history.
    """

    def __init__(self, rank):
        self.rank = rank

    def ask(self, space, history):
        ((name, values),) = space.items()
        if not history:
            return [{name: values[0]}, {name: values[-1]}]
        return [{name: values[len(values) // 2]}] if len(history) == 2 else []

    def best(self, history):
        return min(history, key=self.rank).point


@pytest.mark.parametrize("best", [1e-4, 1e-3, 1e-2])
def test_a_search_may_ask_again_given_what_it_found(study, monkeypatch, best):
    """Planning is repeated: each time the search is asked from the beginning, and goes as far as
    the records do.
    """
    monkeypatch.setattr(resistance, "Grid", Halving)
    spec = study({"attacks": [SEARCHED]}, candidates=["none"])

    def tried(plan):
        return [r.point["lr"] for _, r in roles(plan, "search", seed=11)]

    def known(plan):
        return found_by_search(plan, {"none": best})

    first = planned(spec)
    assert tried(first) == [1e-4, 1e-2] and not first.complete
    half = known(first)
    del half[digests(first, "search")[-1]]
    assert planned(spec, half.get) == first
    second = planned(spec, known(first).get)
    assert tried(second) == [1e-4, 1e-2, 1e-3] and not second.complete
    assert not roles(second, "attack")
    third = planned(spec, known(second).get)
    assert third.complete and set(digests(second)) < set(digests(third))
    assert {r.point["lr"] for _, r in roles(third, "attack")} == {best}


# -- no candidate gets less than the control ------------------------------------------------------


def searched(spec, harm):
    """Records of all search cells, by what each candidate shows at each learning rate."""
    return {
        p.digest: record(p.cell, harm[r.candidate][r.point["lr"]])
        for p, r in roles(planned(spec), "search")
    }


NEVER, LATE, SOON = (0, 0, 0, 0, 0), (0, 0, 0, 0, 0.9), (0, 0.9, 0.9, 0.9, 0.9)
CONTROL = {1e-4: NEVER, 1e-3: SOON, 1e-2: LATE}


@pytest.mark.parametrize(
    ("declared", "refusal", "confirmed"),
    [
        # Ties go to the first declared: the weakest rate, which does not break the control either.
        (False, dict.fromkeys(CONTROL, NEVER), {1e-4}),
        (True, dict.fromkeys(CONTROL, NEVER), {1e-4, 1e-3}),
        (True, {1e-4: NEVER, 1e-3: (0, 0, 0, 0, 0.2), 1e-2: NEVER}, {1e-3}),
        (True, {1e-4: NEVER, 1e-3: NEVER, 1e-2: LATE}, {1e-2}),
    ],
)
def test_what_no_rate_breaks_meets_the_controls_rate_too(study, declared, refusal, confirmed):
    spec = study({"attacks": [{**SEARCHED, "control_point": declared}]})
    second = planned(spec, searched(spec, {"none": CONTROL, "refusal": refusal}).get)
    found = {"none": set(), "refusal": set()}
    for p, r in roles(second, "attack"):
        assert r.point == {"lr": p.cell.method.settings["lr"]}
        found[r.candidate].add(r.point["lr"])
    assert second.complete and found == {"none": {1e-3}, "refusal": confirmed}


def test_the_controls_rate_waits_for_the_candidates_own_search(study):
    """Or it would be planned for candidates that turn out to be broken."""
    spec = study({"attacks": [{**SEARCHED, "control_point": True}]})
    known = searched(spec, {"none": CONTROL, "refusal": dict.fromkeys(CONTROL, NEVER)})
    del known[digests(planned(spec), "search", candidate="refusal")[-1]]
    second = planned(spec, known.get)
    assert not second.complete and {r.candidate for _, r in roles(second, "attack")} == {"none"}


def test_an_attack_left_out_for_a_candidate_is_planned_for_the_others_alone(study):
    gone = {"attack": "full_sft", "candidate": "refusal", "reason": "it does not fit"}
    spec = study({"attacks": [SEARCHED], "left_out": [gone]})
    assert {r.candidate for _, r in roles(planned(spec), "search")} == {"none"}
    second = planned(spec, searched(spec, {"none": CONTROL}).get)
    assert second.complete and {r.candidate for _, r in roles(second, "attack")} == {"none"}


def test_samples_are_read_at_both_ends_of_the_first_seed_alone(study):
    samples = {"measure": "compliance_generated", "part": "harm/judge", "limit": 2}
    for _, role, cell in (
        (p, r, p.cell) for p, r in roles(planned(study({"samples": samples})), "attack")
    ):
        kept = [m for m in cell.measures if m.label == "samples"]
        assert [(m.at, m.text.examples) for m in kept] == [("ends", 2)] * (role.seed == 1)


def test_new_fields_change_no_study_that_does_not_use_them(study):
    body = study().model_dump(mode="json")["resistance"]
    assert not {"samples", "left_out"} & body.keys() and "control_point" not in body["attacks"][0]
