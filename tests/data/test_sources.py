"""Text sources. Every prompt written here is harmless and made up."""

import codecs
import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from titer.data.examples import Example, digest_of
from titer.data.sources import SOURCES, load_source
from titer.data.sources.benchmarks import _split
from titer.errors import StudyError, UnknownNameError


def jsonl(tmp_path, *lines):
    """The source over a file of these lines (text as it is, anything else as JSON)."""
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
    assert (first.response, first.domain, second.choices, second.answer) == (
        "Pear",
        "food",
        ("sky", "rose"),
        1,
    )
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
        ({"prompt": "x", "choices": ["a", "b"], "answer": True}, "answer True"),
        ({"prompt": "x", "answer": 0}, "answer 0"),
        ({"prompt": "half \ud83d of an emoji"}, "surrogate"),
        ({"prompt": "x", "choices": ["a", "\ud83d"], "answer": 0}, "surrogate"),
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


texts = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=30)
rows = st.lists(
    st.one_of(
        st.fixed_dictionaries(
            {"prompt": texts},
            optional={
                "response": texts,
                "refusal": texts,
                "system": texts,
                "domain": st.sampled_from(["a", "b"]),
            },
        ),
        st.fixed_dictionaries({"text": texts}),
        st.lists(texts, min_size=2, max_size=4).flatmap(
            lambda choices: st.fixed_dictionaries(
                {
                    "prompt": texts,
                    "choices": st.just(choices),
                    "answer": st.integers(0, len(choices) - 1),
                }
            )
        ),
    ),
    min_size=1,
    max_size=6,
)


@given(
    rows, st.booleans(), st.sampled_from(["\n", "\r\n", "\n\n", "\r"]), st.booleans(), st.booleans()
)
def test_own_file_round_trip(tmp_path_factory, rows, ascii_only, line_end, mark, last):
    """Whatever JSON can say comes back as it was said: any text, any line ends, byte order mark or
    not.
    """
    path = tmp_path_factory.getbasetemp() / "round_trip.jsonl"
    body = line_end.join(json.dumps(r, ensure_ascii=ascii_only) for r in rows) + (
        line_end if last else ""
    )
    path.write_bytes(codecs.BOM_UTF8 * mark + body.encode())
    found = load_source("jsonl", {"path": str(path)}).examples
    assert found == tuple(
        Example(**{k: tuple(v) if k == "choices" else v for k, v in r.items()}, source="jsonl")
        for r in rows
    )
    assert all(len(e.key) == 12 for e in found)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-8"])
def test_own_file_as_other_systems_write_it(tmp_path, encoding):
    path = tmp_path / "mine.jsonl"
    text = '{"prompt": "Name a fruit"}\r\n\r\n{"prompt": "Où est-elle ? \u2028 \x85 là"}\r\n'
    path.write_bytes(text.encode(encoding))
    found = load_source("jsonl", {"path": str(path)}).examples
    assert [e.prompt for e in found] == ["Name a fruit", "Où est-elle ? \u2028 \x85 là"]


def test_own_file_in_another_encoding(tmp_path):
    (tmp_path / "mine.jsonl").write_bytes('{"prompt": "Où"}'.encode("latin-1"))
    with pytest.raises(StudyError, match=r"cannot be read.*UTF-8"):
        load_source("jsonl", {"path": str(tmp_path / "mine.jsonl")})


@pytest.mark.parametrize(
    ("text", "question", "options"),
    [
        ("Ice is\n\n A: warm\n B: cold", "Ice is", ["warm", "cold"]),
        ("Why? A: to eat; B: to sleep; C: to run.", "Why?", ["to eat", "to sleep", "to run"]),
        (
            "Pick one.\n\nA. one\nB. two\nC. three\nD. four\n",
            "Pick one.",
            ["one", "two", "three", "four"],
        ),
        ("Vitamin A. is?\nA. fat\nB. salt", "Vitamin A. is?", ["fat", "salt"]),
        ("No options here", "No options here", []),
    ],
)
def test_lettered_options(text, question, options):
    found, choices = _split(text)
    assert (found.strip(), choices) == (question, options)


COUNTS = {
    "advbench": (520, 0),
    "harmbench": (200, 0),
    "strongreject": (313, 0),
    "overrefusal": (150, 0),
    "alpaca": (999, 0),
    "c4_text": (300, 0),
    "wiki_text": (30, 0),
    "gsm8k": (100, 0),
    "quartz": (3860, 2),
    "sarcasm": (4000, 2),
    "socialiqa": (2219, 3),
    "mmlu": (997, 4),
}
"""examples, options of each. 5 of 2,224 Social IQa and 3 of 1,000 MMLU questions have repeated or
unreadable options.
"""


def test_every_source_is_counted():
    assert set(COUNTS) == set(SOURCES) - {"tiny_world", "jsonl", "file"}


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
        assert (e.text or e.prompt).strip() and (
            e.answer is None or e.response == e.choices[e.answer]
        )


@pytest.mark.real
@pytest.mark.timeout(600)
def test_strongreject_has_six_domains():
    sizes = Counter(e.domain for e in load_source("strongreject", {}).examples)
    assert sorted(sizes.values()) == [50, 50, 50, 50, 54, 59]
