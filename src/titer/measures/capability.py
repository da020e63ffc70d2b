"""Capability: perplexity and next-token accuracy of text, multiple choice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field

from titer.errors import MeasureError
from titer.measures.measure import Measure
from titer.measures.requests import Read, Request, Score, Transcript
from titer.records.record import MeasureFacts


def _nll(told: Transcript) -> float:
    """Mean −log p per token (nats/token), in fp32 as it was computed; NaN if one is not finite."""
    return math.nan if None in told["logprobs"] else -float(torch.tensor(told["logprobs"]).mean())


def _share_matched(told: Transcript) -> float:
    """Share of the tokens that were ranked first; NaN if a probability is not finite."""
    return (
        math.nan
        if None in told["logprobs"]
        else float(torch.tensor(told["matched"]).float().mean())
    )


class _TextMeasure(Measure):
    """Reads running text token by token. tokens: how many of each document are read."""

    tokens: Annotated[int, Field(ge=4)] = 128

    def request(self) -> Request:
        return Read(self.tokens)


class Perplexity(_TextMeasure):
    """Mean negative log-likelihood per token (nats/token) of each document; lower is better. exp of
    it is perplexity.
    """

    name = "perplexity"

    def facts(self) -> MeasureFacts:
        return self.declare(
            higher="worse", harm_construct="capability", scale="mean", unit="nats/token"
        )

    def score(self, transcripts: Sequence[Transcript]) -> list[float]:
        return [_nll(t) for t in transcripts]


class NextTokenAccuracy(_TextMeasure):
    """Share of tokens of each document that the model ranks first given those before: a cheap sign
    of collapse.
    """

    name = "next_token_accuracy"

    def facts(self) -> MeasureFacts:
        return self.declare(higher="capable", harm_construct="capability", scale="mean", chance=0.0)

    def score(self, transcripts: Sequence[Transcript]) -> list[float]:
        return [_share_matched(t) for t in transcripts]


class ResponseLikelihood(Measure):
    """Mean negative log-likelihood (nats/token) of the known response given its prompt; lower is
    better.
    """

    name = "response_likelihood"

    def facts(self) -> MeasureFacts:
        return self.declare(
            higher="worse", harm_construct="capability", scale="mean", unit="nats/token"
        )

    def request(self) -> Request:
        return Score("response")

    def score(self, transcripts: Sequence[Transcript]) -> list[float]:
        return [_nll(t) for t in transcripts]


class ResponseAccuracy(ResponseLikelihood):
    """Share of the known response's tokens that the model ranks first given the prompt and the
    tokens before.
    """

    name = "response_accuracy"

    def facts(self) -> MeasureFacts:
        return self.declare(higher="capable", harm_construct="capability", scale="mean", chance=0.0)

    def score(self, transcripts: Sequence[Transcript]) -> list[float]:
        return [_share_matched(t) for t in transcripts]


class MultipleChoice(Measure):
    """Share of questions whose right option is strictly the likeliest. options: how many each
    question has at least; chance is 1/options. normalise: divide log p by the option's `tokens`
    (end of turn included), or `none` (total log p, for options of equal length). A model in
    which all options tie is right nowhere, below chance.
    """

    name = "multiple_choice"
    reference = (
        "after lm-evaluation-harness: `none` is its acc; its acc_norm divides by characters, "
        "`tokens` by tokens"
    )

    options: Annotated[int, Field(ge=2)] = 2
    normalise: Literal["tokens", "none"] = "tokens"

    def facts(self) -> MeasureFacts:
        return self.declare(
            higher="capable", harm_construct="capability", chance=1.0 / self.options
        )

    def request(self) -> Request:
        return Score("choices")

    def score(self, transcripts: Sequence[Transcript]) -> list[float]:
        return [self._outcome(t["options"], t["answer"]) for t in transcripts]

    def _outcome(self, options: Sequence[Transcript], answer: int) -> float:
        if len(options) < self.options:
            raise MeasureError(
                "a question has fewer options than the measure's settings say",
                field="settings.options",
                value=self.options,
                expected=f"at most {len(options)}: chance is 1/options",
                remedy="lower options, or use other questions",
            )
        if any(None in o["logprobs"] for o in options):
            return math.nan
        each = [torch.tensor(o["logprobs"]) for o in options]
        s = [float(lp.mean() if self.normalise == "tokens" else lp.sum()) for lp in each]
        # A tie does not count: the right option must be strictly the likeliest.
        return float(all(s[answer] > v for i, v in enumerate(s) if i != answer))
