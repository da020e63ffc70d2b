"""What is judged: stages one after the other, several checkpoints, services, and the further models
that methods read.
"""

import pytest

from helpers.cell_runs import Borrows
from helpers.planned import (
    GENERALIZATION,
    GROUPS,
    SFT,
    STABILITY,
    TRAINABILITY,
    digests,
    planned,
    roles,
)
from titer.engine.planning.pieces import located
from titer.errors import StudyError, ThreatModelError
from titer.methods.attacks.full_sft import FullSFT
from titer.methods.method import Defense
from titer.methods.registry import resolve
from titer.study.cell import CellStart

TWO_STAGES = {
    "name": "staged",
    "stages": [
        {"method": "sft_refusal", "steps": 2},
        {"method": "adversarial_loss", "steps": 3, "data": {"harmful": "harm/defense"}},
    ],
}


# -- stages ---------------------------------------------------------------------------------------


def test_stages_are_done_one_after_the_other(study):
    found = planned(study(candidates=["none", TWO_STAGES], stability=STABILITY))
    ((first, before), (second, after)) = roles(found, "defense")
    assert (before.stage, after.stage) == (0, 1)
    assert [p.cell.method.name for p in (first, second)] == ["sft_refusal", "adversarial_loss"]
    assert [p.cell.steps for p in (first, second)] == [2, 3]
    assert first.cell.parent is None and second.cell.parent == first.digest
    assert first.cell.keep and second.cell.keep
    # The study's text where a stage has none of its own.
    assert set(first.cell.texts) == {"harmful", "harmless"}
    assert set(second.cell.texts) == {"harmful"}
    assert second.start.parent == first.digest and second.start.ref == first.start.ref
    # What is attacked and looked at is what comes out of the last one.
    for purpose in ("attack", "stability"):
        assert {p.cell.parent for p, _ in roles(found, purpose, candidate="staged")} == {
            second.digest
        }


def test_stages_that_begin_alike_are_made_once(study):
    one = {"name": "one", "stages": TWO_STAGES["stages"][:1]}
    found = planned(study(candidates=["none", one, TWO_STAGES]))
    shared = {p.digest: [r.candidate for r in p.roles] for p, _ in roles(found, "defense")}
    assert sorted(shared.values()) == [["one", "staged"], ["staged"]]


def test_every_stage_is_trained_on_the_group(study):
    found = planned(study(candidates=["none", TWO_STAGES], generalization=GENERALIZATION))
    for group, domains in GROUPS.items():
        built = roles(found, "defense", defended_on=group)
        assert [r.stage for _, r in built] == [0, 1]
        assert {p.cell.texts["harmful"].domains for p, _ in built} == {tuple(domains)}
        assert built[1][0].cell.parent == built[0][0].digest
        rows = roles(found, "generalization", defended_on=group)
        assert {p.cell.parent for p, _ in rows} == {built[1][0].digest}


# -- several seeds of a defense -------------------------------------------------------------------


@pytest.fixture
def several(study):
    candidate = {"name": "refusal", "defense": "sft_refusal", "steps": 4, "seeds": [7, 5]}
    return planned(
        study(
            candidates=["none", candidate],
            stability=STABILITY,
            generalization=GENERALIZATION | {"seeds": [21, 22, 23]},
            trainability=TRAINABILITY,
        )
    )


def test_every_seed_of_a_defense_makes_a_checkpoint(several):
    built = roles(several, "defense", defended_on="")
    assert [(p.cell.seed, r.seed, r.defense_seed) for p, r in built] == [(7, 7, 7), (5, 5, 5)]
    assert len({p.digest for p, _ in built}) == 2


def test_the_ith_attack_seed_meets_the_ith_checkpoint(several):
    made = {r.defense_seed: p.digest for p, r in roles(several, "defense", defended_on="")}
    met = [
        (r.seed, r.defense_seed, p.cell.parent)
        for p, r in roles(several, "attack", candidate="refusal")
    ]
    assert met == [(1, 7, made[7]), (2, 5, made[5])]
    trained = roles(several, "trainability", candidate="refusal")
    assert [(r.seed, p.cell.parent) for p, r in trained] == [(31, made[7]), (32, made[5])]
    assert {r.defense_seed for _, r in roles(several, "attack", candidate="none")} == {None}


