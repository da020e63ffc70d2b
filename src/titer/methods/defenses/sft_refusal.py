"""The mandatory baseline: more of the usual safety training."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from titer.data.subject import Subject
from titer.methods.losses import response_ce
from titer.methods.method import Defense, MethodData
from titer.methods.runs import Batches, SupervisedRun, Training


class SFTRefusal(Training, Defense):
    """L = CE(refusal | harmful prompt) + retain · CE(response | harmless prompt), response-masked, AdvBench-style.

    Also the usual alignment stage. batch_size: rows of each kind per step.
    """

    name = "sft_refusal"
    reference = "baseline of Rosati et al. 2024 (arXiv 2402.16382)"
    cost = "1F+1B (two batches)"
    needs = ("harmful.refusal",)

    lr: Annotated[float, Field(gt=0)] = 2e-5
    batch_size: Annotated[int, Field(gt=0)] = 4
    retain: Annotated[float, Field(ge=0)] = 1.0

    def start(self, subject: Subject, data: MethodData, *, seed: int, horizon: int) -> SupervisedRun:
        refuse = Batches.of(subject, data.harmful, "refusal", batch_size=self.batch_size, seed=seed)
        keep = None
        if self.retain and data.harmless:
            keep = Batches.of(subject, data.harmless, "response", batch_size=self.batch_size, seed=seed + 1)

        def objective(model, step: int):
            refusal = response_ce(model, refuse(step))
            if keep is None:
                return refusal, {"ce_refusal": refusal.item()}
            harmless = response_ce(model, keep(step))
            return refusal + self.retain * harmless, {
                "ce_refusal": refusal.item(), "ce_harmless": harmless.item(),
            }  # fmt: skip

        return self.supervised(subject, subject.model.requires_grad_(True), objective, horizon=horizon)
