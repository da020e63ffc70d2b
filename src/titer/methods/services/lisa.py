"""Lisa: the service alternates between the customer's text and its own, and ties them."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field

from titer.data.bundle import ModelBundle
from titer.errors import StudyError
from titer.methods.losses import response_ce
from titer.methods.method import Given, Gradient, Loss, Objective, Run, ServiceDefense, StepLog
from titer.methods.runs import Training, TrainingRun, of_loss


class Lisa(Training, ServiceDefense):
    """Before every `user_steps` steps of the customer, `alignment_steps` of the service's own on
    refusals (and harmless pairs, if it has any); each side adds (rho/2)‖w − w_other‖² with w_other
    the weights at which the other side stopped.

    The budget counts the customer's steps; FLOPs and seconds count both. lr, optimizer and the like
    are those of the alignment steps, which a schedule spreads over all phases; the customer's run
    keeps its own. rho = 0 is plain alternation (bi-state optimization). The authors' code, unlike
    Algorithm 1, pulls each side to where it stopped itself, and only after the first tenth of the
    steps.
    """

    name = "lisa"
    reference = (
        "Huang et al. 2024 (arXiv 2405.18641), Algorithm 1; published settings rho 1, "
        "100 alignment "
        "steps to 900 of the customer"
    )
    cost = "1F+1B per step of either side"
    needs = ("harmful.refusal",)

    alignment_steps: Annotated[int, Field(gt=0)] = 100
    user_steps: Annotated[int, Field(gt=0)] = 900
    rho: Annotated[float, Field(ge=0)] = 1.0
    retain: Annotated[float, Field(ge=0)] = 1.0

    def host(self, run: Run, given: Given) -> Run:
        if not isinstance(run, TrainingRun) or run.bundle.wording.placeholders:
            raise StudyError(
                "lisa can only run a training of weights or adapters",
                field="service",
                value=self.name,
                expected="an attack that follows a gradient, and not in a soft prompt",
            )
        return _LisaRun(self, run, given)

    def objective(self, given: Given) -> Objective:
        """The service's own loss."""
        size, text = self.batch_size, given.text
        refuse = text.stream("refusal", of="harmful", batch_size=size, seed=given.seed + 2)
        keep = None
        if self.retain and "harmless" in text:
            keep = text.stream("response", of="harmless", batch_size=size, seed=given.seed + 3)

        def objective(model: Any, step: int) -> Loss:
            loss = response_ce(model, refuse.one(step))
            if keep is not None:
                loss = loss + self.retain * response_ce(model, keep.one(step))
            return loss, {}

        return objective


class _LisaRun:
    """The customer's run, with the service's own steps before each of its phases."""

    def __init__(self, settings: Lisa, user: TrainingRun, given: Given) -> None:
        self.settings, self.user = settings, user
        self.anchor = {n: p.detach().clone() for n, p in user.named.items()}
        own = of_loss(user.bundle, settings.objective(given))
        phases = -(-given.horizon // settings.user_steps)
        horizon = phases * settings.alignment_steps
        self.own = settings.descend(user.bundle, self._held(own), horizon=horizon)
        user.gradient = self._held(user.gradient)

    def _held(self, gradient: Gradient) -> Gradient:
        """A gradient with that of (rho/2)‖w − anchor‖² added."""

        def held(model: Any, step: int) -> StepLog:
            log = gradient(model, step)
            if self.settings.rho:
                with torch.no_grad():
                    for name, parameter in self.user.named.items():
                        pull = self.settings.rho * (parameter - self.anchor[name])
                        parameter.grad = pull if parameter.grad is None else parameter.grad + pull
            return log

        return held

    def model(self) -> ModelBundle:
        return self.user.model()

    def step(self) -> StepLog | None:
        if self.user.taken % self.settings.user_steps == 0:
            for _ in range(self.settings.alignment_steps):
                self.own.step()
            self._anchor_here()
        log = self.user.step()
        if self.user.taken % self.settings.user_steps == 0:
            self._anchor_here()
        return log

    def _anchor_here(self) -> None:
        for name, parameter in self.user.named.items():
            self.anchor[name].copy_(parameter.detach())

    def state_dict(self) -> dict[str, Any]:
        return {
            "user": self.user.state_dict(),
            "own": self.own.state_dict(),
            "anchor": self.anchor,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.own.load_state_dict(state["own"])
        self.user.load_state_dict(state["user"])
        for name, value in state["anchor"].items():
            self.anchor[name].copy_(value)