def test_more_seeds_than_checkpoints_go_round(several):
    made = {
        (r.defended_on, r.defense_seed): p.digest
        for p, r in roles(several, "defense")
        if r.defended_on
    }
    row = roles(several, "generalization", defended_on="first", attacked_on="second")
    assert [(r.seed, r.defense_seed, p.cell.parent) for p, r in row] == [
        (21, 7, made["first", 7]),
        (22, 5, made["first", 5]),
        (23, 7, made["first", 7]),
    ]


def test_every_checkpoint_is_looked_at(several):
    made = {r.defense_seed: p.digest for p, r in roles(several, "defense", defended_on="")}
    looks = roles(several, "stability", candidate="refusal")
    assert [(r.defense_seed, p.cell.parent) for p, r in looks] == [(7, made[7]), (5, made[5])]


def test_search_seeds_meet_checkpoints_in_the_same_way(study):
    candidate = {"name": "refusal", "defense": "sft_refusal", "steps": 4, "seeds": [7, 5]}
    searched = {"attack": "full_sft", "search": {"lr": [1e-3]}}
    found = planned(study({"attacks": [searched]}, candidates=["none", candidate]))
    made = {r.defense_seed: p.digest for p, r in roles(found, "defense")}
    assert [
        (r.seed, r.defense_seed, p.cell.parent)
        for p, r in roles(found, "search", candidate="refusal")
    ] == [(11, 7, made[7]), (12, 5, made[5])]


# -- services -------------------------------------------------------------------------------------

SERVED = {"name": "served", "service": {"method": {"name": "lisa", "settings": {"lr": 1e-3}}}}
SERVICE = {"threat_model": "fine_tuning_service", "candidates": ["none", SERVED]}


def test_a_service_runs_every_training_of_its_candidate(study):
    found = planned(study(**SERVICE, stability=STABILITY, trainability=TRAINABILITY))
    assert not roles(found, "defense")
    for purpose in ("attack", "trainability"):
        for p, r in roles(found, purpose):
            if r.candidate == "none":
                assert p.cell.host is None
                continue
            host = p.cell.host
            assert (host.method.kind, host.method.name) == ("service", "lisa")
            assert host.method.settings["lr"] == 1e-3
            assert {n: t.part for n, t in host.texts.items()} == {
                "harmful": "harm/defense",
                "harmless": "harmless/defense",
            }
            assert p.cell.method.kind == "attack" and p.facts.kind == "attack"
    # A look trains nothing; and the model is the control's.
    assert {p.cell.host for p, _ in roles(found, "stability")} == {None}
    ((look, _), (same, _)) = roles(found, "stability")
    assert look.digest == same.digest


def test_a_service_may_stand_behind_stages(study):
    both = {**SERVED, "stages": [{"method": "sft_refusal", "steps": 2}]}
    found = planned(study(threat_model="fine_tuning_service", candidates=["none", both]))
    ((built, _),) = roles(found, "defense")
    assert built.cell.host is None  # nobody serves the defender
    for p, _ in roles(found, "attack", candidate="served"):
        assert p.cell.parent == built.digest and p.cell.host.method.name == "lisa"


def test_what_a_service_does_determines_the_address(study):
    other = {"name": "served", "service": {"method": {"name": "lisa", "settings": {"lr": 2e-3}}}}
    first = planned(study(**SERVICE))
    second = planned(study(**SERVICE | {"candidates": ["none", other]}))
    assert digests(first, "attack", candidate="none") == digests(second, "attack", candidate="none")
    assert not set(digests(first, "attack", candidate="served")) & set(
        digests(second, "attack", candidate="served")
    )


def test_a_service_is_crossed_through_its_own_text(study):
    found = planned(study(**SERVICE, generalization=GENERALIZATION))
    rows = roles(found, "generalization", candidate="served")
    for p, r in rows:
        assert p.cell.host.texts["harmful"].domains == tuple(GROUPS[r.defended_on])
        assert p.cell.texts["harmful"].domains == tuple(GROUPS[r.attacked_on])
    assert len(rows) == 4


