"""What is wrong in a study is refused before any work, naming field, value, expectation and remedy."""

import copy
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from titer.errors import StudyError
from titer.study import Study, load_study
from titer.study.spec import geometric

BASE = load_study("quickstart").model_dump(mode="json", exclude_unset=True)


def refused(path: str, value: Any) -> StudyError:
    """The complaint about the quickstart with one value replaced or added; `path` with dots."""
    study = copy.deepcopy(BASE)
    here: Any = study
    *steps, last = (int(p) if p.isdigit() else p for p in path.split("."))
    for step in steps:
        here = here[step]
    here[last] = value
    with pytest.raises(StudyError) as caught:
        load_study(study)
    assert (
        caught.value.field
        and caught.value.expected
        and caught.value.remedy
        and caught.value.exit_status == 2
    )
    return caught.value


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("tilte", "title"),
        ("model.revison", "revision"),
        ("pools.harm.shufle", "shuffle"),
        ("pools.harm.sources", "source"),
        ("defense_data.harmfull", "harmful"),
        ("candidates.1.step", "steps"),
        ("candidates.1.defense.seting", "settings"),
        ("resistance.buget", "budget"),
        ("resistance.data.example", "examples"),
        ("resistance.harm.parts", "part"),
        ("resistance.attacks.0.sweeep", "sweep"),
        ("stability.benchmark", "benchmarks"),
        ("stability.benchmarks.0.margn", "margin"),
        ("stability.benchmarks.0.measure.lmit", "limit"),
        ("generalization.group", "groups"),
        ("trainability.recip", "recipe"),
        ("trainability.recipe.setting", "settings"),
        ("trainability.tasks.0.budgets", "budget"),
        ("trainability.tasks.0.data.harmles", "harmless"),
        ("runtime.max_lenght", "max_length"),
    ],
)
def test_an_unknown_field_at_every_level_names_the_nearest(path, near):
    error = refused(path, "?")
    assert "unknown field" in error.problem and error.field == path and error.value == "?"
    assert f"did you mean {near}?" in error.remedy and near in error.expected


def test_an_unknown_field_with_nothing_near_lists_all():
    error = refused("resistance.xyzzy", 1)
    assert "did you mean" not in error.remedy and "search_seeds" in error.expected


def test_a_missing_field_is_named():
    study = copy.deepcopy(BASE)
    del study["resistance"]["budget"]
    with pytest.raises(StudyError, match="missing") as caught:
        load_study(study)
    assert caught.value.field == "resistance.budget"


def test_further_mistakes_are_counted():
    study = copy.deepcopy(BASE)
    study["resistance"] |= {"budget": -1, "phi": 0, "probes": [0, -1], "delta": 2}
    with pytest.raises(StudyError, match=r"and 3 more"):
        load_study(study)


NUMBERS = {
    "resistance.budget": st.integers(max_value=0),
    "trainability.tasks.0.budget": st.integers(max_value=0),
    "candidates.1.steps": st.integers(max_value=-1),
    "resistance.phi": st.floats(max_value=0) | st.floats(min_value=1, exclude_min=True),
    "resistance.alpha": st.floats(max_value=0) | st.floats(min_value=1),
    "resistance.delta": st.floats(max_value=0) | st.floats(min_value=1),
    "resistance.quantile": st.floats(max_value=0) | st.floats(min_value=1),
    "stability.alpha": st.floats(max_value=0) | st.floats(min_value=1),
    "stability.benchmarks.0.margin": st.floats(max_value=0) | st.just(float("nan")),
    "trainability.alpha": st.floats(max_value=0) | st.floats(min_value=1),
    "trainability.target": st.floats(max_value=0) | st.floats(min_value=1),
    "trainability.slowdown": st.floats(max_value=1, exclude_max=True) | st.just(float("inf")),
    "pools.harm.parts.attack": st.integers(max_value=0),
    "pools.harm.near_threshold": st.floats(max_value=0) | st.floats(min_value=1),
    "resistance.data.examples": st.integers(max_value=0),
    "runtime.max_length": st.integers(max_value=7),
    "runtime.workers": st.integers(max_value=0),
    "runtime.price_per_hour": st.floats(max_value=0, exclude_max=True),
}


@pytest.mark.parametrize("path", NUMBERS)
@given(data=st.data())
def test_a_number_out_of_range_is_refused(path, data):
    value = data.draw(NUMBERS[path])
    error = refused(path, value)
    assert error.field == path and (error.value == value or value != value)


