"""The contract of a method: an attack, a defense, or the defense of a fine-tuning service.

A method is one frozen settings object: its fields are its hyperparameters, its JSON is its record,
its `version` changes whenever its numbers would. `start` gives a `Run`, explicit and resumable,
that the engine advances one step at a time. What a method may use comes in one object, `Given`, and
nothing it does is free: the engine owns budget, probing, stopping and cost.

Shape legend used everywhere: B rows, T tokens, V vocabulary, D hidden size, L layers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from pydantic import BaseModel, ConfigDict

from titer.data.bundle import ModelBundle
from titer.data.examples import Example
from titer.data.texts import Texts
from titer.errors import StudyError
from titer.study.facts import AttackRole, MethodFacts, MethodKind, Stage


class Models:
    """Further models a method may read, by name; they are shared: never change one.

    `parent`: the model this cell starts from, as it was before anything in it (of a second stage,
    what the first one made; of a service, the model before the customer's fine-tuning). `control`:
    the study's undefended model, after its own alignment. Others: as named under the study's
    `models`.
    """

    def __init__(self, loaders: Mapping[str, Callable[[], ModelBundle]]) -> None:
        self._loaders = dict(loaders)

    def __contains__(self, name: str) -> bool:
        return name in self._loaders

    def frozen(self, name: str) -> ModelBundle:
        """The model in evaluation mode, its parameters without gradient. Raises StudyError if the
        method did not declare it in `wants` or the study does not have it."""
        if name not in self._loaders:
            raise StudyError(
                "a method asks for a model it was not given",
                field="models",
                value=name,
                expected=f"one of {', '.join(self._loaders) or 'none'}",
                remedy="name it in the method's `wants`, and under `models` in the study",
            )
        return self._loaders[name]()


Reward = Callable[[ModelBundle, Sequence[Example], Sequence[str | None]], list[float]]
"""(the model that said them, examples, replies) → the outcomes of the measure the study names under
the attack's `reward`: one number each, in the measure's own direction, NaN where there is none. Its
judge, if it has one, is charged to the method; judgements are remembered in the run directory."""


@dataclass(frozen=True)
class Given:
    """Everything a method may use; all of it is metered.

    model: a copy of the model the run starts from, to be changed at will; it is in evaluation mode,
    and no parameter requires a gradient yet. text: the method's text, drawn for `seed`, which is
    the cell's (under a service the customer's, for both sides). models: further models. horizon:
    how many steps the run will be given; only horizon-dependent schedules look at it. reward:
    scores replies, for methods that ask for one.
    """

    model: ModelBundle
    text: Texts
    models: Models
    seed: int
    horizon: int
    reward: Reward | None = None


@dataclass(frozen=True)
class StepLog:
    """What one step did: loss before the step, gradient norm before clipping, further figures.

    None: there is none (an edit has no loss). NaN or infinite: it was not finite.
    """

    loss: float | None = None
    grad_norm: float | None = None
    figures: Mapping[str, float] = field(default_factory=dict)


class Run(Protocol):
    """Explicit, resumable state. `load_state_dict(state_dict())` into a run started alike continues
    with identical results.

    `model` is asked for before every probe: weights, tokenizer and wording as they are now. `step`
    takes one outer step (one unit of the budget, however much is done in it), or returns None if
    nothing is left to do; it is then not asked again. A state is a nested dict of tensors, numbers,
    strings, lists and None. torch's global generators are seeded by the engine and part of its
    checkpoints: a run may draw from them. Any other generator should be a function of seed and
    step.
    """

    def model(self) -> ModelBundle: ...

    def step(self) -> StepLog | None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


Loss = tuple[torch.Tensor, dict[str, float]]
"""Scalar loss with graph, and further figures to log."""

Objective = Callable[[Any, int], Loss]
"""(model, step index) → loss."""

Gradient = Callable[[Any, int], StepLog]
"""(model, step index) → log of the step, its `grad_norm` left to the run that takes the step.

