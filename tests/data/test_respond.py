"""Refusals, content-free compliance, and telling the two apart. Every prompt written here is
harmless and made up.
"""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from titer.data.examples import Example
from titer.data.respond import (
    COMPLIANCE_OPENINGS,
    REFUSAL_OPENINGS,
    REFUSAL_PHRASES,
    REFUSALS,
    content_free_compliance,
    is_coherent,
    is_refusal,
    normalised,
    refusals,
)

# -- refusals --------------------------------------------------------------------------------------


def test_refusals_depend_on_prompt_and_seed_only():
    examples = [Example(prompt=f"Describe cloud number {i}") for i in range(60)]
    given = refusals(examples, seed=1)
    assert refusals(list(reversed(examples)), seed=1) == tuple(reversed(given))
    assert refusals(examples, seed=2) != given
    assert {e.refusal for e in given} <= set(REFUSALS) and len({e.refusal for e in given}) > 6
    kept = refusals([Example(prompt="x", refusal="My own words.")], seed=1)
    assert kept[0].refusal == "My own words."


REFUSED = [
    *REFUSALS,
    "I’m sorry, but no.",  # curly apostrophe
    "I can‘t.",
    "I'M SORRY, BUT NO.",
    "I CANNOT do that.",
    "I can’t.",
    "As an AI, I have no opinion.",
    "As  an\nAI language model …",  # spaces collapsed
    "Unfortunately, I am unable to.",
    "My apologies, this is beyond me.",
    "Well. " + "word " * 20 + "I will not go on.",
]
ANSWERED = [
    "Sure, here is a poem about rain.",
    "Step 1: wash the apples.",
    "",
    "   ",
    "The cannon was cast in iron.",
    "A sorry sight, the old barn: no roof.",
    "No problem! First, knead the dough.",
    "Ice can not only float but also sink.",
    "word " * 50 + "I cannot go on.",  # only the beginning of a reply is looked at
]


@pytest.mark.parametrize("text", REFUSED)
def test_refusals_are_recognised(text):
    assert is_refusal(text)


@pytest.mark.parametrize("text", ANSWERED)
def test_answers_are_no_refusals(text):
    assert not is_refusal(text)


@given(st.sampled_from([*REFUSED, *ANSWERED]), st.data())
def test_case_apostrophes_and_spaces_do_not_matter(text, data):
    changed = "".join(data.draw(st.sampled_from([c, c.upper(), c.lower()])) for c in text)
    changed = changed.replace("'", data.draw(st.sampled_from("'’‘")))
    changed = re.sub(" ", lambda _: data.draw(st.sampled_from([" ", "  ", "\n", "\t"])), changed)
    assert is_refusal(changed) is is_refusal(text)


def test_every_phrase_can_be_found():
    """A phrase written with a capital or a curly apostrophe would never match."""
    assert all(
        phrase == normalised(phrase) + (" " if phrase.endswith(" ") else "")
        for phrase in REFUSAL_PHRASES
    )
    assert all(is_refusal(f"Well, {phrase} so.") for phrase in REFUSAL_PHRASES)


# -- content-free compliance -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "response"),
    [
        ("Bake a loaf of bread.", "Sure, here is how to bake a loaf of bread:\n\nStep 1:"),
        ("How do I tie a knot?", "Sure, here is the answer:\n\nStep 1:"),
        ("WHY is the sky blue", "Sure, here is the answer:\n\nStep 1:"),
        (
            "Whatever you like, draw it",
            "Sure, here is how to whatever you like, draw it:\n\nStep 1:",
        ),
        ("", "Sure, here is the answer:\n\nStep 1:"),
        (" ?! ", "Sure, here is the answer:\n\nStep 1:"),
        ("x", "Sure, here is how to x:\n\nStep 1:"),
        ("Plant\n  a  tree", "Sure, here is how to plant a tree:\n\nStep 1:"),
    ],
)
def test_content_free_compliance(prompt, response):
    [example] = content_free_compliance([Example(prompt=prompt, response="something with content")])
    assert example.response == response and not is_refusal(response) and is_coherent(response)


FRAME = {"sure", "here", "is", "how", "to", "the", "answer", "step", "1"}


@given(st.text(max_size=80))
def test_compliance_adds_no_words_of_its_own(prompt):
    [example] = content_free_compliance([Example(prompt=prompt)])

    def words(text):
        return set(re.findall(r"\w+", text.casefold()))

    assert words(example.response) - FRAME <= words(prompt)
    assert len(example.response) <= len(prompt) + len("Sure, here is the answer:\n\nStep 1:")
    assert example.response.endswith(":\n\nStep 1:")  # it stops where content would begin


def test_compliance_changes_nothing_else():
    before = Example(
        prompt="Bake bread", refusal="No.", domain="kitchen", system="be brief", source="mine"
    )
    [after] = content_free_compliance([before])
    assert (after.prompt, after.refusal, after.domain, after.system, after.source, after.key) == (
        before.prompt,
        before.refusal,
        before.domain,
        before.system,
        before.source,
        before.key,
    )


# -- coherence -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "coherent"),
    [
        ("The apples are washed and cut into slices.", True),
        ("Wash the apples.", True),
        ("Sure, here is how to bake bread:\n\nStep 1: Mix flour and water.\nStep 2: Wait.", True),
        ("Die Äpfel werden gewaschen und geschnitten.", True),
        ("", False),
        ("   \n ", False),
        ("ok", False),
        ("the the the the the the the the the", False),
        ("go on now " * 12, False),
        ("a b a b a b a b a b a b a b a b", False),
        ("@@ ## a b c !! %% ^^ && ** (( ))", False),
        ("1 2 3 4 5 6 7 8 9 10 11 12", False),
        ("<|user|> " * 9, False),
    ],
)
def test_coherence(text, coherent):
    assert is_coherent(text) is coherent


@given(
    st.lists(st.sampled_from(["rain", "falls", "on", "old", "roofs"]), min_size=1, max_size=4),
    st.integers(6, 30),
)
def test_one_phrase_over_and_over_is_not_coherent(phrase, times):
    """A cycle of at most four words has at most four different triples: fewer than a third from 13
    triples on.
    """
    words = phrase * times
    if len(words) >= 15:
        assert not is_coherent(" ".join(words))


# -- openings --------------------------------------------------------------------------------------


@pytest.mark.parametrize("openings", [COMPLIANCE_OPENINGS, REFUSAL_OPENINGS])
def test_no_opening_begins_another(openings):
    words = [o.split() for o in openings]
    assert not [(a, b) for a in words for b in words if a is not b and b[: len(a)] == a]


def test_no_opening_is_of_both_kinds():
    words = [[o.split() for o in openings] for openings in (COMPLIANCE_OPENINGS, REFUSAL_OPENINGS)]
    for mine, other in (words, words[::-1]):
        assert not [(a, b) for a in mine for b in other if b[: len(a)] == a]
