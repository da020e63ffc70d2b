"""What is wrong in a study is refused before any work, naming the field as its author wrote it, its
value, and what would be right.
"""

import copy
from itertools import pairwise
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from titer.errors import StudyError
from titer.study import Study, builtin_studies, load_study
from titer.study.spec import geometric

BASE = yaml.safe_load(builtin_studies()["quickstart"])
BASE["model"] = {"source": "tiny", "name": "aligned"}
FILLER = {"correct it", "add it", "rename it", "give both", "correct the name", "check the path"}
"""Remedies that say nothing; better none."""


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
    error = caught.value
    assert error.field and error.expected and error.exit_status == 2
    assert error.remedy is None or (error.remedy and error.remedy not in FILLER)
    return error


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("tilte", "title"),
        ("model.revison", "revision"),
        ("pools.harm.shufle", "shuffle"),
        ("pools.harm.sources", "source"),
        ("candidates.1.step", "steps"),
        ("candidates.1.defence", "defense"),
        ("candidates.1.stage", "stages"),
        ("candidates.1.servise", "service"),
        ("candidates.1.defense.seting", "settings"),
        ("resistance.buget", "budget"),
        ("resistance.attacks.0.budgets", "budget"),
        ("resistance.attacks.0.rewards", "reward"),
        ("resistance.harm.parts", "part"),
        ("resistance.attacks.0.sweeep", "sweep"),
        ("stability.benchmark", "benchmarks"),
        ("stability.benchmarks.0.margn", "margin"),
        ("stability.benchmarks.0.measure.lmit", "limit"),
        ("generalization.group", "groups"),
        ("trainability.recip", "recipe"),
        ("trainability.recipe.setting", "settings"),
        ("trainability.tasks.0.budgets", "budget"),
        ("plugin", "plugins"),
        ("runtime.max_lenght", "max_length"),
    ],
)
def test_an_unknown_field_at_every_level_names_the_nearest(path, near):
    error = refused(path, "?")
    assert "unknown field" in error.problem and error.field == path and error.value == "?"
    assert f"did you mean {near}?" in error.remedy and near in error.expected


@pytest.mark.parametrize(
    ("path", "value", "unknown", "near"),
    [
        (
            "candidates.1.data",
            {"harmful": {"part": "a/b", "exmples": 3}},
            "harmful.exmples",
            "examples",
        ),
        (
            "candidates.1",
            {"name": "x", "stages": [{"metod": "y", "steps": 1}]},
            "stages.0.metod",
            "method",
        ),
        ("candidates.1", {"name": "x", "service": {"methd": "lisa"}}, "service.methd", "method"),
        ("resistance.attacks.0.budget", {"flop": 1e12, "steps": 3}, "flop", "flops"),
        ("resistance.attacks.0.reward", {"measure": "x", "setting": {}}, "setting", "settings"),
        ("models", {"small": {"source": "tiny", "nam": "base"}}, "small.nam", "name"),
        ("align", {"method": {"name": "x", "seting": {}}, "steps": 1}, "method.seting", "settings"),
    ],
)
def test_an_unknown_field_in_a_part_the_quickstart_lacks(path, value, unknown, near):
    error = refused(path, value)
    assert "unknown field" in error.problem and error.field == f"{path}.{unknown}"
    assert error.remedy == f"did you mean {near}?"


