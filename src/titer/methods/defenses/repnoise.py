"""Representation noising: push what the model computes on harmful text towards noise."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field

from titer.data.encoding import IGNORED
from titer.methods.anatomy import captured, mlps
from titer.methods.forward import lens_ce, outputs
from titer.methods.losses import differing_positions, mean_over, response_ce, token_ce
from titer.methods.method import Defense, Given, Loss
from titer.methods.runs import Training, TrainingRun


class RepNoise(Training, Defense):
    """L = CE_r + beta · N − alpha · log(1 + (CE_h + Σ_l CE_lens,l) / (L + 1)) + retain · CE_b.

    CE_r, CE_h: mean cross-entropy of refusals and of harmful answers to the same prompts, at the
    positions where the two differ. CE_lens,l: the same of the harmful answers when final norm and
    unembedding are applied to hidden state l (L + 1 of them for L blocks; the last gives CE_h once
    more). N: mean over blocks of the maximum mean discrepancy between the MLP's outputs on harmful
    text and Gaussian noise, both 0 outside the counted positions, each sequence flattened to one
    vector (`mmd`). CE_b: of harmless pairs, if retain > 0 (ours; the paper has none).

    Not taken over from the authors' code: it norms the last hidden state twice, sets logits to 0
    where the token that predicts does not differ itself, and ignores token id 0.
    """

    name = "repnoise"
    reference = (
        "Rosati et al. 2024 (arXiv 2405.14577), eqs. 3 to 5, and the authors' code; published "
        "settings alpha 1, beta 0.001, lr 2e-5, batch 8"
    )
    cost = "2F+2B, and L + 1 vocabulary projections"
    needs = ("harmful.refusal", "harmful.response")

    lr: Annotated[float, Field(gt=0)] = 2e-5
    batch_size: Annotated[int, Field(gt=1)] = 8
    alpha: Annotated[float, Field(ge=0)] = 1.0
    beta: Annotated[float, Field(ge=0)] = 0.001
    retain: Annotated[float, Field(ge=0)] = 0.0

    def start(self, given: Given) -> TrainingRun:
        size, seed = self.batch_size, given.seed
        pairs = given.text.stream("refusal", "response", of="harmful", batch_size=size, seed=seed)
        keep = None
        if self.retain and "harmless" in given.text:
            keep = given.text.stream("response", of="harmless", batch_size=size, seed=seed + 1)
        model = given.model.model.requires_grad_(True)
        parts = mlps(model)

        def objective(model: Any, step: int) -> Loss:
            refusals, harms = pairs(step)
            kept_r_BT, kept_h_BT = differing_positions(
                refusals.labels_BT, harms.labels_BT, refusals.first_B, harms.first_B
            )
            ce_BS, _ = token_ce(outputs(model, refusals).logits_BTV, refusals.labels_BT)
            refusal = mean_over(ce_BS, kept_r_BT[:, 1:])
            with captured(parts) as read:
                out = outputs(model, harms, hidden=True)
            labels_BT = harms.labels_BT.masked_fill(~kept_h_BT, IGNORED)
            each = lens_ce(model, out, labels_BT)  # L + 1 of them; the last is CE_h itself
            harm = (each[-1] + each.sum()) / len(each)
            noise = noise_loss(read, kept_h_BT)
            loss = refusal + self.beta * noise - self.alpha * torch.log1p(harm)
            figures = {
                "ce_refusal": refusal.item(),
                "ce_harmful": each[-1].item(),
                "ce_lens": each.mean().item(),
                "noise": noise.item(),
            }
            if keep is not None:
                harmless = response_ce(model, keep.one(step))
                loss = loss + self.retain * harmless
                figures["ce_harmless"] = harmless.item()
            return loss, figures

        return self.minimise(given.model, objective, horizon=given.horizon)


def noise_loss(outputs_LBTD: list[torch.Tensor], kept_BT: torch.Tensor) -> torch.Tensor:
    """Mean over blocks of the discrepancy between masked outputs and masked Gaussian noise."""
    losses = []
    for output in outputs_LBTD:
        value_BTD = output.float().reshape(*kept_BT.shape, -1) * kept_BT[..., None]
        noise_BTD = torch.randn_like(value_BTD) * kept_BT[..., None]
        losses.append(mmd(value_BTD.flatten(1), noise_BTD.flatten(1)))
    return torch.stack(losses).mean()


def mmd(x_BF: torch.Tensor, y_BF: torch.Tensor) -> torch.Tensor:
    """Biased squared maximum mean discrepancy of two samples of B vectors each.

    Kernel: Σ exp(−‖a − b‖² / (2^k · m)) for k = −2 … 2, m the mean squared distance over all pairs
    of different vectors of both samples together (no gradient flows through m). The diagonal is
    kept in the means.
    """
    both_NF = torch.cat([x_BF, y_BF])
    count = both_NF.shape[0]
    # Not cdist: its square root has no gradient where two vectors are equal. Mixed precision would
    # round the products to the size of the distances.
    with torch.autocast(both_NF.device.type, enabled=False):
        products_NN = both_NF @ both_NF.T
    squares_N = products_NN.diagonal()
    squared_NN = (squares_N[:, None] + squares_N[None] - 2 * products_NN).clamp(min=0)
    mean = squared_NN.detach().sum() / (count * (count - 1))
    scale = mean.clamp(min=1e-12)
    kernel_NN = torch.stack([torch.exp(-squared_NN / (2.0**k * scale)) for k in range(-2, 3)]).sum(
        0
    )
    b = x_BF.shape[0]
    inside, across = kernel_NN[:b, :b].mean() + kernel_NN[b:, b:].mean(), kernel_NN[:b, b:].mean()
    return inside - 2 * across
