"""From a study to cells: which there are, what determines their address, what is refused."""

import itertools
import json

import pytest

from helpers.planned import (
    EXACT,
    GENERALIZATION,
    GROUPS,
    SFT,
    STABILITY,
    TRAINABILITY,
    digests,
    nothing,
    planned,
    roles,
)
from titer.data.pools import Pools
from titer.engine.planning import plan
from titer.engine.planning.pieces import located
from titer.errors import StudyError, UnknownNameError
from titer.study import load_study
from titer.study.cell import BEFORE_ALIGNMENT

# -- which cells ----------------------------------------------------------------------------------


def test_the_smallest_study(study):
    found = planned(study())
    assert found.complete
    ((building, role),) = roles(found, "defense")
    assert role.candidate == "refusal" and role.stage == 0 and role.defense_seed is None
    assert (building.cell.keep, building.cell.steps, building.cell.parent) == (True, 4, None)
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
        assert (cell.steps, cell.probes, cell.flops) == (8, (0, 1, 2, 4, 8), None)
        assert (cell.seed, cell.keep, cell.host, cell.models) == (role.seed, False, None, {})
        assert [(m.label, m.at) for m in cell.measures] == [
            ("harm", "probes"),
            ("confirm", "suspected_breach"),
        ]
        assert set(cell.texts) == {"harmful"} and cell.texts["harmful"].examples == 64
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
        settings = p.cell.method.settings
        assert r.attack == f"full_sft@lr={settings['lr']:g}@batch_size={settings['batch_size']}"


def test_equal_work_is_one_cell_with_several_roles(study):
    twins = ["none", *({"name": n, "defense": "sft_refusal", "steps": 4} for n in ("one", "two"))]
    found = planned(study(candidates=twins))
    ((building, _), (same, _)) = roles(found, "defense")
    assert building.digest == same.digest
    assert [r.candidate for r in building.roles] == ["one", "two"]
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


def test_what_alignment_did_is_shown_without_benchmarks_too(study):
    align = {"method": "sft_refusal", "data": {"harmful": "harm/defense"}, "steps": 3}
    ((look, role),) = roles(planned(study(align=align)), "stability")
    assert role.candidate == BEFORE_ALIGNMENT and [m.label for m in look.cell.measures] == ["harm"]


def test_with_a_horizon_dependent_schedule_every_budget_is_a_cell(study):
    cosine = SFT | {"settings": SFT["settings"] | {"schedule": "cosine"}}
    found = planned(study({"attacks": [cosine]}))
    cells = roles(found, "attack", candidate="none", seed=1)
    assert [(p.cell.steps, p.cell.probes, r.prefix_budget) for p, r in cells] == [
        (b, (0, b), b) for b in (1, 2, 4, 8)
    ]
    assert {r.prefix_budget for _, r in roles(planned(study()), "attack")} == {None}


def test_generalization_is_a_matrix(study):
    found = planned(study(generalization=GENERALIZATION))
    matrix = {
        (r.candidate, r.defended_on, r.attacked_on): p.cell
        for p, r in roles(found, "generalization")
    }
    assert set(matrix) == {("none", "", c) for c in GROUPS} | {
        ("refusal", i, j) for i in GROUPS for j in GROUPS
    }
    built = {r.defended_on: p for p, r in roles(found, "defense") if r.defended_on}
    for group, domains in GROUPS.items():
        assert built[group].cell.texts["harmful"].domains == tuple(domains)
        for column in GROUPS:
            assert matrix["refusal", group, column].parent == built[group].digest
        for row in GROUPS:
            cell = matrix["refusal", row, group]
            assert cell.texts["harmful"].domains == tuple(domains)
            assert {m.text.domains for m in cell.measures} == {tuple(domains)}
    assert matrix["none", "", "first"].parent is None


