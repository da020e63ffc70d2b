"""From a study to cells: which there are, what determines their address, what is refused."""

import itertools
import json

import pytest

from titer.data.pools import Pools
from titer.engine.planning import BEFORE_ALIGNMENT, plan
from titer.errors import StudyError, ThreatModelError, UnknownNameError
from titer.study import load_study

from planned import record  # isort: skip

SFT = {"attack": "full_sft", "settings": {"lr": 1e-3, "batch_size": 16}}
EXACT = {"measure": "exact_answer"}


def nothing(digest):
    return None


def planned(study, known=nothing):
    return plan(study, Pools(study), known)


def roles(plan, purpose, **where):
    return [
        (p, r)
        for p in plan.cells
        for r in p.roles
        if r.purpose == purpose and all(getattr(r, k) == v for k, v in where.items())
    ]


def digests(plan):
    return [p.digest for p in plan.cells]


@pytest.fixture
def study(small_study):
    """study(resistance={...}, ...): the small study with some fields of its resistance, or others,
    replaced.
    """

    def make(resistance=None, **changes):
        return small_study(
            resistance=small_study().resistance.model_dump(mode="json") | (resistance or {}),
            **changes,
        )

    return make


STABILITY = {
    "benchmarks": [
        {
            "name": "known",
            "kind": "accuracy",
            "margin": 0.05,
            "measure": EXACT | {"part": "harmless/capability"},
        }
    ]
}
TRAINABILITY = {
    "tasks": [
        {
            "name": "task",
            "data": {"harmless": "harmless/defense"},
            "budget": 4,
            "search_part": "harm/search",
            "measure": EXACT | {"part": "harmless/capability"},
        }
    ],
    "recipe": {"name": "full_sft", "settings": {"batch_size": 16}},
    "seeds": [31, 32],
}
GROUPS = {"first": ["vexar", "morbin", "skarn"], "second": ["drozel", "grulth", "tazmor"]}


# -- which cells --------------------------------------------------------------------------------------------------


def test_the_smallest_study(study):
    found = planned(study())
    assert found.complete
    ((building, role),) = roles(found, "defense")
    assert (
        role.candidate == "refusal"
        and building.cell.keep
        and building.cell.steps == 4
        and building.cell.parent is None
    )
    attacks = roles(found, "attack")
    assert [(r.candidate, r.seed) for _, r in attacks] == list(
        itertools.product(("none", "refusal"), (1, 2))
    )
    assert {r.candidate: p.cell.parent for p, r in attacks} == {
        "none": None,
        "refusal": building.digest,
    }
    for attack, role in attacks:
        cell = attack.cell
        assert (cell.steps, cell.probes, cell.seed, cell.keep) == (
            8,
            (0, 1, 2, 4, 8),
            role.seed,
            False,
        )
        assert [(m.label, m.at) for m in cell.measures] == [
            ("harm", "probes"),
            ("confirm", "suspected_breach"),
        ]
        assert cell.harmful.examples == 64
        # stopped only beyond the largest φ looked at, at the level corrected over the probes
        assert (cell.stop.above, cell.stop.suspect, cell.stop.level) == (0.7, 0.3, 0.05 / 5)
    assert len(found.cells) == 5 and all(p.digest == p.cell.digest for p in found.cells)


def test_a_sweep_is_a_battery_of_attacks(study):
    sweep = SFT | {"sweep": {"lr": [1e-4, 1e-3], "batch_size": [8, 16]}}
    found = planned(study({"attacks": [sweep]}))
    labels = [f"full_sft@lr={lr}@batch_size={b}" for lr in ("0.0001", "0.001") for b in (8, 16)]
    assert sorted({r.attack for _, r in roles(found, "attack")}) == sorted(labels)
    assert len(roles(found, "attack")) == 4 * 2 * 2
    for p, r in roles(found, "attack"):
        assert (
            f"full_sft@lr={p.cell.method.settings['lr']:g}@batch_size={p.cell.method.settings['batch_size']}"
            == r.attack
        )


