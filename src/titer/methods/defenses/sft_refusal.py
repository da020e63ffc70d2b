"""The mandatory baseline: more of the usual safety training."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from titer.methods.losses import response_ce
from titer.methods.method import Defense, Given, Loss
from titer.methods.runs import Training, TrainingRun


class SFTRefusal(Training, Defense):
    """L = CE(refusal | harmful prompt) + retain · CE(response | harmless prompt), response-masked,
    AdvBench-style.

    Also the usual alignment stage. batch_size: rows of each kind per step.
    """

    name = "sft_refusal"
    reference = "baseline of Rosati et al. 2024 (arXiv 2402.16382)"
    cost = "1F+1B (two batches)"
    needs = ("harmful.refusal",)

    lr: Annotated[float, Field(gt=0)] = 2e-5
    batch_size: Annotated[int, Field(gt=0)] = 4
    retain: Annotated[float, Field(ge=0)] = 1.0

    def start(self, given: Given) -> TrainingRun:
        size, seed = self.batch_size, given.seed
        refuse = given.text.stream("refusal", of="harmful", batch_size=size, seed=seed)
        keep = None
        if self.retain and "harmless" in given.text:
            keep = given.text.stream("response", of="harmless", batch_size=size, seed=seed + 1)

        def objective(model: Any, step: int) -> Loss:
            refusal = response_ce(model, refuse.one(step))
            if keep is None:
                return refusal, {"ce_refusal": refusal.item()}
            harmless = response_ce(model, keep.one(step))
            figures = {"ce_refusal": refusal.item(), "ce_harmless": harmless.item()}
            return refusal + self.retain * harmless, figures

        given.model.model.requires_grad_(True)
        return self.minimise(given.model, objective, horizon=given.horizon)