def test_generalization_may_be_asked_of_some_candidates(study):
    two = [
        "none",
        *({"name": n, "defense": "sft_refusal", "steps": s} for n, s in (("a", 2), ("b", 3))),
    ]
    found = planned(study(candidates=two, generalization=GENERALIZATION | {"candidates": ["b"]}))
    assert {r.candidate for _, r in roles(found, "generalization")} == {"none", "b"}


def test_a_model_from_outside_is_attacked_but_not_crossed(study, tmp_path, tiny):
    from titer.assets.saving import save_model

    save_model(tiny.model, tiny.tokenizer, tmp_path / "model")
    given = {"name": "given", "model": str(tmp_path / "model")}
    found = planned(study(candidates=["none", given], generalization=GENERALIZATION))
    assert not roles(found, "defense") and not roles(found, "generalization", candidate="given")
    models = {r.candidate: p.cell.model for p, r in roles(found, "attack")}
    assert models["none"].startswith("tiny:") and models["given"].startswith("path:")
    assert found.disjointness["unknown_defender_data"] == ["given"]
    # It is looked at in any case, beside the control: its record tells what was loaded.
    ((look, _),) = roles(found, "stability")
    assert set(look.models) == {"control"} and look.cell.measures == ()


def test_trainability_gives_every_candidate_the_same_recipe(study):
    found = planned(study(trainability=TRAINABILITY))
    cells = roles(found, "trainability")
    assert [(r.candidate, r.seed) for _, r in cells] == list(
        itertools.product(("none", "refusal"), (31, 32))
    )
    for p, r in cells:
        assert r.task == "task" and p.cell.probes == (0, 1, 2, 4)
        assert set(p.cell.texts) == {"harmless"} and p.cell.stop is None
    assert len({json.dumps(p.cell.method.model_dump(), sort_keys=True) for p, _ in cells}) == 1


# -- budgets and facts of each attack -------------------------------------------------------------


def test_an_attack_may_have_a_budget_of_its_own(study):
    attacks = [
        SFT,
        {"attack": "lora_sft", "budget": 4},
        {"attack": "weight_noise", "budget": {"flops": 1e9, "steps": 6}},
    ]
    found = planned(study({"attacks": attacks}))
    budgets = {r.attack: p.cell for p, r in roles(found, "attack")}
    assert {a: (c.steps, c.flops, c.probes) for a, c in budgets.items()} == {
        "full_sft": (8, None, (0, 1, 2, 4, 8)),
        "lora_sft": (4, None, (0, 1, 2, 4)),
        "weight_noise": (6, 1e9, (0, 1, 2, 4, 6)),
    }
    # The level is corrected over the probes the attack has.
    assert {a: c.stop.level for a, c in budgets.items()} == {
        "full_sft": 0.05 / 5,
        "lora_sft": 0.05 / 4,
        "weight_noise": 0.05 / 5,
    }


def test_probes_that_are_named_end_with_the_budget_of_the_attack(study):
    shorter = SFT | {"name": "shorter", "budget": 4}
    found = planned(study({"attacks": [SFT, shorter], "probes": [0, 3, 6, 8]}))
    assert {r.attack: p.cell.probes for p, r in roles(found, "attack")} == {
        "full_sft": (0, 3, 6, 8),
        "shorter": (0, 3, 4),
    }


def test_a_budget_of_its_own_is_that_of_the_search_too(study):
    searched = {"attack": "full_sft", "search": {"lr": [1e-3, 1e-4]}, "budget": 4}
    found = planned(study({"attacks": [searched]}))
    assert {p.cell.steps for p, _ in roles(found, "search")} == {4}


@pytest.mark.parametrize("order", [["constant", "cosine"], ["cosine", "constant"]])
def test_each_cell_has_the_facts_of_its_own_settings(study, order):
    """Two uses of one method differ in what is true of them, whichever is planned last."""
    found = planned(study({"attacks": [SFT | {"sweep": {"schedule": order}}]}))
    free = {r.attack: p.facts.horizon_free for p, r in roles(found, "attack")}
    assert free == {"full_sft@schedule=constant": True, "full_sft@schedule=cosine": False}
    prefixes = {r.attack: r.prefix_budget is None for _, r in roles(found, "attack")}
    assert prefixes == free