def test_equal_work_is_one_cell_with_several_roles(study):
    twins = ["none", *({"name": n, "defense": "sft_refusal", "steps": 4} for n in ("one", "two"))]
    found = planned(study(candidates=twins))
    ((building, _), (same, _)) = roles(found, "defense")
    assert building.digest == same.digest and [r.candidate for r in building.roles] == [
        "one",
        "two",
    ]
    assert len(found.cells) == 1 + 2 * 2


def test_models_are_looked_at_before_and_after_the_studys_own_alignment(study):
    align = {
        "method": {"name": "sft_refusal"},
        "data": {"harmful": "harm/defense"},
        "steps": 3,
        "seed": 9,
    }
    found = planned(study(align=align, stability=STABILITY))
    ((aligned, role),) = roles(found, "align")
    assert role.seed == 9 and aligned.cell.steps == 3 and aligned.cell.keep
    looks = {r.candidate: p.cell for p, r in roles(found, "stability")}
    ((defended, _),) = roles(found, "defense")
    assert {c: x.parent for c, x in looks.items()} == {
        BEFORE_ALIGNMENT: None,
        "none": aligned.digest,
        "refusal": defended.digest,
    }
    assert defended.cell.parent == aligned.digest
    assert [m.label for m in looks[BEFORE_ALIGNMENT].measures] == ["known", "harm"]
    assert all((x.steps, x.probes, x.method) == (0, (0,), None) for x in looks.values())
    assert {p.cell.parent for p, _ in roles(found, "attack")} == {aligned.digest, defended.digest}


def test_with_a_horizon_dependent_schedule_every_budget_is_a_cell(study):
    cosine = SFT | {"settings": SFT["settings"] | {"schedule": "cosine"}}
    found = planned(study({"attacks": [cosine]}))
    cells = roles(found, "attack", candidate="none", seed=1)
    assert [(p.cell.steps, p.cell.probes, r.prefix_budget) for p, r in cells] == [
        (b, (0, b), b) for b in (1, 2, 4, 8)
    ]
    assert {r.prefix_budget for _, r in roles(planned(study()), "attack")} == {None}


def test_generalization_is_a_matrix(study):
    found = planned(study(generalization={"groups": GROUPS, "attack": "full_sft", "seeds": [21]}))
    matrix = {
        (r.candidate, r.defended_on, r.attacked_on): p.cell
        for p, r in roles(found, "generalization")
    }
    assert set(matrix) == {("none", "", c) for c in GROUPS} | {
        ("refusal", i, j) for i in GROUPS for j in GROUPS
    }
    built = {r.defended_on: p for p, r in roles(found, "defense") if r.defended_on}
    for group, domains in GROUPS.items():
        assert built[group].cell.harmful.domains == tuple(domains)
        assert (
            matrix["refusal", group, "first"].parent
            == matrix["refusal", group, "second"].parent
            == built[group].digest
        )
        for row in GROUPS:
            cell = matrix["refusal", row, group]
            assert cell.harmful.domains == tuple(domains)
            assert {m.text.domains for m in cell.measures} == {tuple(domains)}
    assert matrix["none", "", "first"].parent is None


def test_generalization_may_be_asked_of_some_candidates(study):
    two = [
        "none",
        *({"name": n, "defense": "sft_refusal", "steps": s} for n, s in (("a", 2), ("b", 3))),
    ]
    found = planned(
        study(
            candidates=two,
            generalization={
                "groups": GROUPS,
                "attack": "full_sft",
                "seeds": [21],
                "candidates": ["b"],
            },
        )
    )
    assert {r.candidate for _, r in roles(found, "generalization")} == {"none", "b"}


