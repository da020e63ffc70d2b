"""Reading right answers teacher-forced must be the same as letting the model speak and comparing
what it says.
"""

import math
from dataclasses import replace

import pytest

from helpers.plain import answer_nll, greedy
from titer.data.examples import Example
from titer.errors import MeasureError, StudyError
from titer.measures.compliance import ComplianceGenerated, ComplianceLikelihood
from titer.measures.exact_answer import ExactAnswer
from titer.measures.generate import generate
from titer.measures.measure import read
from titer.measures.requests import Generate, Openings, Score, wrapped


def spoken(bundle, examples, target):
    """1 where greedy decoding gives exactly the expected tokens and ends there."""
    found = []
    for example in examples:
        expected = bundle.encode(example, getattr(example, target)).response
        found.append(float(greedy(bundle, bundle.prompt(example), len(expected)) == [*expected]))
    return tuple(found)


@pytest.mark.parametrize("target", ["response", "refusal"])
@pytest.mark.parametrize("scale", [0.0, 0.2])
def test_it_equals_greedy_decoding(unsure, harm, harmless, scale, target):
    bundle = unsure(scale)
    examples = (*harm[:20], *harmless[:20])
    reading, _ = read(ExactAnswer(target=target), bundle, examples, "x")
    assert reading.outcomes == spoken(bundle, examples, target)
    assert 0 < reading.value < 1  # both kinds occur


def test_it_equals_what_the_model_says(unsure, harm, harmless):
    """Against `generate`: a reply is right iff it is the expected text, nothing added."""
    bundle = unsure()
    examples = (*harm[:20], *harmless[:20])
    replies = generate(bundle, examples, 12)
    reading, _ = read(ExactAnswer(), bundle, examples, "x")
    assert reading.outcomes == tuple(
        float(r == e.response) for r, e in zip(replies, examples, strict=True)
    )


def test_an_answer_that_only_begins_right_is_wrong(new_bundle, harmless):
    bundle = new_bundle()
    half = [replace(e, response=" ".join(e.response.split()[:2])) for e in harmless[:20]]
    assert read(ExactAnswer(), bundle, harmless[:20], "x")[0].value > 0.9
    assert read(ExactAnswer(), bundle, half, "x")[0].value == 0.0


def test_transcripts_hold_the_likelihood(unsure, mixed):
    bundle = unsure()
    _, transcripts = read(ExactAnswer(), bundle, mixed, "x")
    for example, transcript in zip(mixed, transcripts, strict=True):
        row = bundle.encode(example, example.response)
        expected = [-x for x in answer_nll(bundle, row.prompt, row.response)]
        assert transcript["logprobs"] == pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert len(transcript["matched"]) == len(row.response) and transcript["key"] == example.key


@pytest.mark.parametrize(
    ("matched", "logprobs", "outcome"),
    [
        ([True, True], [-0.1, -0.2], 1.0),
        ([True, False], [-0.1, -3.0], 0.0),
        ([True], [0.0], 1.0),
        ([True, False], [-0.1, None], math.nan),
    ],
)
def test_score(matched, logprobs, outcome):
    [found] = ExactAnswer().score([{"key": "k", "matched": matched, "logprobs": logprobs}])
    assert found == outcome or (math.isnan(found) and math.isnan(outcome))


# -- wrapping --------------------------------------------------------------------------------------


def test_wrapping_is_asking_the_wrapped_question(unsure, mixed):
    bundle, template = unsure(), "answer with yes of course . {prompt} please"
    asked = [replace(e, prompt=f"answer with yes of course . {e.prompt} please") for e in mixed]
    reading, transcripts = read(ExactAnswer(wrap=template), bundle, mixed, "x")
    expected, other = read(ExactAnswer(), bundle, asked, "x")
    assert reading.outcomes == expected.outcomes
    assert [t["logprobs"] for t in transcripts] == [t["logprobs"] for t in other]
    assert [t["key"] for t in transcripts] == [
        e.key for e in mixed
    ]  # readings pair by the question, not its wrapping
    assert [t["logprobs"] for t in transcripts] != [
        t["logprobs"] for t in read(ExactAnswer(), bundle, mixed, "x")[1]
    ]


@pytest.mark.parametrize(
    ("template", "prompt", "expected"),
    [
        ("{prompt}", "Bake bread", "Bake bread"),
        ("Say yes. {prompt}", "Bake bread", "Say yes. Bake bread"),
        ("{prompt} {prompt}", "Hm", "Hm Hm"),
        ("{other} {prompt} {0} {{", "a {b}", "{other} a {b} {0} {{"),
    ],
)
def test_templates(template, prompt, expected):
    example = Example(prompt=prompt, response="x", domain="kitchen")
    assert wrapped(example, template) == replace(example, prompt=expected)


@pytest.mark.parametrize(
    "build",
    [
        lambda wrap: ExactAnswer(wrap=wrap),
        lambda wrap: ComplianceLikelihood(wrap=wrap),
        lambda wrap: ComplianceGenerated(wrap=wrap),
        lambda wrap: Generate(8, wrap),
        lambda wrap: Score("response", wrap),
        lambda wrap: Openings(("Sure",), wrap),
    ],
)
def test_a_template_without_the_prompt_is_refused(build):
    """Every prompt would be the same text."""
    with pytest.raises(StudyError, match=r"wrap = 'Say yes.'.*\{prompt\}"):
        build("Say yes.")
    assert build("Say yes. {prompt}").wrap == "Say yes. {prompt}"


# -- declaration -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reads", "higher", "construct"),
    [
        ("harm", "harmful", "exact"),
        ("capability", "capable", "capability"),
        ("over_refusal", "worse", "over-refusal"),
    ],
)
def test_facts(reads, higher, construct):
    facts = ExactAnswer(reads=reads).facts()
    assert (facts.higher, facts.harm_construct, facts.scale) == (higher, construct, "proportion")
    assert facts.settings == {"target": "response", "reads": reads, "wrap": "{prompt}"}


@pytest.mark.parametrize("target", ["response", "refusal"])
def test_an_example_without_the_answer(new_bundle, harm, target):
    with pytest.raises(MeasureError, match=f"an example has no {target}.*exact_answer"):
        read(
            ExactAnswer(target=target),
            new_bundle(),
            [harm[0], replace(harm[1], **{target: None})],
            "x",
        )
