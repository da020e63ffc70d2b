"""LoX: extrapolate what alignment did to the weights. No training."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field

from titer.errors import StudyError
from titer.methods.anatomy import linear_weights
from titer.methods.method import Defense, Given
from titer.methods.runs import EditRun


class LoX(Defense):
    """W' = W + alpha · SVD_k(W − W_base) for the weight of every linear map in the blocks.

    SVD_k: best approximation of rank k. W_base: the model before safety alignment, named `base`
    under the study's `models`. alpha = 0 changes nothing. One step does everything; the singular
    value decompositions are seen in seconds, not in FLOPs.
    """

    name = "lox"
    reference = "Perin et al. 2025 (arXiv 2506.15606); published settings k 6, alpha 1.25"
    cost = "one singular value decomposition per matrix"
    stage = "weights"
    trains = False
    wants = ("base",)

    k: Annotated[int, Field(gt=0)] = 6
    alpha: Annotated[float, Field(ge=0)] = 1.25

    def start(self, given: Given) -> EditRun:
        ours, base = given.model.model, linear_weights(given.models.frozen("base").model)
        shapes = {n: w.shape for n, w in linear_weights(ours).items()}
        if {n: w.shape for n, w in base.items()} != shapes:
            raise StudyError(
                "the base model has other weights than the model to be defended",
                field="models.base",
                value=f"{len(base)} matrices",
                expected="the same architecture, before safety alignment",
            )

        def edit(model: Any, step: int) -> dict[str, float]:
            moved = 0.0
            for name, weight in linear_weights(model).items():
                change = extrapolated(weight - base[name], self.k) * self.alpha
                weight.add_(change)
                moved += float(change.square().sum())
            return {"moved": moved**0.5}

        return EditRun(given.model, edit)


def extrapolated(difference: torch.Tensor, k: int) -> torch.Tensor:
    """Best approximation of rank k (Frobenius norm) of a matrix."""
    u, s, v = torch.linalg.svd(difference.float(), full_matrices=False)
    best: torch.Tensor = (u[:, :k] * s[:k]) @ v[:k]
    return best.to(difference)