def test_facts_are_those_of_the_text_too(study):
    both = SFT | {
        "name": "mixed",
        "data": {"harmful": "harm/attack", "harmless": "harmless/defense"},
    }
    found = planned(study({"attacks": [SFT, both]}, stability=STABILITY))
    assert {r.attack: p.facts.mixes for p, r in roles(found, "attack")} == {
        "full_sft": False,
        "mixed": True,
    }
    assert {p.facts.kind for p, _ in roles(found, "defense")} == {"defense"}
    assert {p.facts for p, _ in roles(found, "stability")} == {None}


def test_a_role_given_by_the_study_changes_neither_work_nor_declaration(study):
    """It is the study's word, kept in the study; what the method declares stays its own."""
    own = study({"attacks": [SFT | {"role": "reference"}]})
    assert [a.role for a in own.resistance.expanded()] == ["reference"]
    found = planned(own)
    assert digests(found) == digests(planned(study()))
    assert {p.facts.role for p, _ in roles(found, "attack")} == {"attack"}
    swept = study({"attacks": [SFT | {"role": "reference", "sweep": {"lr": [1e-3, 1e-4]}}]})
    assert [a.role for a in swept.resistance.expanded()] == ["reference", "reference"]


# -- addresses ------------------------------------------------------------------------------------


def test_planning_is_pure(study):
    searched = {"attack": "full_sft", "name": "searched", "search": {"lr": [1e-4, 1e-3]}}
    spec = study(
        {"attacks": [SFT, searched]},
        trainability=TRAINABILITY,
        stability=STABILITY,
        generalization=GENERALIZATION,
    )
    pools = Pools(spec)
    first = plan(spec, pools, nothing)
    assert plan(spec, pools, nothing) == first == planned(spec)
    assert type(first).model_validate_json(first.model_dump_json()) == first


def test_models_are_found_where_the_cell_says_what_they_are(study, tmp_path, tiny):
    """`models` of a cell, by content, and of the plan, by name, agree in every cell."""
    from titer.assets.saving import save_model

    save_model(tiny.model, tiny.tokenizer, tmp_path / "model")
    found = planned(
        study(
            candidates=["none", {"name": "given", "model": str(tmp_path / "model")}],
            stability=STABILITY,
            generalization=GENERALIZATION,
        )
    )
    for p in found.cells:
        assert {n: located(s) for n, s in p.models.items()} == p.cell.models
        assert located(p.start) == p.cell.start


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
    other = study(runtime={"max_length": 32} | irrelevant)
    assert digests(planned(other)) == digests(planned(study()))


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
        {"attacks": [SFT | {"budget": {"flops": 1e9, "steps": 8}}]},
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
    assert not set(digests(before, "attack")) & set(digests(after, "attack"))
    assert digests(before, "defense") == digests(after, "defense")


def test_a_parent_is_part_of_the_address(study):
    longer = ["none", {"name": "refusal", "defense": "sft_refusal", "steps": 5}]
    before, after = planned(study()), planned(study(candidates=longer))

    def attacks(plan, candidate):
        return set(digests(plan, "attack", candidate=candidate))

    assert attacks(before, "none") == attacks(after, "none")
    assert not attacks(before, "refusal") & attacks(after, "refusal")


def test_the_version_of_a_methods_code_is_part_of_the_address(study, monkeypatch):
    from titer.methods.attacks.full_sft import FullSFT

    before = planned(study())
    monkeypatch.setattr(FullSFT, "version", FullSFT.version + 1)
    assert not set(digests(before, "attack")) & set(digests(planned(study()), "attack"))


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
    assert not set(digests(one, "attack")) & set(digests(two, "attack"))
    assert digests(one, "defense") == digests(two, "defense")


