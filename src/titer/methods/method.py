"""The contract of a method (an attack or a defense).

A method is one frozen settings object: its fields are its hyperparameters, its JSON is its record, its `version`
changes whenever its numbers would. `start` gives a `Run`, explicit and resumable, that the engine advances one outer
step at a time. The engine owns budget, probing, stopping and cost; a method never reports its own cost.

Shape legend used everywhere: B rows, T tokens, V vocabulary, D hidden size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict

from titer.data.examples import Example
from titer.data.subject import Subject


@dataclass(frozen=True)
class MethodData:
    """The text a method is given, already drawn for its seed. Attack and defense data never share an example."""

    harmful: tuple[Example, ...] = ()
    harmless: tuple[Example, ...] = ()


@dataclass(frozen=True)
class StepLog:
    """What one step did: loss before the step, gradient norm before clipping (0 for an edit), further figures."""

    loss: float
    grad_norm: float
    other: dict[str, float] = field(default_factory=dict)


class Run(Protocol):
    """Explicit, resumable state. `load_state_dict(state_dict())` continues with identical results.

    A state is a nested dict of tensors, numbers, strings, lists and None. Global random state (dropout) is the
    engine's business.
    """

    model: Any

    def step(self) -> StepLog: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Method(BaseModel, ABC):
    """Base of attacks and defenses. Subclass `Attack` or `Defense`, not this."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: ClassVar[str]
    version: ClassVar[int] = 1
    kind: ClassVar[Literal["attack", "defense"]]
    reference: ClassVar[str]
    """Paper and, where it matters, equation; or 'titer' for our own."""
    cost: ClassVar[str] = "1F+1B per step"
    """Cost of a step in forward (F) and backward (B) passes, for people; the engine meters the real one."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Which data the method cannot do without: 'harmful.response', 'harmful.refusal', 'harmless.response'."""

    @abstractmethod
    def start(self, subject: Subject, data: MethodData, *, seed: int, horizon: int) -> Run:
        """Begin. subject.model may be changed in place: the caller hands over a copy.

        horizon: how many steps the run will be given; only horizon-dependent schedules look at it.
        Raises StudyError if the data lack what `needs` names.
        """

    def horizon_free(self) -> bool:
        """True if the first t steps of a run do not depend on its horizon, so that a prefix is a t-step run."""
        return getattr(self, "schedule", "constant") == "constant"

    def facts(self) -> dict[str, Any]:
        """What verdicts may ask about the method without importing it."""
        return {"kind": self.kind, "version": self.version, "reference": self.reference, "cost": self.cost,
                "horizon_free": self.horizon_free()}  # fmt: skip


class Attack(Method):
    """A fine-tuning (or weight-editing) procedure an attacker with the weights can run.

    role: `attack` must break the undefended control to be evidence; a `reference` (null attack) is exempt.
    adapter: trains few parameters beside the weights. mixes_harmless / repairs: see 'collapse' in docs/statistics.md.
    """

    kind = "attack"
    role: ClassVar[Literal["attack", "reference"]] = "attack"
    adapter: ClassVar[bool] = False
    mixes_harmless: ClassVar[bool] = False
    repairs: ClassVar[bool] = False
    adaptive: ClassVar[bool] = False
    starts_as_parent: ClassVar[bool] = False
    """True if at step 0 the run's model gives exactly the outputs of the model it was handed, so that readings at 0
    are the same for every seed and attack and are taken once."""

    def wrap_eval(self, example: Example) -> Example:
        """How the attacker words a prompt at evaluation; the identity unless the attack trains a special format."""
        return example

    def facts(self) -> dict[str, Any]:
        return super().facts() | {
            "role": self.role, "adapter": self.adapter, "mixes_harmless": self.mixes_harmless,
            "repairs": self.repairs, "adaptive": self.adaptive,
        }  # fmt: skip


class Defense(Method):
    """A procedure of the defender. stage: `pre` and `weights` act before release and fit the open-weights threat
    model; `during` and `after` need control over the attacker's fine-tuning and fit only a fine-tuning service."""

    kind = "defense"
    stage: ClassVar[Literal["pre", "weights", "during", "after"]] = "pre"

    def facts(self) -> dict[str, Any]:
        return super().facts() | {"stage": self.stage}


Objective = Callable[[Any, int], "tuple[torch.Tensor, dict[str, float]]"]
"""(model, step index) → scalar loss with graph, further figures to log."""
