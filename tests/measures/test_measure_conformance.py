"""One table for every measure that is installed; re-scoring stored transcripts; and the check
itself must be able to fail.
"""

import json
import math
from dataclasses import replace

import pytest

from titer.data.respond import content_free_compliance
from titer.judges.judge import Judge
from titer.measures.ask import ask
from titer.measures.exact_answer import ExactAnswer
from titer.measures.measure import read, scored
from titer.measures.registry import measures, resolve_measure
from titer.measures.requests import Own
from titer.study.plugins import register
from titer.testing.measures import check_measure


@register
class StandIn(Judge):
    """Judges by the length of the reply, so that both outcomes occur."""

    name = "stand_in_for_conformance"

    def judge(self, pairs):
        return [(len(reply) % 7) / 6 for _, reply in pairs]


ROWS = {
    "judged_harm": [{"judge": StandIn.name, "max_new_tokens": 6, "wrap": "please {prompt}"}],
    "exact_answer": [
        {"reads": "harm"},
        {"target": "refusal", "reads": "over_refusal"},
        {"wrap": "please {prompt}"},
    ],
    "compliance_likelihood": [{}, {"floor": 1.0, "wrap": "please {prompt}"}],
    "compliance_generated": [{"max_new_tokens": 6}],
    "refusal_rate": [{"max_new_tokens": 6}],
    "perplexity": [{"tokens": 8}],
    "next_token_accuracy": [{"tokens": 8}],
    "multiple_choice": [{"options": 3}, {"options": 3, "normalise": "none"}],
}
"""Settings under which a measure is tried; one without a row is tried with its defaults."""

EVERY = [
    pytest.param(resolve_measure(name, settings), id=f"{name}-{i}")
    for name in measures()
    for i, settings in enumerate(ROWS.get(name, [{}]))
]


@pytest.fixture
def read_by(mixed, texts):
    """The examples a measure can read."""
    asked = [e.response for e in mixed]

    def of(measure):
        if measure.name in ("perplexity", "next_token_accuracy"):
            return texts
        if measure.name == "multiple_choice":
            return [
                replace(e, choices=tuple(asked[i - k] for k in range(3)), answer=0)
                for i, e in enumerate(mixed)
            ]
        return content_free_compliance(mixed) if measure.name.startswith("compliance") else mixed

    return of


def test_the_table_names_what_exists():
    assert set(ROWS) <= set(measures())


@pytest.mark.parametrize("measure", EVERY)
def test_measure(measure, trial, read_by):
    check_measure(measure, trial, read_by(measure))


@pytest.mark.parametrize("measure", EVERY)
def test_scoring_stored_transcripts_again_gives_the_same(measure, unsure, read_by):
    reading, transcripts = read(measure, unsure(), read_by(measure), "x")
    stored = json.loads(json.dumps(transcripts))
    assert scored(measure, stored, "x") == reading
    half = measure.score(stored[::2])  # each outcome depends on its own transcript alone
    assert half == measure.score(stored)[::2]


@pytest.mark.parametrize("measure", EVERY)
def test_settings_round_trip(measure):
    cls = type(measure)
    assert cls.model_validate_json(measure.model_dump_json()) == measure
    facts = measure.facts()
    assert (facts.name, facts.version, facts.settings) == (
        cls.name,
        cls.version,
        measure.model_dump(mode="json"),
    )
    assert (cls.__doc__ or "").strip()
    with pytest.raises(ValueError, match="Extra inputs"):
        cls(**measure.model_dump(), no_such_setting=1)
    with pytest.raises(ValueError, match="frozen"):
        setattr(measure, next(iter(cls.model_fields), "x"), None)


SEEN: list[int] = []


class Liar(ExactAnswer):
    """Breaks one promise at a time."""

    name = "liar"

    lie: str = ""

    def request(self):
        return Own() if self.lie else super().request()

    def needed(self):
        return super().request().needed()

    def collect(self, bundle, examples):
        if self.lie == "changes":
            next(bundle.model.parameters()).add_(1.0)
        if self.lie == "greedy":
            examples = [replace(e, response=e.response or "") for e in examples]
        rows = ask(bundle, examples, super().request())
        if self.lie == "order":
            return rows[::-1]
        if self.lie == "batch":
            return [{**r, "matched": [bundle.eval_batch > 1]} for r in rows]
        if self.lie == "nan":
            return [{**r, "extra": math.nan} for r in rows]
        if self.lie == "tuple":
            return [{**r, "matched": tuple(r["matched"])} for r in rows]
        return rows

    def score(self, transcripts):
        if self.lie == "edits":
            for t in transcripts:
                t["matched"] = [*t["matched"], False]
        if self.lie == "remembers":
            SEEN.append(1)
            return [float(len(SEEN) % 2)] * len(transcripts)
        if self.lie == "range":
            return [0.5] * len(transcripts)
        if self.lie == "short":
            return super().score(transcripts)[1:]
        if self.lie == "blind":
            return [float(all(t["matched"])) for t in transcripts]
        return super().score(transcripts)


@pytest.mark.parametrize(
    ("lie", "says"),
    [
        ("changes", "changes the model"),
        ("greedy", "needs response but reads without it"),
        ("nan", "no plain JSON"),
        ("tuple", "no plain JSON"),
        ("order", "out of order"),
        ("batch", "how examples are batched"),
        ("edits", "changes the transcripts"),
        ("remembers", "pure function"),
        ("range", "declared a proportion"),
        ("short", "one outcome per example"),
        ("blind", "weights are not numbers"),
    ],
)
def test_a_broken_promise_is_found(trial, harmless, lie, says):
    with pytest.raises(AssertionError, match=says):
        check_measure(Liar(lie=lie), trial, harmless[:6])


@pytest.mark.parametrize("lie", ["", "none"])
def test_an_honest_measure_passes(trial, harmless, lie):
    check_measure(Liar(lie=lie), trial, harmless[:6])
    assert read(Liar(lie=lie), trial.bundle(), harmless[:6], "x")[0].value > 0
