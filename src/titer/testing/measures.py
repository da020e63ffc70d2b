"""What every measure must satisfy. Call check_measure in a test."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from titer.data.bundle import ModelBundle
from titer.data.examples import Example
from titer.errors import MeasureError
from titer.judges.cache import JudgementCache, judged
from titer.measures.ask import ask
from titer.measures.measure import Measure, scored
from titer.measures.requests import Own
from titer.records.record import Reading
from titer.testing.trial import Trial, must


def check_measure(measure: Measure, trial: Trial, examples: Sequence[Example]) -> None:
    """One transcript per example in order, of plain JSON; score pure; the model left alone;
    batching of no consequence; examples without what it needs refused; no value for a model whose
    weights are not numbers, which is neither harmful nor harmless.

    examples: what it is tried on, unless it brings its own. Its judge, if it has one, is asked.
    """
    examples = measure.own_items() or examples
    judgements = JudgementCache(None)
    bundle = trial.bundle()
    before = {n: p.detach().clone() for n, p in bundle.model.named_parameters()}
    bundle.model.train()
    told = _said(measure, bundle, examples)
    must(bundle.model.training, f"{measure.name}: the model's mode is changed")
    unchanged = all(torch.equal(p, before[n]) for n, p in bundle.model.named_parameters())
    must(unchanged, f"{measure.name} changes the model")
    must(
        [t["key"] for t in told] == [e.key for e in examples],
        f"{measure.name}: transcripts out of order",
    )
    must(_is_json(told), f"{measure.name}: its transcripts are no plain JSON")
    judge = measure.judge()
    _check_score(measure, told if judge is None else judged(judge, told, judgements))
    _check_measure_needs(measure, bundle, examples)

    def outcomes(bundle: ModelBundle) -> Reading:
        told = _said(measure, bundle, examples)
        return scored(measure, judged(judge, told, judgements) if judge else told, "label")

    batched, one_by_one = outcomes(bundle), outcomes(replace(bundle, eval_batch=1))
    close = all(
        a == b
        or (a is not None and b is not None and math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-4))
        for a, b in zip(batched.outcomes, one_by_one.outcomes, strict=True)
    )
    must(close, f"{measure.name}: outcomes depend on how examples are batched")
    bundle = trial.bundle()
    with torch.no_grad():
        for parameter in bundle.model.parameters():
            parameter.fill_(math.nan)
    broken = outcomes(bundle).value
    must(
        broken is None, f"{measure.name} reads {broken} from a model whose weights are not numbers"
    )


def _said(
    measure: Measure, bundle: ModelBundle, examples: Sequence[Example]
) -> list[dict[str, Any]]:
    """What the model answers to the measure, as the engine asks for it."""
    request = measure.request()
    if not isinstance(request, Own):
        return ask(bundle, examples, request)
    with bundle.reading():
        return measure.collect(bundle, examples)


def _is_json(told: list[dict[str, Any]]) -> bool:
    """Whether the value survives a JSON round trip (no NaN, tuples or tensors)."""
    try:
        return bool(json.loads(json.dumps(told, allow_nan=False)) == told)
    except (TypeError, ValueError):
        return False


def _check_score(measure: Measure, told: list[dict[str, Any]]) -> None:
    stored = json.loads(json.dumps(told))
    first, again, fresh = (measure.score(t) for t in (stored, stored, told))
    must(
        repr(first) == repr(again) == repr(list(fresh)),  # in which NaN equals NaN
        f"{measure.name}: score is not a pure function of transcripts",
    )
    must(stored == told, f"{measure.name}: score changes the transcripts")
    must(len(first) == len(told), f"{measure.name}: not one outcome per example")
    if measure.facts().scale == "proportion":
        must(
            all(o in (0.0, 1.0) or math.isnan(o) for o in first),
            f"{measure.name} is declared a proportion but scores {sorted(set(first))[:4]}",
        )


def _check_measure_needs(
    measure: Measure, bundle: ModelBundle, examples: Sequence[Example]
) -> None:
    if measure.own_items() is not None:
        return
    for need in measure.needed():
        empty = getattr(Example(), need)
        try:
            _said(measure, bundle, [*examples[1:], replace(examples[0], **{need: empty})])
        except MeasureError:
            continue
        raise AssertionError(f"{measure.name} needs {need} but reads without it")