def test_an_edit_cannot_be_run_by_a_service(study):
    with pytest.raises(ThreatModelError, match="weight_noise edits weights") as caught:
        planned(study({"attacks": [SFT, {"attack": "weight_noise"}]}, **SERVICE))
    assert caught.value.field == "attacks.weight_noise"
    assert caught.value.expected == "an attack that trains"


def test_a_service_is_no_defense_of_open_weights(study):
    with pytest.raises(ThreatModelError, match="lisa needs control") as caught:
        planned(study(candidates=["none", SERVED]))
    assert caught.value.field == "candidates.served.service"


@pytest.mark.parametrize("threat_model", ["open_weights", "fine_tuning_service"])
def test_the_defense_of_a_service_builds_no_model(study, threat_model):
    """Planned as a stage it would judge a model that nobody defended."""
    wrong = {"name": "served", "defense": "lisa", "steps": 4}
    with pytest.raises(ThreatModelError, match="defense of a service") as caught:
        planned(study(threat_model=threat_model, candidates=["none", wrong]))
    assert caught.value.value == "lisa" and "`service`" in caught.value.remedy


def test_a_defense_is_no_service(study):
    wrong = {"name": "served", "service": {"method": "sft_refusal"}}
    with pytest.raises(Exception, match="no service has this name"):
        planned(study(threat_model="fine_tuning_service", candidates=["none", wrong]))


def test_a_service_without_its_text_is_refused(study):
    own = {"method": "lisa", "data": {"harmless": "harmless/defense"}}
    with pytest.raises(StudyError, match="lisa needs harmful text") as caught:
        planned(study(**SERVICE | {"candidates": ["none", {"name": "served", "service": own}]}))
    assert caught.value.field == "candidates.served.service.data"


# -- further models -------------------------------------------------------------------------------


class BorrowsInDefense(Defense):
    """Wants the model called `base`."""

    name = "borrows_in_defense"
    reference = "test"
    wants = ("base",)

    def start(self, given):
        raise NotImplementedError


def borrowing(*names):
    return {"attack": "borrows", "settings": {"of": names}}


def test_a_cell_has_the_models_its_method_asks_for(study, registered):
    registered(Borrows)
    attacks = [SFT, borrowing("base", "control", "parent")]
    found = planned(study({"attacks": attacks}, models={"base": "tiny:base"}))
    ((built, _),) = roles(found, "defense")
    for p, r in roles(found, "attack"):
        if r.attack == "full_sft":
            assert p.models == p.cell.models == {}
            continue
        assert set(p.models) == {"base", "control", "parent"}
        assert {n: located(s) for n, s in p.models.items()} == p.cell.models
        assert p.models["parent"] == p.start
        assert p.models["parent"].parent == (built.digest if r.candidate == "refusal" else None)
        assert p.models["control"].parent is None
        assert str(p.models["base"].ref) == "tiny:base" and p.cell.models["base"].parent is None
        assert p.cell.models["base"].model != p.cell.models["control"].model


def test_the_control_is_the_model_after_the_studys_own_alignment(study, registered):
    registered(Borrows)
    align = {"method": "sft_refusal", "data": {"harmful": "harm/defense"}, "steps": 3}
    found = planned(study({"attacks": [borrowing("control")]}, align=align))
    ((aligned, _),) = roles(found, "align")
    root = aligned.cell.model
    for p, _ in roles(found, "attack"):
        assert p.cell.models["control"] == CellStart(model=root, parent=aligned.digest)


def test_a_further_model_is_part_of_the_address(study, registered):
    registered(Borrows)
    first, second = (
        planned(study({"attacks": [borrowing("base")]}, models={"base": f"tiny:{name}"}))
        for name in ("base", "untaught")
    )
    assert not set(digests(first, "attack")) & set(digests(second, "attack"))
    # A model nobody asks for changes nothing.
    with_it, without = (
        planned(study({"attacks": [borrowing("control")]}, models=m))
        for m in ({"base": "tiny:base"}, {})
    )
    assert digests(with_it) == digests(without)


