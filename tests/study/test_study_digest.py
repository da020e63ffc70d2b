"""A study's digest: the same however it is written, another one for whatever changes what is
studied.
"""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from titer.study import builtin_studies, load_study
from titer.study.base import Strict, digest
from titer.study.escaping import escaped, visible

SHORT = yaml.safe_load(builtin_studies()["quickstart"])
BASE = load_study("quickstart").model_dump(mode="json", exclude_unset=True)
for pool in BASE["pools"].values():
    pool["parts"]["spare"] = 1  # another part to name, since no part may serve two ends
DIGEST = load_study(BASE).digest


def leaves(value: Any, path: tuple = ()) -> list[tuple]:
    """Path of every value in a study that is not a mapping or a list of mappings."""
    if isinstance(value, dict):
        return [leaf for k, v in value.items() for leaf in leaves(v, (*path, k))]
    if isinstance(value, list) and any(isinstance(v, (dict, list)) for v in value):
        return [leaf for i, v in enumerate(value) for leaf in leaves(v, (*path, i))]
    return [path]


def changed(path: tuple, value: Any) -> dict:
    study = copy.deepcopy(BASE)
    here: Any = study
    for step in path[:-1]:
        here = here[step]
    here[path[-1]] = value
    return study


OTHER = {  # another valid value, where "a bit more" would not be one
    ("threat_model",): "fine_tuning_service",
    ("model", "source"): "package",
    ("resistance", "confirm"): "harm/spare",
    ("generalization", "attack"): "full_sft@lr=0.001",
    ("runtime", "precision"): "bf16_autocast",
    ("candidates", 1, "name"): "another",
    ("candidates", 2, "name"): "another",
}
SILENT = {("runtime", f) for f in ("eval_batch", "workers", "threads", "device", "price_per_hour")}


def other_value(path: tuple, old: Any) -> Any:
    if path in OTHER:
        return OTHER[path]
    if path[-1] == "kind":
        return "other"
    if path[-1] in ("part", "search_part"):
        return f"{old.partition('/')[0]}/spare"
    if isinstance(old, bool) or old is None:
        raise AssertionError(f"give {path} another value in OTHER")
    if isinstance(old, float):
        return old / 2 if path[-1] != "slowdown" else old + 1
    if isinstance(old, int):
        return old + 1
    if isinstance(old, list):
        return old[:-1] if len(old) > 1 else [other_value(path, old[0])]
    return old + "_x"


# The control is always there; the matrix names its attack, so that alone cannot be changed.
LEFT_OUT = {("candidates", 0, "name"), ("resistance", "attacks", 0, "attack")}
STAGE = ("candidates", 1, "stages")
MATTER = [p for p in leaves(BASE) if p not in SILENT | LEFT_OUT]


@pytest.mark.parametrize("path", MATTER, ids=lambda p: ".".join(map(str, p)))
def test_every_value_matters(path):
    here: Any = BASE
    for step in path:
        here = here[step]
    study = load_study(changed(path, other_value(path, here)))
    assert study.digest != DIGEST


HARM = {"measure": "exact_answer", "part": "harm/judge"}
ADDED = [
    (("theoretical_guarantee",), "a theorem"),
    (("model", "revision"), "main"),
    (("model", "trust_remote_code"), True),
    (("align",), {"method": "sft_refusal", "data": {"harmful": "harm/spare"}, "steps": 1}),
    (("pools", "harm", "respond"), "content_free"),
    (("pools", "harm", "refuse"), "standard"),
    (("pools", "harm", "merge"), {"all": ["vexar"]}),
    (("pools", "harm", "drop_near"), ["harm"]),
    (("pools", "harm", "near_threshold"), 0.7),
    (("pools", "harm", "shuffle"), 1),
    (("models",), {"small": "tiny:base"}),
    (("defense_data", "slots", "harmful", "domains"), ["vexar"]),
    (("defense_data", "slots", "harmless", "examples"), 10),
    (("defense_data", "slots", "held_out"), {"part": "harm/spare"}),
    (("candidates", 1, "seeds"), [1]),
    (("candidates", 1, "seeds"), [1, 2, 3, 4, 5]),
    ((*STAGE, 0, "data"), {"harmful": "harm/spare"}),
    (STAGE, [{"method": "sft_refusal", "steps": 3}] * 2),
    (("candidates", 1, "service"), {"method": "lisa"}),
    (("candidates", 1, "service"), {"method": "lisa", "data": {"harmful": "harm/spare"}}),
    (("resistance", "attacks", 1, "budget"), 32),
    (("resistance", "attacks", 1, "budget"), {"flops": 1e12, "steps": 64}),
    (("resistance", "attacks", 1, "role"), "reference"),
    (("resistance", "attacks", 1, "reward"), {"measure": "exact_answer"}),
    (("resistance", "attacks", 1, "name"), "lora"),
    (("resistance", "attacks", 1, "data"), {"harmful": "harm/attack"}),
    (("resistance", "probes"), [0, 64]),
    (("resistance", "harm", "limit"), 10),
    (("resistance", "harm", "domains"), ["vexar"]),
    (("resistance", "second"), HARM),
    (("resistance", "quantile"), 0.6),
    (("resistance", "search_seeds"), [1]),
    (("resistance", "search_part"), "harm/spare"),
    (("stability", "alpha"), 0.01),
    (("generalization", "candidates"), ["sft_refusal"]),
    (("trainability", "alpha"), 0.01),
]


