"""A measure as the reward of a method that trains on what the model says."""

from __future__ import annotations

from collections.abc import Sequence

from titer.data.bundle import ModelBundle
from titer.data.examples import Example
from titer.engine.prober import BoundMeasure
from titer.errors import StudyError
from titer.judges.cache import JudgementCache, judged
from titer.measures.measure import Measure
from titer.measures.requests import Generate
from titer.methods.method import Reward


def refuse_unfit(measure: Measure, field: str) -> None:
    """Raises StudyError if a measure cannot be a reward."""
    if not isinstance(measure.request(), Generate):
        raise StudyError(
            f"{measure.name} cannot be a reward, because it does not score replies",
            field=field,
            value=measure.name,
            expected="a measure that asks for generated replies",
        )


def reward_of(bound: BoundMeasure, cache: JudgementCache) -> Reward:
    """The measure's score of replies that the method sampled itself. Raises StudyError if the
    measure does not score replies."""
    measure = bound.measure
    refuse_unfit(measure, "reward.measure")

    def reward(
        bundle: ModelBundle, examples: Sequence[Example], replies: Sequence[str | None]
    ) -> list[float]:
        transcripts = [
            {"key": e.key, "prompt": e.prompt, "reply": r}
            for e, r in zip(examples, replies, strict=True)
        ]
        judge = measure.judge()
        if judge is not None:
            transcripts = judged(judge, transcripts, cache)
        return measure.score(transcripts)

    return reward
