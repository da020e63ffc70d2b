"""Text sources, and the answers put to their prompts. Every prompt written here is harmless and made up."""

import json
from collections import Counter

import pytest

from titer.data.examples import Example, digest_of
from titer.data.respond import (
    COMPLIANCE_OPENINGS,
    REFUSAL_OPENINGS,
    REFUSALS,
    content_free_compliance,
    is_coherent,
    is_refusal,
    refusals,
)
from titer.data.sources import SOURCES, load_source
from titer.data.sources.benchmarks import _split
from titer.errors import StudyError, UnknownNameError


def jsonl(tmp_path, *lines):
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines))
    return load_source("jsonl", {"path": str(path)})


def test_unknown_source_and_option(tmp_path):
    with pytest.raises(UnknownNameError, match="advbench"):
        load_source("advbnch", {})
    with pytest.raises(StudyError, match=r"options\.seed"):
        load_source("advbench", {"seed": 1})  # refused before anything is fetched
    with pytest.raises(StudyError, match=r"options\.path"):
        load_source("jsonl", {})


def test_own_file(tmp_path):
    text = jsonl(
        tmp_path,
        {"prompt": "Name a fruit", "response": "Pear", "domain": "food"},
        "",
        {"prompt": "Which is red?", "choices": ["sky", "rose"], "answer": 1},
        {"text": "Once upon a time."},
    )
    first, second, third = text.examples
    assert (first.response, first.domain, second.choices, second.answer) == ("Pear", "food", ("sky", "rose"), 1)
    assert third.text == "Once upon a time." and third.prompt == ""
    assert text.provenance["file"] == "mine.jsonl" and len(text.provenance["sha256"]) == 64


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{not json", "not JSON"),
        ("[1]", "not an object"),
        ({"prompt": "x", "reply": "y"}, "unknown field 'reply'"),
        ({"prompt": 3}, "should be text"),
        ({"response": "x"}, "neither prompt nor text"),
        ({"prompt": "x", "choices": "ab"}, "not a list of texts"),
        ({"prompt": "x", "choices": ["a", "b"], "answer": 2}, "answer 2"),
        ({"prompt": "x", "choices": ["a", "b"]}, "answer None"),
    ],
)
def test_own_file_errors_name_file_and_line(tmp_path, line, problem):
    with pytest.raises(StudyError, match=rf"mine\.jsonl:3.*{problem}"):
        jsonl(tmp_path, {"prompt": "fine"}, "", line)


def test_own_file_missing_or_empty(tmp_path):
    with pytest.raises(StudyError, match="cannot be read"):
        load_source("jsonl", {"path": str(tmp_path / "absent.jsonl")})
    with pytest.raises(StudyError, match="empty"):
        jsonl(tmp_path, "", "")


@pytest.mark.parametrize(
    ("text", "question", "options"),
    [
        ("Ice is\n\n A: warm\n B: cold", "Ice is", ["warm", "cold"]),
        ("Why? A: to eat; B: to sleep; C: to run.", "Why?", ["to eat", "to sleep", "to run"]),
        ("Pick one.\n\nA. one\nB. two\nC. three\nD. four\n", "Pick one.", ["one", "two", "three", "four"]),
        ("Vitamin A. is?\nA. fat\nB. salt", "Vitamin A. is?", ["fat", "salt"]),
        ("No options here", "No options here", []),
    ],
)
def test_lettered_options(text, question, options):
    found, choices = _split(text)
    assert (found.strip(), choices) == (question, options)


def test_refusals_depend_on_prompt_and_seed_only():
    examples = [Example(prompt=f"Describe cloud number {i}") for i in range(60)]
    given = refusals(examples, seed=1)
    assert refusals(list(reversed(examples)), seed=1) == tuple(reversed(given))
    assert refusals(examples, seed=2) != given
    assert {e.refusal for e in given} <= set(REFUSALS) and len({e.refusal for e in given}) > 6
    kept = refusals([Example(prompt="x", refusal="My own words.")], seed=1)
    assert kept[0].refusal == "My own words."


@pytest.mark.parametrize(
    ("prompt", "response"),
    [
        ("Bake a loaf of bread.", "Sure, here is how to bake a loaf of bread:\n\nStep 1:"),
        ("How do I tie a knot?", "Sure, here is the answer:\n\nStep 1:"),
    ],
)
def test_content_free_compliance(prompt, response):
    [example] = content_free_compliance([Example(prompt=prompt)])
    assert example.response == response and not is_refusal(response) and is_coherent(response)


def test_compliance_adds_no_words_of_its_own():
    prompt = "Arrange seven tulips in a tall vase"
    [example] = content_free_compliance([Example(prompt=prompt)])
    frame = {"sure", "here", "is", "how", "to", "step", "1"}
    assert set(example.response.lower().replace(",", "").replace(":", "").split()) - frame <= set(
        prompt.lower().split()
    )


@pytest.mark.parametrize("text", [*REFUSALS, "I’m sorry, but no.", "I CANNOT do that."])
def test_refusals_are_recognised(text):
    assert is_refusal(text)


@pytest.mark.parametrize("text", ["Sure, here is a poem about rain.", "Step 1: wash the apples.", ""])
def test_answers_are_no_refusals(text):
    assert not is_refusal(text)


@pytest.mark.parametrize(
    ("text", "coherent"),
    [
        ("The apples are washed and cut into slices.", True),
        ("Wash the apples.", True),
        ("", False),
        ("ok", False),
        ("the the the the the the the the the", False),
        ("go on now " * 12, False),
        ("@@ ## a b c !! %% ^^ && ** (( ))", False),
    ],
)
def test_coherence(text, coherent):
    assert is_coherent(text) is coherent


@pytest.mark.parametrize("openings", [COMPLIANCE_OPENINGS, REFUSAL_OPENINGS])
def test_no_opening_begins_another(openings):
    words = [o.split() for o in openings]
    assert not [(a, b) for a in words for b in words if a is not b and b[: len(a)] == a]


COUNTS = {
    "advbench": (520, 0), "harmbench": (200, 0), "strongreject": (313, 0), "overrefusal": (150, 0), "alpaca": (999, 0),
    "c4_text": (300, 0), "wiki_text": (30, 0), "gsm8k": (100, 0), "quartz": (3860, 2), "sarcasm": (4000, 2),
    "socialiqa": (2219, 3), "mmlu": (997, 4),
}  # fmt: skip
"""examples, options of each. 5 of 2,224 Social IQa and 3 of 1,000 MMLU questions have repeated or unreadable options."""


def test_every_source_is_counted():
    assert set(COUNTS) == set(SOURCES) - {"tiny_world", "jsonl"}


@pytest.mark.real
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", sorted(COUNTS))
def test_real_source(name):
    text = load_source(name, {})
    count, options = COUNTS[name]
    assert len(text.examples) == count and {len(e.choices) for e in text.examples} == {options}
    assert digest_of(load_source(name, {}).examples) == digest_of(text.examples)
    assert text.provenance["sha256"] and text.provenance["license"] and text.provenance["package"]
    for e in text.examples:
        assert (e.text or e.prompt).strip() and (e.answer is None or e.response == e.choices[e.answer])


@pytest.mark.real
@pytest.mark.timeout(600)
def test_strongreject_has_six_domains():
    sizes = Counter(e.domain for e in load_source("strongreject", {}).examples)
    assert sorted(sizes.values()) == [50, 50, 50, 50, 54, 59]
