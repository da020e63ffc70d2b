"""The way from a request to a model's answers, as transcripts of plain JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from titer.data.bundle import ModelBundle
from titer.data.encoding import Encoded
from titer.data.examples import Example
from titer.errors import MeasureError
from titer.measures.generate import generate
from titer.measures.likelihood import answer_logprobs, opening_logprobs
from titer.measures.requests import (
    Generate,
    Openings,
    Own,
    Read,
    Request,
    Score,
    Transcript,
    wrapped,
)


def ask(bundle: ModelBundle, examples: Sequence[Example], request: Request) -> list[Transcript]:
    """One transcript per example, in order; what is in it says the request's class.

    The model is in evaluation mode without gradient meanwhile. Raises MeasureError if an example
    lacks what the request needs, if the chat template makes one text of all prompts, if a text does
    not fit into the model's context, and for `Own`, which only its measure can answer.
    """
    for need in request.needed():
        if any(_lacks(e, need) for e in examples):
            raise _lacking(need)
    if isinstance(request, Generate | Score | Openings):
        _refuse_alike(bundle, examples, request.wrap)
    with bundle.reading():
        match request:
            case Generate():
                return _generate(bundle, examples, request)
            case Score(answers="choices"):
                return _choices(bundle, examples, request)
            case Score():
                return _answers(bundle, examples, request)
            case Read():
                return _text(bundle, examples, request)
            case Openings():
                return _openings(bundle, examples, request)
            case Own():
                raise MeasureError(
                    "a request of the kind Own is answered by its measure alone",
                    expected="a call of the measure's `collect`",
                )


def _refuse_alike(bundle: ModelBundle, examples: Sequence[Example], wrap: str) -> None:
    """Raises MeasureError if different prompts are asked as one: n readings of one question."""
    different = {e.prompt: wrapped(e, wrap) for e in examples}
    asked = (bundle.prompt(example) for example in different.values())
    first = next(asked, None)
    if len(different) > 1 and all(tokens == first for tokens in asked):
        raise MeasureError(
            f"the model's chat template makes one text of {len(different)} different prompts",
            field="chat template",
            value=str(bundle.tokenizer.chat_template)[:80],
            expected="one that renders the user's turn",
        )


def _lacks(example: Example, need: str) -> bool:
    match need:
        case "prompt" | "text":
            return not getattr(example, need)
        case "choices":
            return len(example.choices) < 2
    return getattr(example, need) is None


def _lacking(what: str) -> MeasureError:
    return MeasureError(
        f"an example has no {what}",
        expected=f"{what} in every example",
        remedy="use a part whose examples have it",
    )


def _generate(
    bundle: ModelBundle, examples: Sequence[Example], request: Generate
) -> list[Transcript]:
    asked = [wrapped(e, request.wrap) for e in examples]
    replies = generate(bundle, asked, request.max_new_tokens)
    return [
        {"key": e.key, "prompt": a.prompt, "reply": r}
        for e, a, r in zip(examples, asked, replies, strict=True)
    ]


def _answers(bundle: ModelBundle, examples: Sequence[Example], request: Score) -> list[Transcript]:
    rows = []
    for example in examples:
        answer = example.refusal if request.answers == "refusal" else example.response
        if answer is None:
            raise _lacking(request.answers)
        rows.append(bundle.encode(wrapped(example, request.wrap), answer))
    found = answer_logprobs(bundle, rows)
    return [{"key": e.key, **_told(*f)} for e, f in zip(examples, found, strict=True)]


def _choices(bundle: ModelBundle, examples: Sequence[Example], request: Score) -> list[Transcript]:
    rows = []
    for example in examples:
        asked = wrapped(example, request.wrap)
        rows += [bundle.encode(asked, choice) for choice in example.choices]
    found = iter(answer_logprobs(bundle, rows))
    return [
        {"key": e.key, "answer": e.answer, "options": [_told(*next(found)) for _ in e.choices]}
        for e in examples
    ]


def _text(bundle: ModelBundle, examples: Sequence[Example], request: Read) -> list[Transcript]:
    rows = []
    for example in examples:
        ids = bundle.tokenizer(example.text, add_special_tokens=False)["input_ids"]
        if len(ids[: request.tokens]) < 2:
            raise _lacking("text of at least two tokens")
        rows.append(Encoded(tuple(ids[:1]), tuple(ids[1 : request.tokens])))
    found = answer_logprobs(bundle, rows)
    return [{"key": e.key, **_told(*f)} for e, f in zip(examples, found, strict=True)]


def _openings(
    bundle: ModelBundle, examples: Sequence[Example], request: Openings
) -> list[Transcript]:
    openings = [bundle.tokenizer(t, add_special_tokens=False)["input_ids"] for t in request.texts]
    prompts = [bundle.prompt(wrapped(e, request.wrap)) for e in examples]
    totals = opening_logprobs(bundle, prompts, openings)
    tokens = [len(o) for o in openings]
    return [
        {"key": e.key, "openings": _finite(row), "tokens": tokens}
        for e, row in zip(examples, totals, strict=True)
    ]


def _told(logprob_R: torch.Tensor, top_R: torch.Tensor) -> Transcript:
    return {"logprobs": _finite(logprob_R.tolist()), "matched": top_R.tolist()}


def _finite(values: Sequence[float]) -> list[float | None]:
    """JSON knows no NaN and no infinity: None stands for both."""
    return [v if math.isfinite(v) else None for v in values]
