"""The shared runs: training given a gradient or a loss, and weight edits. Methods rarely need
another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, Field

from titer.data.bundle import ModelBundle
from titer.methods.method import Gradient, Objective, StepLog
from titer.methods.optimizers import Optimizer, OptimizerName, trained

Schedule = Literal["constant", "linear", "cosine"]


def schedule_factor(schedule: Schedule, step: int, *, warmup: int, horizon: int) -> float:
    """Factor on the learning rate of step `step` (0-based): linear warm-up of fixed length, then
    the schedule.

    `constant` does not look at the horizon. `linear` and `cosine` decay to 0 at it and stay there.
    """
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    progress = min(1.0, (step - warmup) / max(1, horizon - warmup))
    return 1.0 - progress if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))


class Training(BaseModel):
    """The settings every gradient method has; mixed into its class so that studies name them flat.

    lr: peak learning rate. batch_size: rows of each kind of text per step. warmup_steps: linear, of
    fixed length. schedule: `constant` shares prefixes; `linear` and `cosine` decay to 0 at the
    horizon, so each budget is a run of its own. optimizer: see `optimizers.Optimizer`; betas are
    those of AdamW, momentum is that of SGD. weight_decay, clip_norm (gradient 2-norm).
    """

    lr: Annotated[float, Field(gt=0)] = 2e-5
    batch_size: Annotated[int, Field(gt=0)] = 8
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    schedule: Schedule = "constant"
    optimizer: OptimizerName = "adamw"
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (
        0.9,
        0.999,
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip_norm: Annotated[float, Field(gt=0)] = 1.0

    def descend(
        self,
        bundle: ModelBundle,
        gradient: Gradient,
        *,
        horizon: int,
        noisy: Iterable[torch.nn.Module] = (),
    ) -> TrainingRun:
        """A run that follows `gradient` with these settings; trains what requires a gradient.
        noisy: modules to be put into training mode (a method's own dropout)."""
        return TrainingRun(bundle, gradient, self, horizon=horizon, noisy=noisy)

    def minimise(self, bundle: ModelBundle, objective: Objective, *, horizon: int) -> TrainingRun:
        """A run that descends on a loss with these settings."""
        return self.descend(bundle, of_loss(bundle, objective), horizon=horizon)


def of_loss(bundle: ModelBundle, objective: Objective) -> Gradient:
    """The gradient of a loss, under the bundle's precision."""

    def gradient(model: Any, step: int) -> StepLog:
        with bundle.autocast():
            loss, figures = objective(model, step)
        loss.backward()  # type: ignore[no-untyped-call]
        return StepLog(loss=loss.item(), figures=figures)

    return gradient


class TrainingRun:
    """An optimizer following a gradient. Only trained parameters enter the state, so an adapter's
    checkpoint is small. A service may replace `gradient` (`ServiceDefense.host`).

    The model trains in evaluation mode: what acts only in training mode, such as dropout, is
    configured beside the weights, and an attacker would switch it off.
    """

    def __init__(
        self,
        bundle: ModelBundle,
        gradient: Gradient,
        settings: Training,
        *,
        horizon: int,
        noisy: Iterable[torch.nn.Module] = (),
    ) -> None:
        self.bundle, self.gradient, self.settings = bundle, gradient, settings
        self.horizon, self.noisy = horizon, tuple(noisy)
        self.named = trained(bundle.model)
        self.optimizer = Optimizer(
            settings.optimizer,
            self.named,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            betas=settings.betas,
            momentum=settings.momentum,
        )
        self.taken = 0

    def model(self) -> ModelBundle:
        return self.bundle

    def step(self) -> StepLog:
        model, settings = self.bundle.model, self.settings
        model.eval()
        for module in self.noisy:
            module.train()
        log = self.gradient(model, self.taken)
        norm = torch.nn.utils.clip_grad_norm_(list(self.named.values()), settings.clip_norm)
        factor = schedule_factor(
            settings.schedule, self.taken, warmup=settings.warmup_steps, horizon=self.horizon
        )
        self.optimizer.step(settings.lr * factor)
        self.taken += 1
        return StepLog(loss=log.loss, grad_norm=norm.item(), figures=log.figures)

    def state_dict(self) -> dict[str, Any]:
        return {
            "taken": self.taken,
            "weights": {n: p.detach() for n, p in self.named.items()},
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.taken = state["taken"]
        with torch.no_grad():
            for name, value in state["weights"].items():
                self.named[name].copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])


class EditRun:
    """A weight edit applied once per step, without a gradient. edit(model, step) changes the model
    in place and returns figures to log; after `edits` of them nothing is left to do (None: never).
    """

    def __init__(
        self,
        bundle: ModelBundle,
        edit: Callable[[Any, int], Mapping[str, float]],
        *,
        edits: int | None = 1,
    ) -> None:
        self.bundle, self.edit, self.edits, self.taken = bundle, edit, edits, 0

    def model(self) -> ModelBundle:
        return self.bundle

    def step(self) -> StepLog | None:
        if self.edits is not None and self.taken >= self.edits:
            return None
        with torch.no_grad():
            figures = self.edit(self.bundle.model, self.taken)
        self.taken += 1
        return StepLog(figures=figures)

    def state_dict(self) -> dict[str, Any]:
        weights = {n: p.detach() for n, p in self.bundle.model.named_parameters()}
        return {"taken": self.taken, "weights": weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.taken = state["taken"]
        with torch.no_grad():
            for name, parameter in self.bundle.model.named_parameters():
                parameter.copy_(state["weights"][name])
