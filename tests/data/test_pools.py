"""Cutting text into disjoint parts, against counting by hand."""

import copy
import json
import random
from collections import Counter
from itertools import combinations, pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from titer.data.examples import Example
from titer.data.near import near_duplicates
from titer.data.pools import Pools, _cut
from titer.errors import OverlapError, StudyError
from titer.study.spec import Pool


@pytest.fixture
def pools(tmp_path):
    """A function: name → (rows, fields of the pool) to Pools over files of those rows."""

    def make(**given):
        specs = {}
        for name, (rows, fields) in given.items():
            rows = [{"prompt": r} if isinstance(r, str) else r for r in rows]
            path = tmp_path / f"{name}.jsonl"
            path.write_text("\n".join(map(json.dumps, rows)))
            specs[name] = Pool(source="jsonl", options={"path": str(path)}, **fields)
        return Pools(SimpleNamespace(pools=specs))

    return make


def numbered(count, what="cloud", **fields):
    return [{"prompt": f"Describe {what} {i}", **fields} for i in range(count)]


def prompts(examples):
    return [e.prompt for e in examples]


# -- cutting ---------------------------------------------------------------------------------------

domains = st.lists(st.sampled_from("abcd"), min_size=8, max_size=60)


@given(domains, st.lists(st.integers(1, 8), min_size=1, max_size=4), st.integers(0, 5))
def test_parts_have_their_sizes_and_share_nothing(names, sizes, shuffle):
    examples = tuple(Example(prompt=f"question {i}", domain=d) for i, d in enumerate(names))
    pool = Pool(source="jsonl", parts={f"part{k}": n for k, n in enumerate(sizes)}, shuffle=shuffle)
    if sum(sizes) > len(examples):
        with pytest.raises(StudyError, match=f"too little text.*at most {len(examples)} examples"):
            _cut("pool", pool, examples)
        return
    parts = _cut("pool", pool, examples)
    assert [len(p) for p in parts.values()] == sizes
    used = [e.key for part in parts.values() for e in part]
    assert len(used) == len(set(used)) and set(used) <= {e.key for e in examples}
    assert _cut("pool", pool, examples) == parts


@given(domains, st.integers(0, 5), st.data())
def test_every_part_has_its_share_of_every_domain(names, shuffle, data):
    """A prefix of x · N examples holds x · T of each domain's T, give or take one; so a part is off
    by at most two.
    """
    examples = tuple(Example(prompt=f"question {i}", domain=d) for i, d in enumerate(names))
    first = data.draw(st.integers(1, len(examples)))
    part = _cut("pool", Pool(source="jsonl", parts={"first": first}, shuffle=shuffle), examples)[
        "pool/first"
    ]
    totals, found = Counter(names), Counter(e.domain for e in part)
    for domain, total in totals.items():
        # The prefix ends at some x with x·N within one per domain of `first`.
        slack = 1 + len(totals) * total / len(examples)
        assert abs(found[domain] - first * total / len(examples)) <= slack


def test_another_shuffle_is_another_cut(pools):
    one, two = (
        pools(a=(numbered(40), {"parts": {"x": 20}, "shuffle": s})).part("a/x") for s in (0, 1)
    )
    assert set(prompts(one)) != set(prompts(two))


def test_the_cut_depends_on_nothing_but_its_own_pool(pools):
    a = (
        numbered(30, "cloud", domain="sky") + numbered(30, "pond", domain="water"),
        {"parts": {"x": 20, "y": 10}, "merge": {"air": ["sky"], "sea": ["water"]}},
    )
    b = (numbered(30, "tulip"), {"parts": {"z": 10}})
    first, swapped = pools(a=a, b=b), pools(b=b, a=a)
    other_merge = (a[0], {**a[1], "merge": {"sea": ["water"], "air": ["sky"]}})
    alone = pools(a=other_merge)
    for address in ("a/x", "a/y"):
        assert first.part(address) == swapped.part(address) == alone.part(address)
        assert first.digest(address) == swapped.digest(address) == alone.digest(address)


def test_repeated_prompts_are_taken_once(pools):
    both = pools(a=(["Fly a kite", "fly  a KITE", "Paint a fence"], {"parts": {"x": 2}}))
    assert sorted(prompts(both.part("a/x"))) == ["Fly a kite", "Paint a fence"]
    with pytest.raises(StudyError, match="too little text"):
        pools(a=(["Fly a kite", "fly  a KITE", "Paint a fence"], {"parts": {"x": 3}}))


# -- overlap ---------------------------------------------------------------------------------------


