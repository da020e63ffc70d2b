"""Near-duplicates against arrays worked out by hand."""

import math

import numpy as np
import pytest

from titer.data.examples import Example
from titer.data.near import drop_near, exact_overlap, near_duplicates, tfidf


def test_weights_by_hand():
    # Two texts, terms sorted: a, "a b", b, "b b". Text 0 "a b b": counts 1 1 2 1; text 1 "a": 1 0 0
    # 0. ln((1 + 2)/(1 + df)) + 1 is 1 for a (df 2), else 1 + ln 1.5 (df 1).
    rare = 1 + math.log(1.5)
    raw = np.array([[1.0, rare, 2 * rare, rare], [1.0, 0, 0, 0]])
    expected = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    np.testing.assert_allclose(tfidf(["a b b", "A!"]).toarray(), expected, atol=1e-12)


def test_cosine_by_hand():
    # Of "a b" (a, "a b", b) and "a c" (a, "a c", c) only a is shared: cosine 1 / (1 + 2 rare²).
    rare = 1 + math.log(1.5)
    [(i, j, score)] = near_duplicates(["a b"], ["a c"], 0.1)
    assert (i, j) == (0, 0) and score == pytest.approx(1 / (1 + 2 * rare**2))


def test_indices_and_threshold():
    first = ["bake a loaf of bread", "paint the old fence"]
    second = ["fly a kite", "Bake a loaf of bread!", "paint the old garden fence"]
    assert {(i, j) for i, j, _ in near_duplicates(first, second, 0.99)} == {(0, 1)}
    assert {(i, j) for i, j, _ in near_duplicates(first, second, 0.4)} == {(0, 1), (1, 2)}


@pytest.mark.parametrize(
    ("first", "second"), [([], ["a"]), (["a"], []), ([""], [""]), (["?!"], ["a"])]
)
def test_nothing_is_near_nothing(first, second):
    assert near_duplicates(first, second, 0.1) == []


def test_drop_near_keeps_order():
    examples = [Example(prompt=p) for p in ("knit a scarf", "bake bread today", "fly a kite")]
    kept = drop_near(examples, [Example(text="Bake bread today.")], 0.6)
    assert [e.prompt for e in kept] == ["knit a scarf", "fly a kite"]


def test_exact_overlap_ignores_case_space_and_answers():
    shared = exact_overlap(
        [Example(prompt="Fly  a kite", response="x")], [Example(prompt=" fly a KITE")]
    )
    assert shared == {Example(prompt="fly a kite").key}
    assert not exact_overlap([Example(prompt="fly a kite")], [Example(prompt="fly a kite.")])


@pytest.mark.real
@pytest.mark.timeout(600)
def test_advbench_shares_prompts_with_strongreject():
    from titer.data.sources import load_source

    text = {
        n: [e.prompt for e in load_source(n, {}).examples]
        for n in ("advbench", "strongreject", "harmbench")
    }
    assert (
        len({j for _, j, _ in near_duplicates(text["advbench"], text["strongreject"], 0.6)}) == 26
    )
    assert len({j for _, j, _ in near_duplicates(text["advbench"], text["harmbench"], 0.6)}) == 2
