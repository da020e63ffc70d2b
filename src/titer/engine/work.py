"""A cell with everything it needs in hand: model, text, further models, measures; and its run."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from titer.data.bundle import ModelBundle
from titer.data.examples import Example
from titer.data.texts import Texts
from titer.engine.prober import BoundMeasure
from titer.errors import RunError
from titer.methods.method import Given, Method, Models, Reward, Run, ServiceDefense, StepLog
from titer.records.record import StartFacts
from titer.study.cell import Cell
from titer.study.facts import MethodFacts

Slots = Mapping[str, Sequence[Example]]


@dataclass(frozen=True)
class CellWork:
    """bundle: the model the cell starts from, to be changed. texts: slot → examples, drawn for the
    cell's seed. host, host_texts: the service that runs the method, and the defender's own text.
    """

    cell: Cell
    bundle: ModelBundle
    method: Method | None = None
    texts: Slots = field(default_factory=dict)
    models: Models = field(default_factory=lambda: Models({}))
    measures: Sequence[BoundMeasure] = ()
    host: ServiceDefense | None = None
    host_texts: Slots = field(default_factory=dict)
    reward: Reward | None = None
    start: StartFacts = field(default_factory=StartFacts)

    @property
    def text(self) -> Texts:
        return Texts(self.texts, self.bundle)

    @property
    def exact_flops(self) -> bool:
        return any(m is not None and m.exact_flops for m in (self.method, self.host))

    def facts(self) -> MethodFacts | None:
        return self.method.facts(tuple(self.texts)) if self.method else None

    @property
    def starts_as_parent(self) -> bool:
        """Whether a probe at step 0 reads the model the cell starts from, as it is. What a service
        hands out may differ from it, whatever the method it runs declares."""
        facts = self.facts()
        return facts is None or (facts.starts_as_parent and self.host is None)

    def begin(self) -> Run:
        """Start the method; what it does here belongs to its setup."""
        if self.method is None:
            return _Still(self.bundle)
        given = Given(
            model=self.bundle,
            text=self.text,
            models=self.models,
            seed=self.cell.seed,
            horizon=self.cell.steps,
            reward=self.reward,
        )
        run = self.method.start(given)
        if self.host is None:
            return run
        own = replace(given, text=Texts(self.host_texts, self.bundle), reward=None)
        return _Hosted(self.host.host(run, own), self.host, own)


class _Still:
    """No method at all: a model that is only looked at, in a cell of no steps."""

    def __init__(self, bundle: ModelBundle) -> None:
        self.bundle = bundle

    def model(self) -> ModelBundle:
        return self.bundle

    def step(self) -> StepLog | None:
        raise RunError("a cell without a method has no steps", field="cell.steps", expected="0")

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        return


class _Hosted:
    """A run inside a service: what comes out of it is what the service releases."""

    def __init__(self, run: Run, host: ServiceDefense, given: Given) -> None:
        self.run, self.host, self.given = run, host, given
        self.changes = type(host).release is not ServiceDefense.release

    def model(self) -> ModelBundle:
        trained = self.run.model()
        if not self.changes:
            return trained
        # A copy: training goes on from what was trained, not from what was released.
        return self.host.release(trained.having(model=copy.deepcopy(trained.model)), self.given)

    def step(self) -> StepLog | None:
        return self.run.step()

    def state_dict(self) -> dict[str, Any]:
        return self.run.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.run.load_state_dict(state)