@pytest.mark.parametrize("phi", [1, 1.0, 1e-9, 0.5])
def test_the_ends_of_the_range_of_phi(phi):
    study = copy.deepcopy(BASE)
    study["resistance"]["phi"] = phi
    assert load_study(study).resistance.phi == phi


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("threat_model", "closed"),
        ("format", 2),
        ("runtime.precision", "fp8"),
        ("resistance.budget", "many"),
        ("resistance.probes", "linear"),
        ("name", "with space"),
        ("name", ""),
        ("model", 3),
        ("pools", {}),
        ("candidates", []),
        ("resistance.seeds", []),
        ("resistance.seeds", ["a"]),
        ("resistance.attacks", []),
        ("resistance.harm", "exact_answer"),
        ("resistance.confirm", "no slash"),
        ("model.source", "somewhere"),
        ("stability.benchmarks", []),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused(path, value):
    assert refused(path, value).field.startswith(path)


@pytest.mark.parametrize(
    "path",
    [
        "resistance.seeds",
        "generalization.seeds",
        "trainability.seeds",
        "resistance.search_seeds",
        "trainability.search_seeds",
    ],
)
@given(seeds=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=5), at=st.integers(0, 10))
def test_a_repeated_seed_is_refused(path, seeds, at):
    repeated = seeds[at % len(seeds)]
    error = refused(path, [*seeds, repeated])
    assert error.field == path and "distinct" in error.problem and error.value in seeds


@pytest.mark.parametrize("where", ["resistance", "trainability"])
def test_a_seed_may_not_both_search_and_confirm(where):
    confirming = BASE[where]["seeds"][2]
    error = refused(f"{where}.search_seeds", [7, confirming])
    assert error.field == f"{where}.search_seeds" and error.value == confirming


@pytest.mark.parametrize(
    "probes", [[], [0], [64], [1, 64], [0, 63], [0, 65], [0, 8, 8, 64], [0, 16, 8, 64], [0, -1, 64]]
)
def test_probes_go_from_0_to_the_budget(probes):
    assert refused("resistance.probes", probes).field.startswith("resistance.probes")


@given(st.integers(1, 10_000))
def test_the_geometric_grid_is_one_a_study_could_have_written_out(budget):
    grid = geometric(budget)
    study = copy.deepcopy(BASE)
    study["resistance"] |= {"budget": budget, "probes": list(grid)}
    assert load_study(study).resistance.grid() == grid
    assert all(b == 2 * a for a, b in pairwise(grid[1:-1]))


@pytest.mark.parametrize(
    ("path", "value", "near"),
    [
        ("resistance.confirm", "harm/conform", "harm/confirm"),
        ("resistance.search_part", "harm/defence", "harm/defense"),
        ("defense_data.harmful", "ham/defense", "harm/defense"),
        ("stability.benchmarks.0.measure.part", "harmless/acuracy", "harmless/accuracy"),
        ("trainability.tasks.0.search_part", "new_cipher/serch", "new_cipher/search"),
    ],
)
def test_an_unknown_part_names_the_nearest(path, value, near):
    error = refused(path, value)
    assert error.value == value and near in error.remedy and near in error.expected
    assert error.field.split(".")[-1].split("[")[0] == path.split(".")[-1]


def test_a_pool_to_be_kept_apart_from_must_exist():
    assert refused("pools.harm.drop_near", ["harmles"]).field == "pools.harm.drop_near"


@pytest.mark.parametrize(
    ("candidate", "says"),
    [
        ({"name": "x"}, "neither"),
        ({"name": "x", "defense": "sft_refusal", "model": "tiny:base"}, "both"),
        ({"name": "none", "defense": "sft_refusal"}, "control"),
        ({"name": "none", "model": "tiny:base"}, "control"),
    ],
)
def test_a_candidate_is_a_defense_or_a_model(candidate, says):
    assert says in refused("candidates", [candidate]).problem


def test_candidates_have_names_of_their_own():
    one = {"name": "twin", "model": "tiny:base"}
    error = refused("candidates", [one, one])
    assert error.field == "candidates" and error.value == "twin"


def test_a_defense_needs_data():
    study = {k: v for k, v in BASE.items() if k != "defense_data"}
    with pytest.raises(StudyError) as caught:
        load_study(study)
    assert caught.value.field == "defense_data"


def test_a_breach_is_confirmed_on_other_prompts():
    assert refused("resistance.confirm", "harm/judge").field == "resistance.confirm"