def test_a_prompt_in_two_pools_is_an_error_that_names_them(pools):
    with pytest.raises(
        OverlapError, match=r"'train' and 'judge' share 1 examples.*drop_near: \[train\]"
    ):
        pools(
            train=(["Fly a kite", "Bake bread"], {"parts": {"x": 1}}),
            harmless=(["Paint a fence"], {"parts": {"y": 1}}),
            judge=(["fly a  kite", "Knit a scarf"], {"parts": {"z": 1}}),
        )


def test_drop_near_mends_it(pools):
    result = pools(
        train=(["Fly a kite today", "Bake bread"], {"parts": {"x": 2}}),
        judge=(
            ["Please, fly a kite today", "Knit a scarf", "Bake bread"],
            {"parts": {"z": 1}, "drop_near": ["train"]},
        ),
    )
    assert prompts(result.part("judge/z")) == ["Knit a scarf"]
    assert result.removed == {"judge": 2} and result.disjointness()["near_removed"] == {"judge": 2}


def test_drop_near_within_a_pool_keeps_the_first_of_each(pools):
    rows = [
        "Fly a red kite today",
        "Knit a scarf",
        "Fly a red kite today, please",
        "Fly a red kite today now",
    ]
    result = pools(a=(rows, {"parts": {"x": 2}, "drop_near": ["a"]}))
    assert sorted(prompts(result.part("a/x"))) == ["Fly a red kite today", "Knit a scarf"]


def test_what_is_near_only_to_something_dropped_stays(pools):
    chain = [
        "fly a red kite over old hills",
        "fly a red kite over old roofs",
        "fly a big kite over old roofs",
    ]
    near = {(i, j) for i, j, _ in near_duplicates(chain, chain, 0.5) if i < j}
    assert near == {(0, 1), (1, 2)}
    result = pools(a=(chain, {"parts": {"x": 2}, "drop_near": ["a"], "near_threshold": 0.5}))
    assert sorted(prompts(result.part("a/x"))) == [chain[2], chain[0]]


def test_the_threshold_decides(pools):
    rows = ["Fly a red kite today", "Fly a red kite tomorrow"]
    [(_, _, cosine)] = near_duplicates([rows[1], "Knit a scarf"], rows[:1], 0.2)
    for threshold, left in ((cosine - 0.01, 1), (cosine + 0.01, 2)):
        result = pools(
            a=(rows[:1], {"parts": {"x": 1}}),
            b=(
                [rows[1], "Knit a scarf"],
                {"parts": {"y": 1}, "drop_near": ["a"], "near_threshold": threshold},
            ),
        )
        assert len(rows) - result.removed["b"] == left


def test_the_proof_says_what_counting_finds(pools):
    subjects = (
        "whales",
        "castles",
        "violins",
        "glaciers",
        "lanterns",
        "orchards",
        "bridges",
        "harbours",
    )
    near = [
        f"write a calm and friendly letter about {s} to a good neighbour{e}"
        for s in subjects
        for e in ("", " now")
    ]
    rows = [f"please {n}" for n in near[::4]] + prompts_of(numbered(16, "pond"))
    result = pools(
        a=([*near, *prompts_of(numbered(10, "stone"))], {"parts": {"x": 13, "y": 13}}),
        b=([*rows, {"text": "Once upon a time there was a pond."}], {"parts": {"z": 21}}),
    )
    proof = result.disjointness()
    parts = {"a/x": result.part("a/x"), "a/y": result.part("a/y"), "b/z": result.part("b/z")}
    assert proof["sizes"] == {"a/x": 13, "a/y": 13, "b/z": 21}
    assert proof["exact_overlap"] == 0
    counted = {}
    for (a, first), (b, second) in combinations(parts.items(), 2):
        assert not {e.key for e in first} & {e.key for e in second}
        both = [e.prompt or e.text for e in (*first, *second)]
        similar = cosines(both)[: len(first), len(first) :]
        if found := int((similar > 0.8).any(axis=0).sum()):
            counted[f"{a}~{b}"] = found
    assert counted  # else there was nothing to find
    assert proof["near_duplicates"] == counted


def test_the_proof_counts_exact_overlap(pools):
    result = pools(a=(numbered(20), {"parts": {"x": 10, "y": 10}}))
    result._parts["a/y"] = (*result.part("a/y"), *result.part("a/x")[:3])
    assert result.disjointness()["exact_overlap"] == 3


def prompts_of(rows):
    return [r["prompt"] for r in rows]


def cosines(texts):
    """TF-IDF over words and pairs of words, by loops over terms."""
    words = [
        "".join(c if c.isalnum() or c == "_" else " " for c in t.casefold()).split() for t in texts
    ]
    bags = [Counter([*w, *(f"{a} {b}" for a, b in pairwise(w))]) for w in words]
    terms = sorted({t for bag in bags for t in bag})
    weight = {t: np.log((1 + len(texts)) / (1 + sum(t in bag for bag in bags))) + 1 for t in terms}
    rows = np.array([[bag[t] * weight[t] for t in terms] for bag in bags])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows @ rows.T


