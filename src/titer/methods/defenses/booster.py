"""Booster: weaken what one harmful step would gain."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field

from titer.data.bundle import ModelBundle
from titer.methods.losses import response_ce
from titer.methods.method import Defense, Given, Gradient, Loss, Objective, StepLog
from titer.methods.optimizers import trained
from titer.methods.runs import Training, TrainingRun, of_loss


class Booster(Training, Defense):
    """Follows g = ∇f(w) + lam · (∇h(w) − ∇h(w − alpha · ∇h(w)/‖∇h(w)‖)).

    f: cross-entropy of refusals (plus retain · cross-entropy of harmless pairs, ours; the paper has
    none). h: cross-entropy of harmful answers. The bracket is the gradient of the loss that one
    normalised harmful step would save, the second derivative left out; it is not the gradient of a
    loss. lam = 0 or alpha = 0 is plain training on f.
    """

    name = "booster"
    reference = (
        "Huang et al. 2024 (arXiv 2409.01586), Algorithm 1; published settings lam 5, alpha 0.1, "
        "lr 5e-4, weight decay 0.1, batch 10"
    )
    cost = "3F+3B, and a copy of the weights and of one gradient"
    needs = ("harmful.refusal", "harmful.response")

    lr: Annotated[float, Field(gt=0)] = 5e-4
    batch_size: Annotated[int, Field(gt=0)] = 10
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    lam: Annotated[float, Field(ge=0)] = 5.0
    alpha: Annotated[float, Field(ge=0)] = 0.1
    retain: Annotated[float, Field(ge=0)] = 0.0

    def start(self, given: Given) -> TrainingRun:
        size, seed, text = self.batch_size, given.seed, given.text
        refuse = text.stream("refusal", of="harmful", batch_size=size, seed=seed)
        harm = text.stream("response", of="harmful", batch_size=size, seed=seed + 1)
        keep = None
        if self.retain and "harmless" in text:
            keep = text.stream("response", of="harmless", batch_size=size, seed=seed + 2)

        def wanted(model: Any, step: int) -> Loss:
            loss = response_ce(model, refuse.one(step))
            figures = {"ce_refusal": loss.item()}
            if keep is not None:
                harmless = response_ce(model, keep.one(step))
                loss = loss + self.retain * harmless
                figures["ce_harmless"] = harmless.item()
            return loss, figures

        def harmful(model: Any, step: int) -> Loss:
            return response_ce(model, harm.one(step)), {}

        given.model.model.requires_grad_(True)
        return self.descend(
            given.model, self.gradient(given.model, wanted, harmful), horizon=given.horizon
        )

    def gradient(self, bundle: ModelBundle, wanted: Objective, harmful: Objective) -> Gradient:
        """g of the class's docstring for losses f = `wanted` and h = `harmful`."""
        of_wanted, of_harmful = of_loss(bundle, wanted), of_loss(bundle, harmful)

        def gradient(model: Any, step: int) -> StepLog:
            if not (self.lam and self.alpha):
                return of_wanted(model, step)
            parameters = list(trained(model).values())
            before = of_harmful(model, step)
            here = _taken(parameters)
            norm = torch.linalg.vector_norm(
                torch.stack([torch.linalg.vector_norm(g) for g in here])
            )
            kept = [p.detach().clone() for p in parameters]
            with torch.no_grad():
                for parameter, g in zip(parameters, here, strict=True):
                    parameter.sub_(g, alpha=self.alpha / max(float(norm), 1e-12))
            after = of_harmful(model, step)
            there = _taken(parameters)
            with torch.no_grad():
                for parameter, value in zip(parameters, kept, strict=True):
                    parameter.copy_(value)
            log = of_wanted(model, step)
            for parameter, a, b in zip(parameters, here, there, strict=True):
                change = self.lam * (a - b)
                parameter.grad = change if parameter.grad is None else parameter.grad + change
            figures = {"ce_harmful": before.loss or 0.0, "ce_harmful_after": after.loss or 0.0}
            return StepLog(loss=log.loss, figures={**log.figures, **figures})

        return gradient


def _taken(parameters: list[torch.nn.Parameter]) -> list[torch.Tensor]:
    """Move the gradients out of the parameters; 0 where a parameter has none."""
    found = []
    for parameter in parameters:
        gradient = parameter.grad
        found.append(torch.zeros_like(parameter) if gradient is None else gradient)
        parameter.grad = None
    return found