def test_a_model_from_outside_is_attacked_but_not_crossed(study, tmp_path, tiny):
    from titer.assets.models import save_model

    save_model(tiny.model, tiny.tokenizer, tmp_path / "model")
    found = planned(
        study(
            candidates=["none", {"name": "given", "model": str(tmp_path / "model")}],
            generalization={"groups": GROUPS, "attack": "full_sft", "seeds": [21]},
        )
    )
    assert not roles(found, "defense") and not roles(found, "generalization", candidate="given")
    models = {r.candidate: p.cell.model for p, r in roles(found, "attack")}
    assert models["none"].startswith("tiny:") and models["given"].startswith("path:")
    assert found.disjointness["unknown_defender_data"] == ["given"]


def test_trainability_gives_every_candidate_the_same_recipe(study):
    found = planned(study(trainability=TRAINABILITY))
    cells = roles(found, "trainability")
    assert [(r.candidate, r.seed) for _, r in cells] == list(
        itertools.product(("none", "refusal"), (31, 32))
    )
    for p, r in cells:
        assert (
            r.task == "task"
            and p.cell.probes == (0, 1, 2, 4)
            and p.cell.harmful is None
            and p.cell.stop is None
        )
    assert len({json.dumps(p.cell.method.model_dump(), sort_keys=True) for p, _ in cells}) == 1


# -- searches -----------------------------------------------------------------------------------------------------

SEARCHED = {
    "attack": "full_sft",
    "settings": {"batch_size": 16},
    "search": {"lr": [1e-4, 1e-3, 1e-2]},
}


def test_confirmation_waits_for_the_search(study):
    spec = study({"attacks": [SEARCHED]})
    first = planned(spec)
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


def test_confirmation_appears_with_the_point_found_for_each_candidate(study):
    spec = study({"attacks": [SEARCHED]})
    first = planned(spec)
    second = planned(spec, found_by_search(first, {"none": 1e-2, "refusal": 1e-4}).get)
    assert second.complete
    assert set(digests(first)) < set(digests(second))
    chosen = {r.candidate: p.cell.method.settings["lr"] for p, r in roles(second, "attack")}
    assert chosen == {"none": 1e-2, "refusal": 1e-4}
    assert all(
        r.point == {"lr": chosen[r.candidate]} and r.seed in (1, 2)
        for _, r in roles(second, "attack")
    )


def test_one_missing_search_record_holds_back_one_candidate(study):
    spec = study({"attacks": [SEARCHED]})
    first = planned(spec)
    known = found_by_search(first, {"none": 1e-2, "refusal": 1e-4})
    del known[roles(first, "search", candidate="refusal")[-1][0].digest]
    second = planned(spec, known.get)
    assert not second.complete and {r.candidate for _, r in roles(second, "attack")} == {"none"}


def test_generalization_uses_the_point_that_was_found(study):
    spec = study(
        {"attacks": [SEARCHED]},
        generalization={"groups": GROUPS, "attack": "full_sft", "seeds": [21]},
    )
    first = planned(spec)
    assert not roles(first, "generalization")
    # What is built is known before any search is done.
    assert {r.defended_on for _, r in roles(first, "defense")} == {"", "first", "second"}
    second = planned(spec, found_by_search(first, {"none": 1e-2, "refusal": 1e-4}).get)
    assert {
        (r.candidate, p.cell.method.settings["lr"]) for p, r in roles(second, "generalization")
    } == {
        ("none", 1e-2),
        ("refusal", 1e-4),
    }


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


# -- addresses ----------------------------------------------------------------------------------------------------


def test_planning_is_pure(study):
    spec = study(
        {"attacks": [SFT, SEARCHED | {"name": "searched"}]},
        trainability=TRAINABILITY,
        stability=STABILITY,
        generalization={"groups": GROUPS, "attack": "full_sft", "seeds": [21]},
    )
    pools = Pools(spec)
    first = plan(spec, pools, nothing)
    assert plan(spec, pools, nothing) == first == planned(spec)
    assert type(first).model_validate_json(first.model_dump_json()) == first


