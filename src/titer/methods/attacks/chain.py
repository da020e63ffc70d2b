"""Several attacks one after the other, as one attack."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from titer.data.bundle import ModelBundle
from titer.methods.method import Attack, Given, Run, StepLog
from titer.methods.registry import resolve
from titer.study.facts import MethodFacts


class Part(BaseModel):
    """One attack of a chain. steps: how many it is given; None lets it run until nothing is left to
    do, or, in the last place, to the budget."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    attack: str
    settings: dict[str, Any] = {}
    steps: Annotated[int, Field(gt=0)] | None = None


class Chain(Attack):
    """Runs its parts in order within one cell, so that no attacked weights are ever kept: prune, then
    fine-tune; harmful fine-tuning, then repair.

    Steps and cost add up. Each part starts from the model the one before it left, adapters merged.
    A part but the last needs `steps` unless it ends by itself, as weight edits do; a part that asks
    the model in other words (`soft_prompt`) can only be the last. The role is `attack` if any part
    is one.
    """

    name = "chain"
    reference = "titer"
    cost = "that of its parts"

    parts: Annotated[tuple[Part, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _fit(self) -> Chain:
        attacks = self.attacks()
        for part, attack in zip(self.parts[:-1], attacks[:-1], strict=True):
            if part.steps is None and attack.facts().trains:
                raise ValueError(f"{part.attack} does not end by itself: give it steps")
            if attack.rewords:
                raise ValueError(f"{part.attack} asks in other words, so it must come last")
        return self

    def attacks(self) -> list[Attack]:
        """The parts' methods. Raises UnknownNameError, StudyError."""
        return [resolve("attack", p.attack, p.settings, field="parts") for p in self.parts]

    def needed(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(n for a in self.attacks() for n in a.needed()))

    def wanted(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(n for a in self.attacks() for n in a.wanted()))

    def horizon_free(self) -> bool:
        return all(a.horizon_free() for a in self.attacks())

    def facts(self, slots: Collection[str] = ()) -> MethodFacts:
        each = [a.facts(slots) for a in self.attacks()]
        own = {
            "role": "attack" if any(f.role == "attack" for f in each) else "reference",
            "trains": any(f.trains for f in each),
            "starts_as_parent": each[0].starts_as_parent,
        }
        for name in ("adapter", "mixes", "repairs", "adaptive"):
            own[name] = any(getattr(f, name) for f in each)
        return super().facts(slots).model_copy(update=own)

    def start(self, given: Given) -> Run:
        return _ChainRun(self, given)


class _ChainRun:
    """Runs the part that is at work; starts the next one when it is done."""

    def __init__(self, chain: Chain, given: Given) -> None:
        self.parts, self.attacks, self.given = chain.parts, chain.attacks(), given
        self.place, self.taken, self.taken_here = 0, 0, 0
        self.before: dict[str, torch.Tensor] = {}
        """Weights at the start of the part at work, on the host; none are kept for the first, which
        starts from the parent."""
        self.run = self._start(given.model)

    def model(self) -> ModelBundle:
        return self.run.model()

    def step(self) -> StepLog | None:
        while True:
            limit = self.parts[self.place].steps
            log = None if limit is not None and self.taken_here >= limit else self.run.step()
            if log is not None:
                self.taken, self.taken_here = self.taken + 1, self.taken_here + 1
                figures = {**log.figures, "part": float(self.place)}
                return StepLog(loss=log.loss, grad_norm=log.grad_norm, figures=figures)
            if self.place + 1 == len(self.parts):
                return None
            self._next()

    def _next(self) -> None:
        left = self.run.model()
        model = left.model
        if hasattr(model, "merge_and_unload"):
            model = model.merge_and_unload()
        for parameter in model.parameters():
            parameter.grad = None
        bundle = left.having(model=model.requires_grad_(False))
        self.place, self.taken_here = self.place + 1, 0
        self.before = {n: p.detach().cpu().clone() for n, p in model.named_parameters()}
        self.run = self._start(bundle)

    def _start(self, bundle: ModelBundle) -> Run:
        part = self.parts[self.place]
        horizon = self.given.horizon - self.taken if part.steps is None else part.steps
        # Parts draw their batches apart: two parts with one seed would see the same ones.
        given = Given(
            model=bundle,
            text=self.given.text.under(bundle),
            models=self.given.models,
            seed=self.given.seed + 1_000_003 * self.place,
            horizon=horizon,
            reward=self.given.reward,
        )
        return self.attacks[self.place].start(given)

    def state_dict(self) -> dict[str, Any]:
        return {
            "place": self.place,
            "taken": self.taken,
            "taken_here": self.taken_here,
            "before": self.before,
            "run": self.run.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.place, self.taken_here = state["place"], state["taken_here"]
        self.taken = state["taken"] - self.taken_here  # what the part was told when it started
        self.before = state["before"]
        if self.place:
            bundle = self.given.model
            with torch.no_grad():
                for name, parameter in bundle.model.named_parameters():
                    parameter.copy_(self.before[name])
            self.run = self._start(bundle)
        self.taken = state["taken"]
        self.run.load_state_dict(state["run"])
