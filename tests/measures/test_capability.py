"""Likelihood and accuracy of known text against a plain forward pass; multiple choice by hand."""

import math
from dataclasses import replace

import pytest

from helpers.plain import answer_nll, logits
from titer.data.examples import Example
from titer.errors import MeasureError
from titer.measures.capability import (
    MultipleChoice,
    NextTokenAccuracy,
    Perplexity,
    ResponseAccuracy,
    ResponseLikelihood,
)
from titer.measures.measure import read


@pytest.mark.parametrize("tokens", [4, 9, 128])
def test_perplexity_by_hand(unsure, texts, tokens):
    bundle = unsure(eval_batch=3)
    reading, _ = read(Perplexity(tokens=tokens), bundle, texts, "x")
    accuracy, _ = read(NextTokenAccuracy(tokens=tokens), bundle, texts, "x")
    for example, nll, right in zip(texts, reading.outcomes, accuracy.outcomes, strict=True):
        ids = bundle.tokenizer(example.text, add_special_tokens=False)["input_ids"][:tokens]
        each = answer_nll(
            bundle, ids[:1], ids[1:]
        )  # the first token is given, every other one is read
        assert nll == pytest.approx(math.fsum(each) / len(each), rel=1e-4)
        best = logits(bundle, ids)[:-1].argmax(-1).tolist()
        assert right == pytest.approx(
            sum(a == b for a, b in zip(best, ids[1:], strict=True)) / len(best)
        )
    assert len({len(e.text.split()) for e in texts}) == len(texts) and 0 < accuracy.value < 1


@pytest.mark.parametrize("eval_batch", [1, 5])
def test_response_likelihood_by_hand(unsure, mixed, eval_batch):
    bundle = unsure(eval_batch=eval_batch)
    reading, _ = read(ResponseLikelihood(), bundle, mixed, "x")
    accuracy, _ = read(ResponseAccuracy(), bundle, mixed, "x")
    for example, nll, right in zip(mixed, reading.outcomes, accuracy.outcomes, strict=True):
        row = bundle.encode(example, example.response)
        each = answer_nll(bundle, row.prompt, row.response)
        assert nll == pytest.approx(math.fsum(each) / len(each), rel=1e-4)
        best = (
            logits(bundle, [*row.prompt, *row.response])[len(row.prompt) - 1 : -1]
            .argmax(-1)
            .tolist()
        )
        assert right == pytest.approx(
            sum(a == b for a, b in zip(best, row.response, strict=True)) / len(best)
        )
    assert 0 < accuracy.value < 1


def test_the_length_of_the_answers_training_allows_does_not_cut_what_is_read(unsure, mixed):
    short, long = (
        read(ResponseLikelihood(), unsure(max_length=n), mixed, "x")[0] for n in (8, 500)
    )
    assert short == long


# -- multiple choice -------------------------------------------------------------------------------


@pytest.fixture
def questions(harm, harmless):
    """The right answer beside those to other questions, at places that vary, of several lengths."""
    some = [*harmless[:10], *harm[:10]]
    made = []
    for i, example in enumerate(some):
        options = [
            example.response,
            some[i - 1].response,
            " ".join(some[i - 2].response.split()[: 1 + i % 4]),
        ]
        place = i % 3
        options[0], options[place] = options[place], options[0]
        made.append(replace(example, choices=tuple(options), answer=place))
    return tuple(made)


@pytest.mark.parametrize("normalise", ["tokens", "none"])
def test_the_likeliest_option_wins(unsure, questions, normalise):
    bundle = unsure(0.6, eval_batch=4)
    reading, _ = read(MultipleChoice(options=3, normalise=normalise), bundle, questions, "x")
    for question, outcome in zip(questions, reading.outcomes, strict=True):
        scores = []
        for choice in question.choices:
            row = bundle.encode(question, choice)
            each = answer_nll(bundle, row.prompt, row.response)
            scores.append(-math.fsum(each) / (len(each) if normalise == "tokens" else 1))
        assert outcome == float(max(range(3), key=scores.__getitem__) == question.answer)
    assert 0 < reading.value < 1


@pytest.mark.parametrize(
    ("scores", "answer", "outcome"),
    [
        ([-1.0, -2.0, -3.0], 0, 1.0),
        ([-1.0, -2.0, -3.0], 2, 0.0),
        ([-1.0, -1.0, -3.0], 0, 0.0),  # a tie is no knowledge
        ([-1.0, -1.0, -3.0], 1, 0.0),
        ([-2.0, -2.0, -1.0], 2, 1.0),  # a tie among the wrong ones does not concern the right one
        ([-1.0, None, -3.0], 0, math.nan),
        ([-1.0, None], 0, math.nan),
    ],
)
def test_score_of_choices(scores, answer, outcome):
    options = [{"logprobs": [s], "matched": [False]} for s in scores]
    [found] = MultipleChoice().score([{"key": "k", "options": options, "answer": answer}])
    assert found == outcome or (math.isnan(found) and math.isnan(outcome))


def test_a_long_option_is_likelier_per_token_and_a_short_one_in_total():
    short, long = ({"logprobs": lps, "matched": []} for lps in ([-2.0], [-1.0, -1.5, -0.5]))
    told = [{"key": "k", "options": [short, long], "answer": 1}]
    assert MultipleChoice(normalise="tokens").score(told) == [1.0]
    assert MultipleChoice(normalise="none").score(told) == [0.0]


def test_two_options_of_the_same_text_tie(new_bundle, harmless):
    questions = [replace(e, choices=(e.response, e.response), answer=0) for e in harmless[:5]]
    assert read(MultipleChoice(), new_bundle(), questions, "x")[0].value == 0.0


def test_the_stated_chance_is_that_of_the_questions(new_bundle, questions):
    assert MultipleChoice(options=4).facts().chance == 0.25
    read(
        MultipleChoice(options=2), new_bundle(), questions, "x"
    )  # states more chance than there is: to its own cost
    with pytest.raises(MeasureError, match=r"settings\.options = 4.*at most 3"):
        read(MultipleChoice(options=4), new_bundle(), questions, "x")


# -- what an example must have ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("measure", "example", "what"),
    [
        (Perplexity(), Example(prompt="bal"), "text"),
        (NextTokenAccuracy(), Example(text="bal"), "text of at least two tokens"),
        (ResponseLikelihood(), Example(prompt="bal"), "response"),
        (ResponseAccuracy(), Example(prompt="bal"), "response"),
        (ResponseLikelihood(), Example(text="bal", response="tol"), "prompt"),
        (MultipleChoice(), Example(prompt="bal", choices=("tol",), answer=0), "choices"),
        (MultipleChoice(), Example(prompt="bal", choices=("tol", "til")), "answer"),
    ],
)
def test_what_is_missing_is_named(new_bundle, measure, example, what):
    with pytest.raises(MeasureError, match=f"an example has no {what}.*{measure.name}"):
        read(measure, new_bundle(), [example], "x")