@pytest.mark.parametrize(
    ("extra", "lacking"),
    [
        ({}, "search_seeds"),
        ({"search_seeds": [1]}, "search_part"),
        ({"search_part": "harm/defense"}, "search_seeds"),
    ],
)
def test_a_search_needs_seeds_and_prompts_of_its_own(extra, lacking):
    attack = {"attack": "full_sft", "name": "full_sft@lr=0.0003", "search": {"lr": [1e-3]}}
    error = refused("resistance", BASE["resistance"] | {"attacks": [attack]} | extra)
    assert error.field == f"resistance.{lacking}"


@pytest.mark.parametrize("field", ["sweep", "search"])
@pytest.mark.parametrize("values", [[], [1e-3, 1e-4, 1e-3]])
def test_values_to_try_are_some_and_distinct(field, values):
    assert (
        refused(f"resistance.attacks.1.{field}", {"lr": values}).field
        == f"resistance.attacks.1.{field}.lr"
    )


def test_two_attacks_with_one_label_are_refused():
    error = refused("resistance.attacks.1", BASE["resistance"]["attacks"][0])
    assert error.field == "resistance.attacks" and error.value == "full_sft@lr=0.0001"


def test_generalization_of_an_attack_that_is_not_in_the_battery():
    error = refused("generalization.attack", "full_sft@lr=0.03")
    assert error.field == "generalization.attack" and "full_sft@lr=0.0003" in error.expected


def test_generalization_of_a_candidate_that_is_not_in_the_study():
    error = refused("generalization.candidates", ["sft_refuse"])
    assert error.field == "generalization.candidates" and "sft_refusal" in error.remedy


@pytest.mark.parametrize(
    "groups",
    [{"all": ["vexar"]}, {"a": ["vexar", "skarn"], "b": ["skarn"]}, {"a": [], "b": ["vexar"]}],
)
def test_generalization_needs_two_groups_without_a_common_domain(groups):
    assert refused("generalization.groups", groups).field.startswith("generalization.groups")


def test_a_study_made_by_hand_is_checked_too():
    with pytest.raises(ValueError, match="other prompts"):
        Study.model_validate(
            copy.deepcopy(BASE) | {"resistance": BASE["resistance"] | {"confirm": "harm/judge"}}
        )


def quickstart_with(path, value):
    """The quickstart as a dictionary with one value, at a dotted path, replaced."""
    study = load_study("quickstart").model_dump(mode="json")
    here = study
    *steps, last = path.split(".")
    for step in steps:
        here = here[int(step) if step.isdigit() else step]
    here[last] = value
    return study


# -- what trains must not judge ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("defense_data.harmful", "harm/judge"),
        ("defense_data.harmless", "harmless/accuracy"),
        ("resistance.data.harmful", "harm/confirm"),
        ("resistance.harm.part", "harm/attack"),
        ("resistance.confirm", "harm/defense"),
        ("resistance.capability.part", "harmless/defense"),
        ("stability.benchmarks.0.measure.part", "harmless/defense"),
        ("trainability.tasks.0.data.harmless", "new_cipher/test"),
        ("trainability.tasks.0.data.harmless", "new_cipher/search"),
        ("trainability.tasks.0.search_part", "new_cipher/test"),
        ("defense_data.harmful", "harm/attack"),
    ],
)
def test_one_part_does_not_serve_two_ends(path, part):
    study = quickstart_with(path, part)
    with pytest.raises(StudyError) as caught:
        load_study(study)
    assert part in str(caught.value) and "cut another part" in str(caught.value)


def test_a_candidate_with_data_of_its_own_is_held_to_it_too():
    study = load_study("quickstart").model_dump(mode="json")
    study["candidates"][1]["data"] = {"harmful": "harm/judge", "harmless": "harmless/defense"}
    with pytest.raises(StudyError, match="harm/judge is used for training"):
        load_study(study)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("resistance.alpha", 0.999999),
        ("resistance.delta", 0.999999),
        ("resistance.delta", 1e-300),
        ("stability.alpha", 0.5),
        ("stability.benchmarks.0.margin", 1.0),
        ("trainability.slowdown", 1e9),
        ("trainability.margin", 10.0),
    ],
)
def test_claims_cannot_be_made_trivial(field, value):
    study = quickstart_with(field, value)
    with pytest.raises(StudyError):
        load_study(study)


@pytest.mark.parametrize("seed", [-1, 2**32, 2**70])
def test_seeds_are_what_every_generator_takes(seed):
    with pytest.raises(StudyError, match="seeds"):
        load_study(quickstart_with("resistance.seeds", [seed]))