Called with the bundle's own model in evaluation mode (so that dropout and the like are off) and
every `.grad` empty; adds the gradient to `.grad` of what is trained, and enters `bundle.autocast()`
itself for forward passes. A loss is the common case (`runs.of_loss`); some methods follow a vector
field that is not the gradient of a loss.
"""


class Method(BaseModel, ABC):
    """Base of all methods. Subclass `Attack`, `Defense` or `ServiceDefense`, not this.

    needs: text it cannot do without: `slot.answer` ('harmful.response'), a slot whose prompts
    suffice ('harmful'), or an answer that every example of any slot must have ('.response').
    wants: further models it cannot do without, by name (`Models`). wants_reward: it trains on the
    score of replies. trains: it takes gradient steps. exact_flops: for methods that differentiate a
    gradient (first-order ones do not): FLOPs are then counted operation by operation, about 4 times
    slower, because hooks on modules do not see the backward pass of a backward pass.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: ClassVar[str]
    version: ClassVar[int] = 1
    kind: ClassVar[MethodKind]
    reference: ClassVar[str]
    """Paper and, where it matters, equation; or 'titer' for our own."""
    cost: ClassVar[str] = "1F+1B per step"
    """Cost of a step in forward (F) and backward (B) passes, for people; the engine meters the real
    one.
    """
    needs: ClassVar[tuple[str, ...]] = ()
    wants: ClassVar[tuple[str, ...]] = ()
    wants_reward: ClassVar[bool] = False
    trains: ClassVar[bool] = True
    exact_flops: ClassVar[bool] = False

    @abstractmethod
    def start(self, given: Given) -> Run:
        """Begin; what is done here is charged as setup. Raises StudyError if the text lacks what
        `needed` names."""

    def needed(self) -> tuple[str, ...]:
        """`needs`, with these settings."""
        return self.needs

    def wanted(self) -> tuple[str, ...]:
        """`wants`, with these settings."""
        return self.wants

    def rehearsal(self) -> Method:
        """The method as a trial runs it before any work, to its end or a few steps: a method of
        several phases shortens them, so that each is tried.
        """
        return self

    def horizon_free(self) -> bool:
        """True if the first t steps of a run do not depend on its horizon, so that a prefix is a
        t-step run.
        """
        return getattr(self, "schedule", "constant") == "constant"

    def facts(self, slots: Collection[str] = ()) -> MethodFacts:
        """What verdicts may ask about this method, given text in these slots."""
        return MethodFacts(
            kind=self.kind,
            name=self.name,
            version=self.version,
            reference=self.reference,
            cost=self.cost,
            horizon_free=self.horizon_free(),
            trains=self.trains,
        )


class Attack(Method):
    """A fine-tuning (or weight-editing) procedure an attacker with the weights can run.

    role, adapter, repairs, adaptive, starts_as_parent: defaults of the facts of the same name (see
    `MethodFacts`); a method whose settings change one overrides `facts`. With starts_as_parent,
    readings at step 0 are taken once for all seeds. rewords: the run's model is asked in other
    words than the one it was handed. endless: a weight edit that never has nothing left to do.
    """

    kind = "attack"
    role: ClassVar[AttackRole] = "attack"
    adapter: ClassVar[bool] = False
    repairs: ClassVar[bool] = False
    adaptive: ClassVar[bool] = False
    rewords: ClassVar[bool] = False
    endless: ClassVar[bool] = False
    starts_as_parent: ClassVar[bool] = False

    def facts(self, slots: Collection[str] = ()) -> MethodFacts:
        own = {
            "role": self.role,
            "adapter": self.adapter,
            "mixes": self.trains and {"harmful", "harmless"} <= set(slots),
            "repairs": self.repairs,
            "adaptive": self.adaptive,
            "starts_as_parent": self.starts_as_parent,
        }
        return super().facts(slots).model_copy(update=own)


class Defense(Method):
    """A procedure of the defender before release. stage: `pre` trains, `weights` edits weights."""

    kind = "defense"
    stage: ClassVar[Stage] = "pre"

    def facts(self, slots: Collection[str] = ()) -> MethodFacts:
        return super().facts(slots).model_copy(update={"stage": self.stage})


class ServiceDefense(Method):
    """A defense of a fine-tuning service, which runs the attacker's training itself. It fits no
    other threat model, and cannot be a stage that builds a model.

    Override `host` to act during the training, `release` to change the model that is handed out
    (at every probe: the model an attacker would get at that budget).
    """

    kind = "service"
    stage: ClassVar[Stage] = "during"

    def start(self, given: Given) -> Run:
        """Not for services: they run an attacker's training instead."""
        raise StudyError(
            "a service defense builds no model by itself",
            field="defense",
            value=self.name,
            expected="a defense that acts before release, or this one as a candidate's `service`",
        )

    def host(self, run: Run, given: Given) -> Run:
        """The attacker's run as the service runs it. given: the defender's text and models; its
        model is the one being trained. Raises StudyError if it cannot run such an attack."""
        return run

    def release(self, model: ModelBundle, given: Given) -> ModelBundle:
        """The model that is handed out. model: a copy of the trained one, to be changed at will; it
        may be wrapped in adapters (`anatomy.plain`, `anatomy.linear_weights` see through them).
        given: as for `host`; `models.frozen("parent")` is the model before the training."""
        return model

    def facts(self, slots: Collection[str] = ()) -> MethodFacts:
        return super().facts(slots).model_copy(update={"stage": self.stage})
