"""Negative preference optimization: forget harmful answers, measured against the model before."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field
from torch.nn import functional

from titer.methods.forward import answer_logprob_B
from titer.methods.losses import response_ce
from titer.methods.method import Defense, Given, Loss
from titer.methods.runs import Training, TrainingRun


class NPO(Training, Defense):
    """L = (2/β) · mean softplus(β · (log π(y_h|x) − log π_ref(y_h|x))) + retain · CE(harmless).

    log π sums over the response tokens of a harmful answer; π_ref is the model before the defense,
    frozen. β → 0 gives gradient ascent on log π up to a constant: −∇L → −∇ log π. The larger β, the
    sooner an answer that has become unlikely stops counting. retain: weight of the mean
    cross-entropy on harmless pairs, if the study gives any.
    """

    name = "npo"
    reference = (
        "Zhang et al. 2024 (arXiv 2404.05868), eq. 3 with a retain term; settings as in "
        "open-unlearning: beta 0.1, lr 1e-5"
    )
    cost = "2F+2B, and 1F of the reference"
    needs = ("harmful.response",)
    wants = ("parent",)

    lr: Annotated[float, Field(gt=0)] = 1e-5
    batch_size: Annotated[int, Field(gt=0)] = 4
    beta: Annotated[float, Field(gt=0)] = 0.1
    retain: Annotated[float, Field(ge=0)] = 1.0

    def start(self, given: Given) -> TrainingRun:
        size, seed = self.batch_size, given.seed
        forget = given.text.stream("response", of="harmful", batch_size=size, seed=seed)
        keep = None
        if self.retain and "harmless" in given.text:
            keep = given.text.stream("response", of="harmless", batch_size=size, seed=seed + 1)
        reference = given.models.frozen("parent").model

        def objective(model: Any, step: int) -> Loss:
            batch = forget.one(step)
            with torch.no_grad():
                before_B = answer_logprob_B(reference, batch)
            loss = npo_loss(answer_logprob_B(model, batch), before_B, self.beta)
            figures = {"npo": loss.item()}
            if keep is not None:
                harmless = response_ce(model, keep.one(step))
                loss = loss + self.retain * harmless
                figures["ce_harmless"] = harmless.item()
            return loss, figures

        given.model.model.requires_grad_(True)
        return self.minimise(given.model, objective, horizon=given.horizon)


def npo_loss(now_B: torch.Tensor, before_B: torch.Tensor, beta: float) -> torch.Tensor:
    """(2/β) · mean softplus(β · (now − before)) over answers' log-probabilities [B]; scalar."""
    return 2.0 / beta * functional.softplus(beta * (now_B - before_B)).mean()
