"""The paper's own demonstration: ascend on harmful answers while descending on refusals."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from titer.data.encoding import TokenBatch
from titer.methods.losses import differing_positions, mean_over, response_ce, token_ce
from titer.methods.method import Defense, Given, Loss
from titer.methods.runs import Training, TrainingRun


class AdversarialLoss(Training, Defense):
    """L = CE_m(y_r) − alpha · A(CE_m(y_h)) + retain · CE(harmless).

    m keeps only the positions at which the paired refusal and harmful answer differ; a batch's
    refusals and harmful answers belong to the same prompts. CE_m is the mean over kept positions in
    nats/token. The form A of the ascent: `linear` A(c) = c, the paper's, unbounded below; `log`
    A(c) = log(1 + c), damped but unbounded (RepNoise's baseline); `capped` A = mean over positions
    of min(ce, cap), bounded: a token less likely than e^−cap earns nothing more, so the model is
    not rewarded for destroying itself (ours). retain > 0 adds harmless pairs (ours; the paper has
    none). The paper's authors call the result superficial.
    """

    name = "adversarial_loss"
    reference = (
        "Rosati et al. 2024 (arXiv 2402.16382), demonstration; published settings alpha 0.1, "
        "lr 1e-5"
    )
    cost = "2F+2B (three batches)"
    needs = ("harmful.refusal", "harmful.response")

    lr: Annotated[float, Field(gt=0)] = 1e-5
    batch_size: Annotated[int, Field(gt=0)] = 4
    alpha: Annotated[float, Field(ge=0)] = 0.1
    form: Literal["linear", "log", "capped"] = "linear"
    cap: Annotated[float, Field(gt=0)] = 5.0
    retain: Annotated[float, Field(ge=0)] = 0.0

    def ascent(self, ce_BS: torch.Tensor, kept_BS: torch.Tensor) -> torch.Tensor:
        """A(CE_m) from token cross-entropies; scalar."""
        if self.form == "capped":
            return mean_over(ce_BS.clamp(max=self.cap), kept_BS)
        mean = mean_over(ce_BS, kept_BS)
        return torch.log1p(mean) if self.form == "log" else mean

    def start(self, given: Given) -> TrainingRun:
        size, seed = self.batch_size, given.seed
        pairs = given.text.stream("refusal", "response", of="harmful", batch_size=size, seed=seed)
        keep = None
        if self.retain and "harmless" in given.text:
            keep = given.text.stream("response", of="harmless", batch_size=size, seed=seed + 1)

        def objective(model: Any, step: int) -> Loss:
            refusals, harms = pairs(step)
            keep_r_BT, keep_h_BT = differing_positions(
                refusals.labels_BT, harms.labels_BT, refusals.first_B, harms.first_B
            )
            ce_r_BS, _ = token_ce(_logits(model, refusals), refusals.labels_BT)
            ce_h_BS, _ = token_ce(_logits(model, harms), harms.labels_BT)
            refusal = mean_over(ce_r_BS, keep_r_BT[:, 1:])
            harm = mean_over(ce_h_BS, keep_h_BT[:, 1:])
            loss = refusal - self.alpha * self.ascent(ce_h_BS, keep_h_BT[:, 1:])
            figures = {"ce_refusal": refusal.item(), "ce_harmful": harm.item()}
            if keep is not None:
                harmless = response_ce(model, keep.one(step))
                loss = loss + self.retain * harmless
                figures["ce_harmless"] = harmless.item()
            return loss, figures

        given.model.model.requires_grad_(True)
        return self.minimise(given.model, objective, horizon=given.horizon)


def _logits(model: Any, batch: TokenBatch) -> torch.Tensor:
    output = model(input_ids=batch.input_BT, attention_mask=batch.mask_BT, use_cache=False)
    logits_BTV: torch.Tensor = output.logits
    return logits_BTV
