"""Several attacks one after the other, as one attack."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from titer.data.bundle import ModelBundle
from titer.errors import StudyError, TiterError
from titer.methods.method import Attack, Given, Run, StepLog
from titer.methods.registry import resolve
from titer.study.facts import MethodFacts
from titer.study.plugins import code_digest


class Part(BaseModel):
    """One attack of a chain. steps: how many it is given; None lets it run until nothing is left to
    do, or, in the last place, to the budget.

    The chain completes settings with the attack's defaults, and fills in its version and code (see
    `plugins.code_digest`): a chain is another one when what a part does has changed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    attack: str
    settings: dict[str, Any] = {}
    steps: Annotated[int, Field(gt=0)] | None = None
    version: int = 0
    code: str = ""


class Chain(Attack):
    """Runs its parts in order within one cell, so that no attacked weights are ever kept: prune,
    then fine-tune; harmful fine-tuning, then repair.

    Steps and cost add up. Each part starts from the model the one before it left, adapters merged.
    A part but the last needs `steps` unless it ends by itself, as weight edits do that are not
    `endless`; a part that changes the model's wording (`soft_prompt`) can only be the last. The
    role is `attack` if any part is one.
    """

    name = "chain"
    reference = "titer"
    cost = "that of its parts"

    parts: Annotated[tuple[Part, ...], Field(min_length=1)]

    @field_validator("parts", mode="before")
    @classmethod
    def _completed(cls, parts: Any) -> Any:
        if not isinstance(parts, (list, tuple)):
            return parts
        return [_completed(part, f"parts[{i}]") for i, part in enumerate(parts)]

    @model_validator(mode="after")
    def _fit(self) -> Chain:
        for i, (part, attack) in enumerate(zip(self.parts, self.attacks(), strict=True)):
            last = i + 1 == len(self.parts)
            if not last and part.steps is None and not _ends(attack):
                raise StudyError(
                    f"{part.attack} does not end by itself: the next part would never begin",
                    field=f"parts[{i}].steps",
                    value=None,
                    expected="a number of steps",
                )
            if not last and attack.rewords:
                raise StudyError(
                    f"{part.attack} asks the model in other words, which nothing can follow",
                    field=f"parts[{i}].attack",
                    value=part.attack,
                    expected="it in the last place",
                )
        return self

    def attacks(self) -> list[Attack]:
        """The parts' methods. Raises UnknownNameError, StudyError."""
        return [
            resolve("attack", p.attack, p.settings, field=f"parts[{i}]")
            for i, p in enumerate(self.parts)
        ]

    @property
    def rewords(self) -> bool:  # type: ignore[override]
        return any(a.rewords for a in self.attacks())

    @property
    def wants_reward(self) -> bool:  # type: ignore[override]
        return any(a.wants_reward for a in self.attacks())

    @property
    def exact_flops(self) -> bool:  # type: ignore[override]
        return any(a.exact_flops for a in self.attacks())

    def needed(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(n for a in self.attacks() for n in a.needed()))

    def wanted(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(n for a in self.attacks() for n in a.wanted()))

    def horizon_free(self) -> bool:
        """A part that is given its steps does not look at the horizon of the whole."""
        each = zip(self.parts, self.attacks(), strict=True)
        return all(part.steps is not None or attack.horizon_free() for part, attack in each)

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

    def rehearsal(self) -> Chain:
        """The same parts, at most one step each."""
        return Chain(parts=tuple(part.model_copy(update={"steps": 1}) for part in self.parts))

    def start(self, given: Given) -> Run:
        self._check(given)
        return _ChainRun(self, given)

    def _check(self, given: Given) -> None:
        """Raises StudyError up front for text that a later part lacks."""
        for need in self.needed():
            slot, _, answer = need.partition(".")
            examples = given.text.examples(slot or tuple(given.text.slots))
            if not examples or (answer and any(getattr(e, answer) is None for e in examples)):
                raise StudyError(
                    "a part of the chain lacks text",
                    field=f"data.{slot}".rstrip("."),
                    value=f"{len(examples)} examples",
                    expected=f"examples, all with a {answer}" if answer else "examples",
                )
        for name in self.wanted():
            if name not in given.models:
                given.models.frozen(name)  # raises what a part would


def _completed(part: Any, field: str) -> Any:
    """A part with what the chain fills in; any other value is returned unchanged."""
    given = part.model_dump() if isinstance(part, Part) else part
    if not isinstance(given, Mapping) or not isinstance(given.get("attack"), str):
        return part
    settings = given.get("settings", {})
    if not isinstance(settings, Mapping):
        return part
    attack = resolve("attack", given["attack"], dict(settings), field=field)
    return {
        **given,
        "settings": attack.model_dump(mode="json"),
        "version": attack.version,
        "code": code_digest(type(attack)),
    }


def _ends(attack: Attack) -> bool:
    """Whether the method finishes by itself: an edit does, training does not."""
    if isinstance(attack, Chain):
        return attack.parts[-1].steps is not None or _ends(attack.attacks()[-1])
    return not attack.trains and not attack.endless


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
        bundle = self._left()
        self.place, self.taken_here = self.place + 1, 0
        self.before = {n: p.detach().cpu().clone() for n, p in bundle.model.named_parameters()}
        self.run = self._start(bundle)

    def _left(self) -> ModelBundle:
        """The model handed to the next part: adapters merged, no parameter trained yet."""
        left = self.run.model()
        model = left.model
        if hasattr(model, "merge_and_unload"):
            model = model.merge_and_unload()
        for parameter in model.parameters():
            parameter.grad = None
        return left.having(model=model.requires_grad_(False))

    def _start(self, bundle: ModelBundle) -> Run:
        part = self.parts[self.place]
        horizon = self.given.horizon - self.taken if part.steps is None else part.steps
        # Each part gets a seed of its own; otherwise two parts would draw the same batches.
        given = Given(
            model=bundle,
            text=self.given.text.under(bundle),
            models=self.given.models,
            seed=self.given.seed + 1_000_003 * self.place,
            horizon=horizon,
            reward=self.given.reward,
        )
        try:
            return self.attacks[self.place].start(given)
        except TiterError as error:
            raise type(error)(
                f"part {self.place + 1} of the chain ({part.attack}) cannot begin: {error.problem}",
                field=f"parts[{self.place}].{error.field or ''}".rstrip("."),
                value=error.value,
                expected=error.expected,
                remedy=error.remedy,
            ) from error

    def state_dict(self) -> dict[str, Any]:
        return {
            "place": self.place,
            "taken": self.taken,
            "taken_here": self.taken_here,
            "before": self.before,
            "run": self.run.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.taken_here, self.before = state["taken_here"], state["before"]
        self.taken = state["taken"] - self.taken_here  # what the part was told when it started
        # The parts in between begin too: what a model is made of may change when one begins.
        while self.place < state["place"]:
            bundle, self.place = self._left(), self.place + 1
            if self.place == state["place"]:
                named = dict(bundle.model.named_parameters())
                with torch.no_grad():
                    for name, value in self.before.items():
                        named[name].copy_(value)
            self.run = self._start(bundle)
        self.taken = state["taken"]
        self.run.load_state_dict(state["run"])