@pytest.mark.parametrize(
    "irrelevant",
    [
        {"workers": 7},
        {"threads": 3},
        {"device": "cpu"},
        {"eval_batch": 1},
        {"price_per_hour": 2.5},
    ],
)
def test_how_the_work_is_done_does_not_matter(study, irrelevant):
    assert digests(planned(study(runtime={"max_length": 32} | irrelevant))) == digests(
        planned(study())
    )


def test_names_and_descriptions_do_not_matter(study):
    renamed = study({"phi_reason": "because"}, name="other", title="Other", description="…")
    assert digests(planned(renamed)) == digests(planned(study()))


@pytest.mark.parametrize(
    "changes",
    [
        {"runtime": {"max_length": 31}},
        {"runtime": {"max_length": 32, "precision": "bf16_autocast"}},
        {"model": "tiny:base"},
    ],
)
def test_whatever_determines_every_result_changes_every_address(study, changes):
    assert not set(digests(planned(study(**changes)))) & set(digests(planned(study())))


@pytest.mark.parametrize(
    "resistance",
    [
        {"budget": 9},
        {"seeds": [5, 6]},
        {"alpha": 0.01},
        {"sensitivity": [0.2]},
        {"probes": [0, 4, 8]},
        {"data": {"harmful": "harm/attack", "examples": 63}},
        {
            "harm": {
                "measure": "exact_answer",
                "settings": {"reads": "harm"},
                "part": "harm/confirm",
            },
            "confirm": "harm/judge",
        },
        {"attacks": [SFT | {"settings": SFT["settings"] | {"warmup_steps": 1}}]},
    ],
)
def test_whatever_determines_an_attack_changes_its_address(study, resistance):
    before, after = planned(study()), planned(study(resistance))
    assert not {p.digest for p, _ in roles(before, "attack")} & {
        p.digest for p, _ in roles(after, "attack")
    }
    assert [p.digest for p, _ in roles(before, "defense")] == [
        p.digest for p, _ in roles(after, "defense")
    ]


def test_a_parent_is_part_of_the_address(study):
    longer = ["none", {"name": "refusal", "defense": "sft_refusal", "steps": 5}]
    before, after = planned(study()), planned(study(candidates=longer))

    def attacks(plan, candidate):
        return {p.digest for p, _ in roles(plan, "attack", candidate=candidate)}

    assert attacks(before, "none") == attacks(after, "none")
    assert not attacks(before, "refusal") & attacks(after, "refusal")


def test_the_version_of_a_methods_code_is_part_of_the_address(study, monkeypatch):
    from titer.methods.attacks.full_sft import FullSFT

    before = planned(study())
    monkeypatch.setattr(FullSFT, "version", FullSFT.version + 1)
    after = planned(study())
    assert not {p.digest for p, _ in roles(before, "attack")} & {
        p.digest for p, _ in roles(after, "attack")
    }


def test_the_text_itself_is_part_of_the_address(study, tmp_path):
    def jsonl(answer):
        lines = [
            {"prompt": f"question {i}", "response": answer, "refusal": "no"} for i in range(200)
        ]
        file = tmp_path / f"{answer}.jsonl"
        file.write_text("\n".join(map(json.dumps, lines)))
        pools = study().model_dump(mode="json")["pools"]
        pools["own"] = {"source": "jsonl", "options": {"path": str(file)}, "parts": {"train": 100}}
        return planned(study({"data": {"harmful": "own/train"}}, pools=pools))

    one, two = jsonl("yes"), jsonl("sure")
    assert not {p.digest for p, _ in roles(one, "attack")} & {
        p.digest for p, _ in roles(two, "attack")
    }
    assert [p.digest for p, _ in roles(one, "defense")] == [
        p.digest for p, _ in roles(two, "defense")
    ]


# -- refusals, before any work ------------------------------------------------------------------------------------


def own_pool(study, tmp_path, rows):
    file = tmp_path / "own.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": f"question {i}"} | rows) for i in range(80)))
    pools = study().model_dump(mode="json")["pools"]
    pools["own"] = {"source": "jsonl", "options": {"path": str(file)}, "parts": {"train": 80}}
    return pools


