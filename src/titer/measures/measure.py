"""The contract of a measure: what it asks of a model, and a score that is a pure function of the
model's answers. A finished run can therefore be scored, and judged, again without its model.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from titer.data.bundle import ModelBundle
from titer.data.examples import Example
from titer.errors import MeasureError
from titer.judges.cache import JudgementCache, judged
from titer.judges.judge import Judge
from titer.measures.ask import ask
from titer.measures.requests import Own, Request, Transcript
from titer.records.record import MeasureFacts, Reading


class Measure(BaseModel, ABC):
    """One frozen settings object. `version` changes whenever its numbers would."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: ClassVar[str]
    version: ClassVar[int] = 1
    reference: ClassVar[str] = "titer"

    @abstractmethod
    def facts(self) -> MeasureFacts:
        """What it measures, in which direction, with which sampling."""

    @abstractmethod
    def request(self) -> Request:
        """What it asks of the model. Measures with equal requests share the answers."""

    @abstractmethod
    def score(self, transcripts: Sequence[Transcript]) -> list[float]:
        """One outcome per transcript, NaN if undefined; pure."""

    def aspects(self, transcripts: Sequence[Transcript]) -> dict[str, float]:
        """Further figures of the same transcripts that flags look at (see `Reading.aspects`); pure,
        finite, none by default.
        """
        return {}

    def judge(self) -> Judge | None:
        """The judge of the replies before they are scored, if any."""
        return None

    def needed(self) -> tuple[str, ...]:
        """What every example it reads must have beside a key: `prompt`, `text`, `response`,
        `refusal`, `choices`, `answer`. By default what the request and the judge need.
        """
        judge = self.judge()
        both = (*self.request().needed(), *(judge.needed() if judge else ()))
        return tuple(dict.fromkeys(both))

    def own_items(self) -> tuple[Example, ...] | None:
        """The examples of a measure that brings its own data; None: it reads those of the study."""
        return None

    def collect(self, bundle: ModelBundle, examples: Sequence[Example]) -> list[Transcript]:
        """Transcripts, one per example in order, by running the model; asked for only if the
        request is `Own`. Called in evaluation mode without gradient.
        """
        raise MeasureError(
            "the measure does not run the model itself",
            field="measure",
            value=self.name,
            expected="`collect`, if its request is Own()",
        )

    def declare(self, **facts: Any) -> MeasureFacts:
        """MeasureFacts with this measure's identity filled in."""
        return MeasureFacts(
            name=self.name, version=self.version, settings=self.model_dump(mode="json"), **facts
        )


def transcripts_of(
    measure: Measure, bundle: ModelBundle, examples: Sequence[Example]
) -> list[Transcript]:
    """The model's answers to what a measure asks, one per example, in order; not judged yet.

    The model is in evaluation mode without gradient meanwhile. Raises MeasureError, naming the
    measure, if an example lacks something or a text does not fit.
    """
    request = measure.request()
    try:
        if isinstance(request, Own):
            with bundle.reading():
                found = measure.collect(bundle, examples)
        else:
            found = ask(bundle, examples, request)
    except MeasureError as error:
        if error.field is not None:
            raise
        raise MeasureError(
            error.problem,
            field="measure",
            value=measure.name,
            expected=error.expected,
            remedy=error.remedy,
        ) from error
    if [t["key"] for t in found] != [e.key for e in examples]:
        raise MeasureError(
            "the transcripts are not those of the examples, one each and in order",
            field="measure",
            value=measure.name,
            expected=f"the keys of {len(examples)} examples; there are {len(found)} transcripts",
        )
    return found


def read(
    measure: Measure,
    bundle: ModelBundle,
    examples: Sequence[Example],
    label: str,
    cache: JudgementCache | None = None,
) -> tuple[Reading, list[Transcript]]:
    """Ask, judge and score for one measure alone. `titer.engine.prober` does it for several."""
    transcripts = transcripts_of(measure, bundle, examples)
    judge = measure.judge()
    if judge is not None:
        transcripts = judged(judge, transcripts, cache or JudgementCache(None))
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