def test_a_model_the_study_lacks_is_named(study, registered):
    registered(Borrows, BorrowsInDefense)
    with pytest.raises(StudyError, match="borrows needs a further model") as caught:
        planned(study({"attacks": [borrowing("base")]}))
    assert (caught.value.field, caught.value.value) == ("models", "base")
    assert "`models: {base: …}`" in caught.value.expected
    defended = ["none", {"name": "refusal", "defense": "borrows_in_defense", "steps": 4}]
    with pytest.raises(StudyError, match="borrows_in_defense needs a further model"):
        planned(study(candidates=defended))
    found = planned(study(candidates=defended, models={"base": "tiny:base"}))
    assert {n for p, _ in roles(found, "defense") for n in p.models} == {"base"}


# -- rewards --------------------------------------------------------------------------------------


class Rewarded(FullSFT):
    """Asks for a reward."""

    name = "rewarded"
    wants_reward = True


def test_the_measure_an_attack_trains_on_is_in_its_cells(study, registered):
    registered(Rewarded)
    reward = {"measure": "refusal_rate", "settings": {"max_new_tokens": 8}}
    attacks = [SFT, {"attack": "rewarded", "reward": reward}]
    found = planned(study({"attacks": attacks}))
    told = {r.attack: p.cell.reward for p, r in roles(found, "attack")}
    assert told["full_sft"] is None
    assert (told["rewarded"].label, told["rewarded"].name) == ("reward", "refusal_rate")
    assert told["rewarded"].settings["max_new_tokens"] == 8
    assert told["rewarded"].text is None  # it scores what the method samples
    other = {"measure": "refusal_rate", "settings": {"max_new_tokens": 9}}
    again = planned(study({"attacks": [SFT, {"attack": "rewarded", "reward": other}]}))
    assert not set(digests(found, "attack", attack="rewarded")) & set(
        digests(again, "attack", attack="rewarded")
    )


@pytest.mark.parametrize(
    "reward, says",
    [
        (None, "trains on a reward, and was given none"),
        ({"measure": "exact_answer"}, "does not score replies"),
        ({"measure": "refusal_rate", "part": "harm/attack"}, "reads no part of a pool"),
    ],
)
def test_a_reward_that_cannot_be_one_is_refused_before_any_work(study, registered, reward, says):
    registered(Rewarded)
    with pytest.raises(StudyError, match=says) as caught:
        planned(study({"attacks": [{"attack": "rewarded", "reward": reward}]}))
    assert caught.value.field.startswith("attacks.rewarded.reward")


# -- plug-ins -------------------------------------------------------------------------------------

PLUGIN = '''
from titer.methods.attacks.full_sft import FullSFT
from titer.methods.defenses.sft_refusal import SFTRefusal
from titer.measures.exact_answer import ExactAnswer


class Mine(SFTRefusal):
    """A defense of my own."""

    name = "mine"


class MyAttack(FullSFT):
    """An attack of my own."""

    name = "my_attack"
'''


def test_other_code_is_other_work(study, registered, tmp_path):
    """A plug-in whose code changed gives other digests although its name and version stay."""
    registered()
    file = tmp_path / "mine.py"
    fields = {
        "candidates": ["none", {"name": "mine", "defense": "mine", "steps": 4}],
        "plugins": [str(file)],
    }
    attacks = {"attacks": [SFT, {"attack": "my_attack", "settings": {"batch_size": 16}}]}

    def of(code):
        file.write_text(code)
        return planned(study(attacks, **fields))

    before, after = of(PLUGIN), of(PLUGIN.replace("of my own", "of mine"))
    ((one, _), (two, _)) = roles(before, "defense") + roles(after, "defense")
    assert one.cell.method.code and two.cell.method.code
    assert one.digest != two.digest
    assert one.cell.method.model_copy(update={"code": ""}) == two.cell.method.model_copy(
        update={"code": ""}
    )
    assert not set(digests(before, "attack", attack="my_attack")) & set(
        digests(after, "attack", attack="my_attack")
    )
    # What comes with titer is told by its version.
    built_in = {"attack": "full_sft", "candidate": "none"}
    assert digests(before, "attack", **built_in) == digests(after, "attack", **built_in)
    assert {p.cell.method.code for p, _ in roles(before, "attack", **built_in)} == {""}
    # The first code again is the first work again, and it is that code which runs.
    assert digests(of(PLUGIN)) == digests(before)
    assert resolve("defense", "mine", {}).__doc__ == "A defense of my own."
