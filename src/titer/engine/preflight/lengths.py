"""Which text a study trains on and asks, from its planned cells."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from titer.data.examples import Example
from titer.data.pools import Pools
from titer.engine.estimate import measure_key
from titer.measures.measure import Measure
from titer.measures.registry import resolve_measure
from titer.methods.registry import resolve
from titer.study.base import canonical
from titer.study.cell import CellMeasure, CellMethod, PartUse, Planned

ASKED = Example(prompt="What is the capital of France?", response="The capital is Paris.")
"""Stands for any conversation where the template is looked at."""


UNKNOWN = 0.1
"""Share of unknown tokens from which a text counts as foreign to the tokenizer."""


@dataclass(frozen=True)
class Trained:
    """Text that methods train on. answers: those of its fields that are taught; empty: prompts
    only."""

    methods: str
    part: str
    answers: tuple[str, ...]
    max_length: int


@dataclass(frozen=True)
class Asked:
    """Text a measure reads."""

    measure: Measure
    part: str
    examples: tuple[Example, ...]


def request_of(asked: Asked) -> Any:
    return asked.measure.request()


def answers_of(example: Example, which: str) -> list[str]:
    if which == "choices":
        return list(example.choices)
    answer = getattr(example, which)
    return [] if answer is None else [answer]


def trained_texts(cells: Iterable[Planned]) -> list[Trained]:
    """Text by what is taught of it, with all methods that train on it so."""
    found: dict[tuple[str, tuple[str, ...], int], dict[str, None]] = {}
    for planned in cells:
        cell, host = planned.cell, planned.cell.host
        pairs = [(cell.method, cell.texts)] if cell.method else []
        pairs += [(host.method, host.texts)] if host else []
        for method, texts in pairs:
            for part, answers in _taught(method, texts):
                found.setdefault((part, answers, cell.max_length), {})[method.name] = None
    return [Trained(", ".join(names), *key) for key, names in found.items()]


def _taught(spec: CellMethod, texts: dict[str, PartUse]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(part, answers it is taught) of every slot."""
    method = resolve(spec.kind, spec.name, spec.settings)
    needs = [need.partition(".") for need in method.needed()]
    for slot, use in texts.items():
        answers = {answer for s, _, answer in needs if s in ("", slot) and answer}
        asked = {s for s, _, _ in needs} & {"", slot}
        if not asked and method.trains:  # text it can do without, such as what it is to retain
            answers = {"response"}
        yield use.part, tuple(sorted(answers))


def asked_texts(cells: Iterable[Planned], pools: Pools) -> Iterator[Asked]:
    """Each measure once per text it reads."""
    specs: dict[str, CellMeasure] = {}
    for planned in cells:
        for spec in planned.cell.measures:
            specs.setdefault(
                canonical([measure_key(spec), spec.text and spec.text.model_dump()]), spec
            )
    for spec in specs.values():
        measure = resolve_measure(spec.name, spec.settings)
        if spec.text is None:
            yield Asked(measure, "its own items", tuple(measure.own_items() or ()))
        else:
            examples = pools.part(spec.text.part, spec.text.domains)[: spec.text.examples]
            yield Asked(measure, spec.text.part, tuple(examples))