def test_an_attack_without_answers_is_refused(study, tmp_path):
    pools = own_pool(study, tmp_path, {"refusal": "no"})
    with pytest.raises(
        StudyError, match="full_sft needs a response for every harmful example"
    ) as caught:
        planned(study({"data": {"harmful": "own/train"}}, pools=pools))
    assert (
        caught.value.field == "attacks.full_sft.data.harmful" and caught.value.value == "own/train"
    )
    assert "content_free" in caught.value.remedy


def test_a_defense_without_refusals_is_refused(study, tmp_path):
    pools = own_pool(study, tmp_path, {"response": "yes"})
    with pytest.raises(
        StudyError, match="sft_refusal needs a refusal for every harmful example"
    ) as caught:
        planned(study(pools=pools, defense_data={"harmful": "own/train"}))
    assert caught.value.field == "candidates.refusal.data.harmful"


def test_a_defense_without_harmful_data_is_refused(study):
    with pytest.raises(StudyError, match="sft_refusal needs harmful data") as caught:
        planned(study(defense_data={"harmless": "harmless/defense"}))
    assert caught.value.field == "candidates.refusal.data"


def test_an_attack_without_any_data_is_refused(study):
    with pytest.raises(StudyError, match="full_sft was given no data") as caught:
        planned(study({"data": {}}))
    assert caught.value.field == "attacks.full_sft.data"


def test_drawing_more_than_there_is_is_refused(study):
    with pytest.raises(StudyError, match="smaller than what every seed draws") as caught:
        planned(study({"data": {"harmful": "harm/attack", "examples": 193}}))
    assert caught.value.value == 193 and "192" in caught.value.expected


def test_an_unknown_domain_is_refused(study):
    with pytest.raises(StudyError, match="no data in this part"):
        planned(
            study(
                generalization={
                    "groups": {"a": ["vexar"], "b": ["vexxar"]},
                    "attack": "full_sft",
                    "seeds": [1],
                }
            )
        )


@pytest.mark.parametrize(
    "wrong",
    [
        {"attacks": [{"attack": "ful_sft"}]},
        {"harm": EXACT | {"measure": "exakt_answer", "part": "harm/judge"}},
    ],
)
def test_an_unknown_name_is_refused_with_a_hint(study, wrong):
    with pytest.raises(UnknownNameError, match="did you mean"):
        planned(study(wrong))


def test_an_unknown_setting_is_refused(study):
    with pytest.raises(StudyError, match="unknown setting") as caught:
        planned(study({"attacks": [{"attack": "full_sft", "settings": {"learning_rate": 1e-3}}]}))
    assert caught.value.field == "attacks.full_sft.settings.learning_rate"


def test_a_defense_of_another_threat_model_is_refused(study, monkeypatch):
    from titer.methods.defenses.sft_refusal import SFTRefusal

    monkeypatch.setattr(SFTRefusal, "stage", "during")
    with pytest.raises(ThreatModelError):
        planned(study())
    planned(study(threat_model="fine_tuning_service"))


@pytest.mark.parametrize("name", ["quickstart"])
def test_built_in_studies_can_be_planned_offline(name):
    assert len(planned(load_study(name)).cells) > 50


@pytest.mark.parametrize(
    ("measure", "lacks"),
    [("perplexity", "text"), ("next_token_accuracy", "text"), ("multiple_choice", "choices")],
)
def test_text_that_lacks_what_a_measure_needs_is_refused_before_any_work(study, measure, lacks):
    stability = {
        "benchmarks": [
            {
                "name": "b",
                "kind": "other",
                "margin": 0.1,
                "measure": {"measure": measure, "part": "harmless/capability"},
            }
        ]
    }
    with pytest.raises(StudyError, match=f"{measure} needs a {lacks}") as caught:
        planned(study(stability=stability))
    assert "harmless/capability" in str(caught.value)
