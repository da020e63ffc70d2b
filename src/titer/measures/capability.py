"""What the model can still do: perplexity and next-token accuracy of text, multiple choice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from titer.data.encoding import UNLIMITED, Encoded, encode
from titer.data.examples import Example
from titer.data.subject import Subject
from titer.errors import MeasureError
from titer.measures.forward import answer_logprobs
from titer.measures.measure import Measure, Transcript
from titer.records.model import MeasureFacts


def _missing(measure: str, what: str) -> MeasureError:
    return MeasureError(f"an example has no {what}", field="measure", value=measure, expected=f"{what} in every example",
                        remedy="use a part whose examples have it")  # fmt: skip


class _TextMeasure(Measure):
    """Reads running text token by token. tokens: how many of each document are read."""

    tokens: Annotated[int, Field(ge=4)] = 128

    def needed(self) -> tuple[str, ...]:
        return ("text",)

    def collect(self, subject: Subject, examples: Sequence[Example]) -> list[Transcript]:
        rows = []
        for example in examples:
            if not example.text:
                raise _missing(self.name, "text")
            ids = subject.tokenizer(example.text, add_special_tokens=False)["input_ids"][: self.tokens]
            if len(ids) < 2:
                raise _missing(self.name, "text of at least two tokens")
            rows.append(Encoded(tuple(ids[:1]), tuple(ids[1:])))
        results = answer_logprobs(subject, rows)
        return [
            {"key": e.key, "nll": -float(lp.mean()), "right": float(top.float().mean())}
            for e, (lp, top) in zip(examples, results, strict=True)
        ]


class Perplexity(_TextMeasure):
    """Mean negative log-likelihood per token (nats/token) of each document; lower is better. exp of it is perplexity."""

    name = "perplexity"

    def facts(self) -> MeasureFacts:
        return self.declare(higher="worse", harm_construct="capability", scale="mean", unit="nats/token")

    def score(self, transcripts: Sequence[Transcript]) -> list[float]:
        return [t["nll"] for t in transcripts]


class NextTokenAccuracy(_TextMeasure):
    """Share of tokens of each document that the model ranks first given those before: a cheap sign of collapse."""

    name = "next_token_accuracy"

    def facts(self) -> MeasureFacts:
        return self.declare(higher="capable", harm_construct="capability", scale="mean", chance=0.0)

    def score(self, transcripts: Sequence[Transcript]) -> list[float]:
        return [t["right"] if math.isfinite(t["nll"]) else math.nan for t in transcripts]


class ResponseLikelihood(Measure):
    """Mean negative log-likelihood (nats/token) of the known response given its prompt; lower is better."""

    name = "response_likelihood"

    def needed(self) -> tuple[str, ...]:
        return ("prompt", "response")

    def facts(self) -> MeasureFacts:
        return self.declare(higher="worse", harm_construct="capability", scale="mean", unit="nats/token")

    def collect(self, subject: Subject, examples: Sequence[Example]) -> list[Transcript]:
        rows = []
        for example in examples:
            if example.response is None:
                raise _missing(self.name, "response")
            rows.append(encode(subject.tokenizer, example, example.response, UNLIMITED))
        return [
            {"key": e.key, "nll": -float(lp.mean()), "right": float(top.float().mean())}
            for e, (lp, top) in zip(examples, answer_logprobs(subject, rows), strict=True)
        ]

    def score(self, transcripts: Sequence[Transcript]) -> list[float]:
        return [t["nll"] for t in transcripts]


class ResponseAccuracy(ResponseLikelihood):
    """Share of the known response's tokens that the model ranks first given the prompt and the tokens before."""

    name = "response_accuracy"

    def facts(self) -> MeasureFacts:
        return self.declare(higher="capable", harm_construct="capability", scale="mean", chance=0.0)

    def score(self, transcripts: Sequence[Transcript]) -> list[float]:
        return [t["right"] if math.isfinite(t["nll"]) else math.nan for t in transcripts]


class MultipleChoice(Measure):
    """Share of questions whose right option is strictly the likeliest. options: how many each question has at least;
    chance is 1/options. normalise: divide log p by the option's `tokens` (end of turn included), or `none` (total log
    p, for options of equal length). A model in which all options tie is right nowhere, below chance.
    """

    name = "multiple_choice"
    reference = "after lm-evaluation-harness: `none` is its acc; its acc_norm divides by characters, `tokens` by tokens"

    options: Annotated[int, Field(ge=2)] = 2
    normalise: Literal["tokens", "none"] = "tokens"

    def needed(self) -> tuple[str, ...]:
        return ("prompt", "choices", "answer")

    def facts(self) -> MeasureFacts:
        return self.declare(higher="capable", harm_construct="capability", chance=1.0 / self.options)

    def collect(self, subject: Subject, examples: Sequence[Example]) -> list[Transcript]:
        rows, owner = [], []
        for i, example in enumerate(examples):
            if len(example.choices) < 2 or example.answer is None:
                raise _missing(self.name, "choices and answer")
            if len(example.choices) < self.options:
                raise MeasureError("a question has fewer options than the measure's settings say", field="settings.options",
                                   value=self.options, expected=f"at most {len(example.choices)}: chance is 1/options",
                                   remedy="lower options, or use other questions")  # fmt: skip
            rows += [encode(subject.tokenizer, example, c, UNLIMITED) for c in example.choices]
            owner += [i] * len(example.choices)
        scores: list[list[float]] = [[] for _ in examples]
        for i, (lp, _) in zip(owner, answer_logprobs(subject, rows), strict=True):
            scores[i].append(float(lp.mean() if self.normalise == "tokens" else lp.sum()))
        return [{"key": e.key, "scores": s, "answer": e.answer} for e, s in zip(examples, scores, strict=True)]

    def score(self, transcripts: Sequence[Transcript]) -> list[float]:
        out = []
        for t in transcripts:
            s = t["scores"]
            if not all(map(math.isfinite, s)):
                out.append(math.nan)
            else:  # a tie is no knowledge: it counts only if the right one is strictly likeliest
                out.append(float(all(s[t["answer"]] > v for i, v in enumerate(s) if i != t["answer"])))
        return out