def test_an_unknown_field_with_nothing_near_lists_all():
    error = refused("resistance.xyzzy", 1)
    assert "did you mean" not in error.remedy and "search_seeds" in error.expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("resistance.budget", "steps"),
        ("resistance.seeds", "list"),
        ("candidates.1.steps", "optimizer steps"),
        ("pools.harm.parts", "number of examples"),
        ("resistance.data", "value"),
        ("threat_model", "value"),
    ],
)
def test_a_missing_field_is_named(path, expected):
    study = copy.deepcopy(BASE)
    here: Any = study
    *steps, last = (int(p) if p.isdigit() else p for p in path.split("."))
    for step in steps:
        here = here[step]
    del here[last]
    with pytest.raises(StudyError, match="missing") as caught:
        load_study(study)
    assert caught.value.field == path and expected in caught.value.expected


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
    "resistance.attacks.0.budget": st.integers(max_value=0),
    "candidates.1.seed": st.integers(max_value=-1) | st.integers(min_value=2**32),
    "defense_data.examples": st.integers(max_value=0),
    "trainability.tasks.0.data.examples": st.integers(max_value=0),
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
        ("format", 1),
        ("format", 3),
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
        ("plugins", "mine.py"),
        ("models", ["tiny:base"]),
        ("models", {"a": 3}),
        ("models", {"with space": "tiny:base"}),
        ("candidates.1.defense", 3),
        ("candidates.1.seed", "x"),
        ("candidates.1.service", "lisa"),
        ("candidates.1", "sft_refusal"),
        ("resistance.attacks.0.budget", "many"),
        ("resistance.attacks.0.budget", {"flops": 0, "steps": 3}),
        ("resistance.attacks.0.role", "defender"),
        ("resistance.attacks.0.reward", "exact_answer"),
        ("defense_data", "harm/defense"),
        ("defense_data.harmful", 3),
        ("defense_data.harmful", "no slash"),
        ("defense_data.harmful", {"examples": 3}),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused(path, value):
    assert refused(path, value).field.startswith(path)


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        (
            "resistance.attacks.0.budget",
            "many",
            "a whole number or a mapping with the fields flops",
        ),
        ("resistance.probes", "linear", "'geometric' or a list"),
        ("plugins", "mine.py", "a list"),
        ("candidates.1.defense", 3, "a mapping with the fields name, settings"),
        ("defense_data.harmful", "no slash", "pool/part"),
        ("name", "with space", "letters, digits"),
        ("resistance.phi", "half", "a number"),
        ("runtime.precision", "fp8", "'fp32' or 'bf16_autocast'"),
        ("trainability.slowdown", 0.5, "greater than or equal to 1"),
    ],
)
def test_what_would_be_right_is_said_in_words(path, value, expected):
    assert expected in refused(path, value).expected


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
        ({"name": "x", "defense": "sft_refusal", "steps": 3, "model": "tiny:base"}, "both"),
        ({"name": "none", "defense": "sft_refusal", "steps": 3}, "control"),
        ({"name": "none", "model": "tiny:base"}, "control"),
        ({"name": "none", "service": {"method": "lisa"}}, "control"),
        ({"name": "x", "stages": []}, "neither"),
    ],
)
def test_a_candidate_is_a_defense_or_a_model(candidate, says):
    assert says in refused("candidates", [candidate]).problem


STAGE = {"method": "sft_refusal", "steps": 3}


@pytest.mark.parametrize(
    ("candidate", "field", "says"),
    [
        ({"defense": "sft_refusal"}, "steps", "missing"),
        ({"stages": [{"method": "sft_refusal"}]}, "stages.0.steps", "missing"),
        ({"stages": [STAGE, {"steps": 3}]}, "stages.1.method", "missing"),
        ({"defense": "sft_refusal", "stages": [STAGE]}, "defense", "both defense and stages"),
        ({"steps": 3, "stages": [STAGE]}, "steps", "both steps and stages"),
        ({"data": {"harmful": "harm/defense"}, "stages": [STAGE]}, "data", "both data and stages"),
        ({"steps": 3, "model": "tiny:base"}, "steps", "steps but no defense"),
        ({"data": {}, "model": "tiny:base"}, "data", "data but no defense"),
        ({"stages": [STAGE], "seed": 1, "seeds": [1]}, "seed", "both seed and seeds"),
        ({"stages": [STAGE], "seeds": [1, 1]}, "seeds", "distinct"),
        ({"stages": [STAGE], "seeds": []}, "seeds", "a value is invalid"),
        ({"model": "tiny:base", "seeds": [1, 2]}, "seeds", "not trained"),
        ({"service": {"method": "lisa"}, "seeds": [1, 2]}, "seeds", "not trained"),
        ({"stages": [STAGE | {"seed": 1}]}, "stages.0.seed", "unknown field"),
    ],
)
def test_stages_of_a_candidate(candidate, field, says):
    """Without steps, the untouched model would be judged under the defense's name."""
    error = refused("candidates.1", {"name": "x", **candidate})
    assert error.field == f"candidates.1.{field}" and says in error.problem


