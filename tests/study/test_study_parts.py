"""The parts of a study and of a plan by themselves: text by slot, candidates, budgets, cells."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from titer.study import ModelRef, load_study
from titer.study.candidate import CONTROL, Candidate
from titer.study.cell import (
    Cell,
    CellHost,
    CellMeasure,
    CellMethod,
    CellStart,
    PartUse,
    StopRule,
)
from titer.study.resistance import AttackUse, FlopsBudget, Resistance
from titer.study.uses import DataUse, MeasureUse, TextUse

# -- the text a method is given, by slot -----------------------------------------------------------

SLOTS = st.sampled_from(["harmful", "harmless", "held_out", "repair", "prompts", "x2"])
PARTS = st.from_regex(r"[A-Za-z0-9_-]{1,8}/[A-Za-z0-9_-]{1,8}", fullmatch=True)
COUNTS = st.integers(1, 1000)
DOMAINS = st.lists(st.sampled_from("abcd"), max_size=3, unique=True)
USES = PARTS | st.fixed_dictionaries(
    {"part": PARTS},
    optional={"examples": st.none() | COUNTS, "domains": st.none() | DOMAINS},
)


def expected(slots: dict[str, Any], shared: dict[str, Any]) -> dict[str, TextUse]:
    """Written out by hand: what is said for a slot wins over what is said for all."""
    found = {}
    for name, use in slots.items():
        own = {"part": use} if isinstance(use, str) else use
        examples = own.get("examples", shared.get("examples"))
        domains = own.get("domains", shared.get("domains") if name == "harmful" else None)
        found[name] = TextUse(
            part=own["part"],
            examples=examples,
            domains=None if domains is None else tuple(domains),
        )
    return found


@given(st.dictionaries(SLOTS, USES, min_size=1), st.none() | COUNTS, st.none() | DOMAINS)
def test_every_way_of_writing_text_by_slot_means_the_same(slots, examples, domains):
    shared = {"examples": examples, "domains": domains if "harmful" in slots else None}
    shared = {k: v for k, v in shared.items() if v is not None}
    use = DataUse.model_validate({**slots, **shared})
    assert use.slots == expected(slots, shared)
    assert list(use.slots) == list(slots) and use.parts == tuple(u.part for u in use.slots.values())
    objects = {n: u if isinstance(u, str) else TextUse(**u) for n, u in slots.items()}
    assert DataUse.model_validate({**objects, **shared}) == use
    for options in ({}, {"exclude_unset": True}, {"exclude_defaults": True}):
        assert DataUse.model_validate(use.model_dump(mode="json", **options)) == use
    assert DataUse.model_validate_json(use.model_dump_json()) == use
    assert DataUse.model_validate(use) == use


def test_a_slot_may_be_left_empty():
    assert DataUse.model_validate({"harmful": "a/b", "harmless": None}).slots.keys() == {"harmful"}
    assert not DataUse.model_validate({}) and not DataUse()


def test_no_domains_and_all_examples_may_be_said_for_one_slot():
    use = DataUse.model_validate(
        {
            "harmful": {"part": "a/b", "domains": None},
            "repair": {"part": "a/c", "examples": None},
            "domains": ["x"],
            "examples": 3,
        }
    )
    assert use.slots["harmful"] == TextUse(part="a/b", examples=3)
    assert use.slots["repair"] == TextUse(part="a/c")


# -- candidates ------------------------------------------------------------------------------------


@given(
    st.integers(0, 10**6),
    st.none() | st.integers(0, 2**32 - 1),
    st.none() | st.dictionaries(SLOTS, PARTS, min_size=1),
    st.booleans(),
)
def test_a_candidate_in_one_line(steps, seed, data, named):
    defense: Any = {"name": "lox", "settings": {"rank": 3}} if named else "lox"
    flat = {"name": "x", "defense": defense, "steps": steps}
    flat |= {} if seed is None else {"seed": seed}
    flat |= {} if data is None else {"data": data}
    candidate = Candidate.model_validate(flat)
    (stage,) = candidate.stages
    assert (stage.method.name, stage.steps) == ("lox", steps)
    assert stage.data == (None if data is None else DataUse.model_validate(data))
    assert candidate.seeds == ((0,) if seed is None else (seed,))
    for options in ({}, {"exclude_unset": True}, {"exclude_defaults": True}):
        again = candidate.model_dump(mode="json", **options)
        assert Candidate.model_validate(again) == candidate


def test_the_defenses_of_a_candidate_in_order():
    stages = [{"method": name, "steps": 1} for name in ("sft_refusal", "lox")]
    candidate = Candidate.model_validate(
        {"name": "x", "stages": stages, "service": {"method": "lisa"}}
    )
    assert [use.name for use in candidate.defenses] == ["sft_refusal", "lox", "lisa"]
    assert Candidate(name=CONTROL).defenses == ()


def test_a_model_from_elsewhere_may_stand_behind_a_service():
    candidate = Candidate.model_validate(
        {"name": "x", "model": "tiny:base", "service": {"method": "lisa"}}
    )
    assert str(candidate.model) == "tiny:base" and candidate.service


def test_checkpoints_and_attack_seeds_are_as_many(small_study):
    stages = [{"method": "sft_refusal", "steps": 1}]
    study = small_study(candidates=[{"name": "x", "stages": stages, "seeds": [7, 8]}])
    assert study.candidates[1].seeds == (7, 8) and len(study.resistance.seeds) == 2


# -- budgets ---------------------------------------------------------------------------------------


def resistance(**fields: Any) -> Resistance:
    data, harm = {"harmful": "harm/attack"}, {"measure": "exact_answer", "part": "harm/judge"}
    given = {"attacks": ["full_sft"], "data": data, "harm": harm, "confirm": "harm/confirm"}
    return Resistance.model_validate({**given, "budget": 8, "seeds": [1], **fields})


@given(st.integers(1, 5000), st.integers(1, 5000), st.booleans(), st.sets(st.integers(1, 4999)))
def test_probes_of_an_attack_go_from_0_to_its_own_budget(budget, own, flops, between):
    inner = sorted(p for p in between if p < budget)
    for probes in ("geometric", [0, *inner, budget]):
        spec = resistance(budget=budget, probes=probes)
        asked = FlopsBudget(flops=1e12, steps=own) if flops else own
        attack = AttackUse(attack="full_sft", budget=asked)
        grid = spec.grid(attack)
        assert grid[0] == 0 and grid[-1] == own == spec.steps_of(attack)
        assert all(a < b for a, b in pairwise(grid))
        assert spec.grid(AttackUse(attack="full_sft")) == spec.grid() and spec.grid()[-1] == budget
        if probes != "geometric" and own >= budget:
            assert set(spec.grid()) <= {*grid}


def test_a_sweep_hands_on_all_that_is_said_of_the_attack():
    attack = AttackUse.model_validate(
        {
            "attack": "full_sft",
            "name": "mine",
            "sweep": {"lr": [1e-3, 1e-4], "batch_size": [4, 8]},
            "budget": {"flops": 1e9, "steps": 5},
            "role": "reference",
            "reward": {"measure": "exact_answer"},
            "data": {"harmful": "harm/attack"},
        }
    )
    points = attack.expand()
    assert [p.label for p in points][:2] == [
        "mine@lr=0.001@batch_size=4",
        "mine@lr=0.001@batch_size=8",
    ]
    for point in points:
        assert not point.sweep and point.settings.keys() == {"lr", "batch_size"}
        assert (point.budget, point.role, point.reward, point.data) == (
            attack.budget,
            attack.role,
            attack.reward,
            attack.data,
        )


def test_a_measure_may_bring_its_own_items(small_study):
    study = small_study()
    resistance = study.resistance.model_dump(mode="json") | {"capability": {"measure": "mine"}}
    assert small_study(resistance=resistance).resistance.capability == MeasureUse(measure="mine")


# -- further models --------------------------------------------------------------------------------


def test_further_models_are_references(small_study):
    study = small_study(models={"judge": "hub:o/n", "base": {"source": "tiny", "name": "base"}})
    assert study.models == {
        "judge": ModelRef(source="hub", name="o/n"),
        "base": ModelRef(source="tiny", name="base"),
    }
    assert load_study(study.model_dump(mode="json")) == study


# -- cells -----------------------------------------------------------------------------------------

METHOD = CellMethod(kind="attack", name="full_sft", version=1, settings={"lr": 1e-3})
TEXT = PartUse(part="harm/attack", content="c1")
MEASURE = CellMeasure(label="harm", name="exact_answer", version=1, settings={}, text=TEXT)
CELL = Cell(model="tiny:x")
OTHERS: dict[str, list[Any]] = {
    "model": ["tiny:y"],
    "parent": ["abc"],
    "method": [
        METHOD,
        *(
            METHOD.model_copy(update=change)
            for change in (
                {"kind": "defense"},
                {"name": "lora_sft"},
                {"version": 2},
                {"settings": {"lr": 1e-4}},
                {"code": "f00"},
            )
        ),
    ],
    "texts": [
        {"harmful": TEXT},
        {"harmless": TEXT},
        {"harmful": TEXT.model_copy(update={"content": "c2"})},
        {"harmful": TEXT.model_copy(update={"examples": 3})},
        {"harmful": TEXT.model_copy(update={"domains": ("a",)})},
    ],
    "models": [{"parent": CellStart(model="m")}, {"parent": CellStart(model="m", parent="p")}],
    "host": [CellHost(method=METHOD), CellHost(method=METHOD, texts={"harmful": TEXT})],
    "reward": [MEASURE, MEASURE.model_copy(update={"version": 2})],
    "seed": [1],
    "steps": [1],
    "flops": [1e9],
    "probes": [(0,), (0, 1)],
    "measures": [
        (MEASURE,),
        *(
            (MEASURE.model_copy(update=change),)
            for change in ({"at": "ends"}, {"code": "f00"}, {"text": None}, {"judge": "other"})
        ),
    ],
    "stop": [StopRule(above=0.5, suspect=0.3, level=0.01)],
    "precision": ["bf16_autocast"],
    "max_length": [64],
    "keep": [True],
}


def test_whatever_determines_a_result_is_in_the_address_of_its_cell():
    assert set(OTHERS) == set(Cell.model_fields) - {"format"}
    cells = [CELL.model_copy(update={name: v}) for name, vs in OTHERS.items() for v in vs]
    assert len({c.digest for c in (CELL, *cells)}) == len(cells) + 1
    for cell in (CELL, *cells):
        again = Cell.model_validate_json(cell.model_dump_json())
        assert again == cell and again.digest == cell.digest


@pytest.mark.parametrize("parent", [None, "abc"])
def test_where_a_cell_starts(parent):
    cell = CELL.model_copy(update={"parent": parent})
    assert cell.start == CellStart(model="tiny:x", parent=parent)