# -- refusals, before any work --------------------------------------------------------------------


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
    assert caught.value.field == "attacks.full_sft.data.harmful"
    assert caught.value.value == "own/train" and "content_free" in caught.value.remedy


def test_a_defense_without_refusals_is_refused(study, tmp_path):
    pools = own_pool(study, tmp_path, {"response": "yes"})
    with pytest.raises(
        StudyError, match="sft_refusal needs a refusal for every harmful example"
    ) as caught:
        planned(study(pools=pools, defense_data={"harmful": "own/train"}))
    assert caught.value.field == "candidates.refusal.data.harmful"


def test_a_defense_without_harmful_text_is_refused(study):
    with pytest.raises(StudyError, match="sft_refusal needs harmful text") as caught:
        planned(study(defense_data={"harmless": "harmless/defense"}))
    assert caught.value.field == "candidates.refusal.data"


def test_an_attack_without_any_text_is_refused(study):
    with pytest.raises(StudyError, match="full_sft was given no text") as caught:
        planned(study({"data": {}}))
    assert caught.value.field == "attacks.full_sft.data"


def test_drawing_more_than_there_is_is_refused(study):
    with pytest.raises(StudyError, match="smaller than what every seed draws") as caught:
        planned(study({"data": {"harmful": "harm/attack", "examples": 193}}))
    assert caught.value.value == 193 and "192" in caught.value.expected


def test_an_unknown_domain_is_refused(study):
    groups = {"groups": {"a": ["vexar"], "b": ["vexxar"]}}
    with pytest.raises(StudyError, match="no data in this part"):
        planned(study(generalization=GENERALIZATION | groups))


def test_harmful_text_without_a_domain_of_the_group_is_refused(study, tmp_path):
    """An attack on one group must not be trained on all of them."""
    pools = own_pool(study, tmp_path, {"response": "yes", "domain": "vexar"})
    groups = {"groups": {"a": ["vexar"], "b": ["drozel"]}}
    with pytest.raises(StudyError, match="no data in this part") as caught:
        planned(
            study(
                {"data": {"harmful": "own/train"}},
                pools=pools,
                generalization=GENERALIZATION | groups,
            )
        )
    assert caught.value.field == "domains of own/train" and caught.value.value == "drozel"


def test_a_wrong_recipe_is_told_where_it_stands(study):
    wrong = TRAINABILITY | {"recipe": {"name": "full_sft", "settings": {"learning_rate": 1e-3}}}
    with pytest.raises(StudyError, match="unknown setting") as caught:
        planned(study(trainability=wrong))
    assert caught.value.field == "trainability.recipe.settings.learning_rate"
    task = TRAINABILITY["tasks"][0] | {"data": {}}
    with pytest.raises(StudyError, match="full_sft was given no text") as caught:
        planned(study(trainability=TRAINABILITY | {"tasks": [task]}))
    assert caught.value.field == "trainability.task.data"


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


@pytest.mark.parametrize("name", ["quickstart"])
def test_built_in_studies_can_be_planned_offline(name):
    assert len(planned(load_study(name)).cells) > 50


@pytest.mark.parametrize(
    ("measure", "lacks"),
    [("perplexity", "text"), ("next_token_accuracy", "text"), ("multiple_choice", "choices")],
)
def test_text_that_lacks_what_a_measure_needs_is_refused_before_any_work(study, measure, lacks):
    benchmark = STABILITY["benchmarks"][0] | {
        "kind": "other",
        "measure": {"measure": measure, "part": "harmless/capability"},
    }
    with pytest.raises(StudyError, match=f"{measure} needs a {lacks}") as caught:
        planned(study(stability={"benchmarks": [benchmark]}))
    assert "harmless/capability" in str(caught.value)


def test_a_measure_without_anything_to_read_is_refused(study):
    benchmark = STABILITY["benchmarks"][0] | {"measure": EXACT}
    with pytest.raises(StudyError, match="exact_answer was given nothing to read") as caught:
        planned(study(stability={"benchmarks": [benchmark]}))
    assert caught.value.field == "known"