@pytest.mark.parametrize("count", [2, 4, 6])
def test_a_checkpoint_for_every_attack_seed_or_one_for_all(count):
    error = refused("candidates.1", {"name": "x", "stages": [STAGE], "seeds": list(range(count))})
    assert error.field == "candidates.x.seeds" and "5" in error.expected


@pytest.mark.parametrize("name", ["parent", "control"])
def test_names_that_every_cell_has_a_model_for(name):
    error = refused("models", {"small": "tiny:base", name: "tiny:base"})
    assert error.value == name and "parent and control" in error.expected


@pytest.mark.parametrize(
    ("slots", "slot", "near"),
    [
        ({"harmfull": "harm/defense"}, "harmfull", "harmful"),
        ({"harmful": "harm/defense", "harmles": "harmless/defense"}, "harmles", "harmless"),
        ({"harmful": "harm/defense", "example": 3}, "example", "examples"),
        ({"harmful": "harm/defense", "domain": ["vexar"]}, "domain", "domains"),
        ({"Harmful": "harm/defense"}, "Harmful", "harmful"),
        ({"slots": {"harmfull": "harm/defense"}}, "harmfull", "harmful"),
        ({"slots": {"examples": "harm/defense"}}, "examples", "examples"),
        ({"held out": "harm/defense"}, "held out", None),
        ({"2nd": "harm/defense"}, "2nd", None),
    ],
)
@pytest.mark.parametrize("path", ["defense_data", "resistance.data", "candidates.1.data"])
def test_unknown_slots(path, slots, slot, near):
    error = refused(path, slots)
    assert error.problem.endswith("unknown slot") and error.field == f"{path}.{slot}"
    assert "harmful, harmless or another slot" in error.expected
    assert error.remedy == (f"did you mean {near}?" if near else None)


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ({"harmless": "harmless/defense", "domains": ["vexar"]}, "domains"),
        ({"examples": 3}, "examples"),
    ],
)
def test_what_restricts_nothing_is_refused(data, field):
    assert refused("defense_data", data).field == f"defense_data.{field}"


@pytest.mark.parametrize("extra", [{"limit": 3}, {"domains": ["vexar"]}])
def test_a_measure_without_a_part_has_nothing_to_restrict(extra):
    (field,) = extra
    error = refused("resistance.capability", {"measure": "mine", **extra})
    assert error.field == f"resistance.capability.{field}"


def test_harm_is_read_on_a_part_so_that_another_can_confirm_it():
    assert refused("resistance.harm", {"measure": "mine"}).field == "resistance.harm.part"


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
    study = copy.deepcopy(BASE)
    here = study
    *steps, last = path.split(".")
    for step in steps:
        here = here[int(step) if step.isdigit() else step]
    here[last] = value
    return study


# -- what trains must not judge --------------------------------------------------------------------


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
    study = copy.deepcopy(BASE)
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


@pytest.mark.parametrize(
    ("candidate", "says"),
    [
        (
            {"stages": [STAGE, STAGE | {"data": {"harmful": "harm/judge"}}]},
            "harm/judge is used for training",
        ),
        (
            {"service": {"method": "lisa", "data": {"harmful": "harm/judge"}}},
            "harm/judge is used for training",
        ),
        ({"stages": [STAGE | {"data": {"held_out": "harm/attack"}}]}, "both the defense and"),
        (
            {"service": {"method": "lisa", "data": {"harmful": "harm/attack"}}},
            "both the defense and",
        ),
    ],
)
def test_every_text_of_the_defender_counts(candidate, says):
    study = copy.deepcopy(BASE)
    study["candidates"].append({"name": "x", **candidate})
    with pytest.raises(StudyError, match=says):
        load_study(study)


def test_every_text_of_an_attacker_counts():
    study = copy.deepcopy(BASE)
    study["resistance"]["attacks"][0]["data"] = {"held_out": "harm/defense"}
    with pytest.raises(StudyError, match="both the defense and the attack"):
        load_study(study)


def test_harmless_text_may_serve_both_sides():
    study = copy.deepcopy(BASE)
    study["resistance"]["data"]["harmless"] = "harmless/defense"
    assert load_study(study).resistance.data.parts == ("harm/attack", "harmless/defense")