@pytest.mark.parametrize(
    ("path", "value"), ADDED, ids=lambda p: ".".join(map(str, p)) if isinstance(p, tuple) else None
)
def test_every_field_the_quickstart_leaves_at_its_default_matters(path, value):
    assert load_study(changed(path, value)).digest != DIGEST


def test_where_the_code_of_plug_ins_is_does_not_matter():
    """Cells say which code it was."""
    study = load_study(changed(("plugins",), ["here.py", "there.py"]))
    assert study.plugins == ("here.py", "there.py") and study.digest == DIGEST


def test_the_order_of_stages_and_of_seeds_matters():
    def digest_of(**candidate):
        return load_study(changed(("candidates", 1), {"name": "x", **candidate})).digest

    first, second = ({"method": "sft_refusal", "steps": n} for n in (3, 4))
    assert digest_of(stages=[first, second]) != digest_of(stages=[second, first])
    one = digest_of(stages=[first], seeds=[1, 2, 3, 4, 5])
    assert one != digest_of(stages=[first], seeds=[5, 4, 3, 2, 1])


def test_short_forms_are_the_same_study():
    flat = {"name": "x", "defense": "sft_refusal", "steps": 3, "seed": 7}
    stage = {"method": {"name": "sft_refusal"}, "steps": 3}
    staged = {"name": "x", "stages": [stage], "seeds": [7]}
    one, other = ({**SHORT, "candidates": [c]} for c in (flat, staged))
    assert load_study(one).digest == load_study(other).digest
    one["resistance"] = SHORT["resistance"] | {"data": {"harmful": "harm/attack", "examples": 240}}
    text = {"part": "harm/attack", "examples": 240}
    for data in ({"harmful": text}, {"slots": {"harmful": text}}, {"harmful": text, "examples": 1}):
        other["resistance"] = SHORT["resistance"] | {"data": data}
        assert load_study(one).digest == load_study(other).digest


def test_a_search_is_another_study_than_a_sweep():
    attacks = [{**BASE["resistance"]["attacks"][0]}, {**BASE["resistance"]["attacks"][1]}]
    attacks[1]["search"] = attacks[1].pop("sweep")
    study = changed(("resistance", "attacks"), attacks)
    study["resistance"] |= {"search_seeds": [1], "search_part": "harm/spare"}
    assert load_study(study).digest != DIGEST


@pytest.mark.parametrize(
    ("field", "value"),
    [("eval_batch", 7), ("workers", 5), ("threads", 3), ("device", "cpu"), ("price_per_hour", 2.5)],
)
def test_how_the_work_is_done_does_not_matter(field, value):
    study = load_study(changed(("runtime", field), value))
    assert getattr(study.runtime, field) == value and study.digest == DIGEST


@given(st.randoms(use_true_random=False))
def test_the_order_of_keys_does_not_matter(random):
    def shuffled(value: Any) -> Any:
        if isinstance(value, dict):
            items = list(value.items())
            random.shuffle(items)
            return {k: shuffled(v) for k, v in items}
        return [shuffled(v) for v in value] if isinstance(value, list) else value

    assert load_study(shuffled(BASE)).digest == DIGEST


def test_the_control_may_be_left_out():
    assert BASE["candidates"][0] == {"name": "none"}
    assert load_study(changed(("candidates",), BASE["candidates"][1:])).digest == DIGEST


def test_writing_a_default_out_does_not_matter():
    study = load_study("quickstart")
    assert load_study(study.model_dump(mode="json")).digest == study.digest
    assert load_study(study.model_dump(mode="json", exclude_defaults=True)).digest == study.digest


def test_the_order_of_seeds_and_parts_matters():
    """Seeds run in declared order, and parts are cut in it: another order is another study."""
    seeds = BASE["resistance"]["seeds"]
    assert load_study(changed(("resistance", "seeds"), seeds[::-1])).digest != DIGEST


def test_committed_records_still_belong_to_the_quickstart():
    """The digest the published records carry: if this changes, they are those of another study."""
    recorded = Path(__file__).parents[2] / "docs/results/records/quickstart"
    plan = json.loads((recorded / "plan.json").read_text())
    assert plan["study"] == load_study("quickstart").digest


def test_a_field_added_later_changes_no_digest_at_its_default():
    class Old(Strict):
        name: str

    class New(Old):
        again: int = 0
        LATER = frozenset({"again"})

    assert digest(New(name="a")) == digest(Old(name="a"))
    assert digest(New(name="a", again=1)) != digest(Old(name="a"))
    assert New.model_validate_json(New(name="a").model_dump_json()) == New(name="a")


@given(st.text())
def test_what_cannot_be_seen_is_written_out(text):
    shown = visible(text)
    assert all(c in "\n\t" or (c.isprintable() or ord(c) > 0x9F) for c in shown)
    assert "\x1b" not in shown and "\u202e" not in shown
    assert json.loads(escaped(json.dumps(text, ensure_ascii=False))) == text
    if text.isprintable():
        assert visible(text) == text or max(text) >= "\u200e"


def test_escape_sequences_are_told_by_name():
    assert visible("a\x1b[2Jb\u202ec\r\n") == "a\\x1b[2Jb\\u202ec\\x0d\n"