# -- domains ---------------------------------------------------------------------------------------


@pytest.fixture
def meadow(pools):
    rows = (
        numbered(12, "cloud", domain="sky")
        + numbered(12, "pond", domain="water")
        + numbered(12, "fog", domain="haze")
    )
    return pools(a=(rows, {"parts": {"x": 30}, "merge": {"air": ["sky", "haze"]}}))


def test_domains_are_merged_and_filtered(meadow):
    assert {e.domain for e in meadow.part("a/x")} == {"air", "water"}
    water = meadow.part("a/x", ["water"])
    assert {e.domain for e in water} == {"water"} and set(water) < set(meadow.part("a/x"))
    assert meadow.part("a/x", ["water", "air"]) == meadow.part("a/x")
    assert meadow.digest("a/x", ["water"]) != meadow.digest("a/x")


@pytest.mark.parametrize(
    ("chosen", "says"), [(["sky"], "one of air, water"), ([], "at least one domain")]
)
def test_a_domain_without_data(meadow, chosen, says):
    with pytest.raises(StudyError, match=f"domains of a/x.*{says}"):
        meadow.part("a/x", chosen)


def test_merging_what_is_not_there(pools):
    with pytest.raises(StudyError, match=r"pools\.a\.merge = 'skye'.*one of sky"):
        pools(a=(numbered(3, domain="sky"), {"parts": {"x": 1}, "merge": {"air": ["skye"]}}))


# -- drawing ---------------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 40))
def test_a_draw_is_a_subset_without_repetition(fourty, seed, count):
    drawn = fourty.draw("a/x", count=count, seed=seed)
    assert len(drawn) == len({e.key for e in drawn}) == count and set(drawn) <= set(
        fourty.part("a/x")
    )
    assert drawn == fourty.draw("a/x", count=count, seed=seed)


@pytest.fixture(scope="module")
def fourty(tmp_path_factory):
    path = tmp_path_factory.mktemp("pools") / "a.jsonl"
    rows = numbered(20, "cloud", domain="sky") + numbered(20, "pond", domain="water")
    path.write_text("\n".join(map(json.dumps, rows)))
    spec = Pool(source="jsonl", options={"path": str(path)}, parts={"x": 40})
    return Pools(SimpleNamespace(pools={"a": spec}))


def test_seeds_draw_differently_and_evenly(fourty):
    draws = [fourty.draw("a/x", count=20, seed=s) for s in range(200)]
    assert len({frozenset(d) for d in draws}) == 200
    # Each example is drawn with probability 1/2: 200 draws, standard deviation 7; none lies 5 of
    # them away.
    often = Counter(e.key for d in draws for e in d)
    assert all(65 <= often[e.key] <= 135 for e in fourty.part("a/x"))


def test_a_draw_does_not_look_at_global_randomness(fourty):
    first = fourty.draw("a/x", count=10, seed=3)
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    assert fourty.draw("a/x", count=10, seed=3) == first
    before = torch.get_rng_state(), copy.deepcopy(np.random.get_state()), random.getstate()
    fourty.draw("a/x", count=10, seed=3)
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[2]
    assert (np.random.get_state()[1] == before[1][1]).all() and np.random.get_state()[2] == before[
        1
    ][2]


def test_a_draw_within_domains(fourty):
    assert {e.domain for e in fourty.draw("a/x", count=10, seed=1, domains=["water"])} == {"water"}
    with pytest.raises(StudyError, match="at most 20"):
        fourty.draw("a/x", count=21, seed=1, domains=["water"])


def test_no_count_is_everything_in_order(fourty):
    assert (
        fourty.draw("a/x", count=None, seed=1)
        == fourty.draw("a/x", count=None, seed=2)
        == fourty.part("a/x")
    )


# -- answers ---------------------------------------------------------------------------------------


def test_answers_are_put_where_the_pool_says(pools):
    rows = [
        {"prompt": "Bake bread", "response": "Knead it."},
        {"prompt": "Fly a kite", "refusal": "Not today."},
    ]
    given = pools(a=(rows, {"parts": {"x": 2}})).part("a/x")
    assert {(e.response, e.refusal) for e in given} == {("Knead it.", None), (None, "Not today.")}
    made = {
        e.prompt: e
        for e in pools(
            a=(rows, {"parts": {"x": 2}, "respond": "content_free", "refuse": "standard"})
        ).part("a/x")
    }
    assert made["Bake bread"].response == "Sure, here is how to bake bread:\n\nStep 1:"
    assert made["Fly a kite"].refusal == "Not today." and made["Bake bread"].refusal
