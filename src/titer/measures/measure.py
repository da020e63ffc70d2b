"""The contract of a measure: a probe that runs a model and collects transcripts, and a score that is a pure function
of transcripts. Re-scoring a finished run therefore needs no model.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict

from titer.data.examples import Example
from titer.data.subject import Subject
from titer.records.model import MeasureFacts, Reading

Transcript = dict[str, Any]
"""What a model did with one example: `key` (the example's), and whatever the score needs. Plain JSON."""


class Measure(BaseModel, ABC):
    """One frozen settings object. `version` changes whenever its numbers would."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: ClassVar[str]
    version: ClassVar[int] = 1
    reference: ClassVar[str] = "titer"

    @abstractmethod
    def facts(self) -> MeasureFacts:
        """What it measures, in which direction, with which sampling."""

    def needed(self) -> tuple[str, ...]:
        """What every example it reads must have beside a key: `prompt`, `text`, `response`, `refusal`, `choices`, `answer`."""
        return ("prompt",)

    @abstractmethod
    def collect(self, subject: Subject, examples: Sequence[Example]) -> list[Transcript]:
        """One transcript per example, in order. No gradient. Raises MeasureError if an example lacks what it needs."""

    @abstractmethod
    def score(self, transcripts: Sequence[Transcript]) -> list[float]:
        """One outcome per transcript; pure."""

    def aspects(self, transcripts: Sequence[Transcript]) -> dict[str, float]:
        """Further figures of the same transcripts that flags look at (see `Reading.aspects`); pure, finite, none by default."""
        return {}

    def declare(self, **facts: Any) -> MeasureFacts:
        """MeasureFacts with this measure's identity filled in."""
        return MeasureFacts(name=self.name, version=self.version, settings=self.model_dump(mode="json"), **facts)


def wrapped(example: Example, template: str) -> Example:
    """The example with its prompt put into a template."""
    if template == "{prompt}":
        return example
    return replace(example, prompt=template.replace("{prompt}", example.prompt))


def read(
    measure: Measure, subject: Subject, examples: Sequence[Example], label: str
) -> tuple[Reading, list[Transcript]]:
    """Collect and score in evaluation mode, leaving the model's mode as it was."""
    training = subject.model.training
    subject.model.eval()
    try:
        with torch.no_grad(), subject.autocast():
            transcripts = measure.collect(subject, examples)
    finally:
        subject.model.train(training)
    return scored(measure, transcripts, label), transcripts


def scored(measure: Measure, transcripts: Sequence[Transcript], label: str) -> Reading:
    """The reading of transcripts, fresh or stored."""
    aspects = measure.aspects(transcripts) if transcripts else {}
    return reading_of(measure.score(transcripts), label).model_copy(update={"aspects": aspects})


def reading_of(outcomes: Sequence[float], label: str) -> Reading:
    """Mean and standard error of the outcomes; no value if any outcome is not finite."""
    clean = [float(o) if math.isfinite(o) else None for o in outcomes]
    n = len(clean)
    if n == 0 or any(o is None for o in clean):
        return Reading(label=label, value=None, n=n, se=None, outcomes=tuple(clean))
    mean = math.fsum(clean) / n  # type: ignore[arg-type]
    variance = math.fsum((o - mean) ** 2 for o in clean) / max(1, n - 1)  # type: ignore[operator]
    return Reading(label=label, value=mean, n=n, se=math.sqrt(variance / n), outcomes=tuple(clean))
