"""Reads a model with several measures, asking each question once; and scores stored transcripts
again without the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from titer.data.bundle import ModelBundle
from titer.data.examples import Example
from titer.data.wording import Wording
from titer.judges.cache import JudgementCache, judged
from titer.measures.measure import Measure, scored, transcripts_of
from titer.measures.requests import Own, Request, Transcript
from titer.records.record import Reading
from titer.study.base import canonical
from titer.study.cell import CellMeasure


@dataclass
class BoundMeasure:
    """A measure with its text in hand. spec says when it is read; items is the digest of the
    examples' content and order.
    """

    spec: CellMeasure
    measure: Measure
    examples: Sequence[Example]
    items: str

    @property
    def key(self) -> str:
        """Label, measure and items: what two readings of one model must share to be the same
        reading.
        """
        return canonical(
            [self.spec.label, self.spec.name, self.spec.version, self.spec.settings, self.items]
        )


class Prober:
    """Reads models with the measures of a cell. cache: where judgements are remembered (by default
    in memory, for as long as the prober lives).

    Within one probe the model is asked once per (items, request), and measures with different
    scores, or judges, share its answers. `begin` starts a probe; so does another model or another
    wording. After every step of training the weights are others in the same model: call `begin`.
    """

    def __init__(
        self, measures: Sequence[BoundMeasure], cache: JudgementCache | None = None
    ) -> None:
        self.measures = tuple(measures)
        self.cache = JudgementCache(None) if cache is None else cache
        self._answers: dict[tuple[str, Request, str], list[Transcript]] = {}
        self._of: tuple[Any, Wording] | None = None

    def begin(self) -> None:
        """Drop cached answers: the model may have changed."""
        self._answers, self._of = {}, None

    def read(
        self, bundle: ModelBundle, which: Sequence[BoundMeasure]
    ) -> dict[str, tuple[Reading, list[Transcript]]]:
        """label → (reading, its transcripts, judged if the measure has a judge).

        The model is in evaluation mode without gradient while it is asked, and its mode is put
        back. First the model is asked for all of them, then the judges, then they are scored.
        Raises MeasureError (see `transcripts_of` and `judged`).
        """
        if self._of is None or self._of[0] is not bundle.model or self._of[1] != bundle.wording:
            self.begin()
            self._of = (bundle.model, bundle.wording)
        answers = [(bound, self._ask(bundle, bound)) for bound in which]
        passed = [(b, _judged(b.measure, answer, self.cache)) for b, answer in answers]
        return {
            b.spec.label: (scored(b.measure, transcripts, b.spec.label), transcripts)
            for b, transcripts in passed
        }

    def _ask(self, bundle: ModelBundle, bound: BoundMeasure) -> list[Transcript]:
        request = bound.measure.request()
        # What a measure collects itself is not shared with other measures.
        own = _named(bound.measure) if isinstance(request, Own) else ""
        key = (bound.items, request, own)
        if key not in self._answers:
            self._answers[key] = transcripts_of(bound.measure, bundle, bound.examples)
        # Copies, so that one measure cannot change the transcripts of another.
        return [dict(t) for t in self._answers[key]]


def _named(measure: Measure) -> str:
    return canonical([measure.name, measure.version, measure.model_dump(mode="json")])


def _judged(
    measure: Measure, transcripts: list[Transcript], cache: JudgementCache
) -> list[Transcript]:
    judge = measure.judge()
    return transcripts if judge is None else judged(judge, transcripts, cache)


def rescore(
    measure: Measure,
    transcripts: Sequence[Transcript],
    label: str,
    cache: JudgementCache | None = None,
) -> Reading:
    """The reading of stored transcripts, without a model. A measure with a judge has them judged by
    it (again, whatever judgements they carry), from the cache where it can.

    Raises MeasureError if they are not what the measure asks for.
    """
    cache = JudgementCache(None) if cache is None else cache
    return scored(measure, _judged(measure, list(transcripts), cache), label)
