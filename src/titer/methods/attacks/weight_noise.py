"""The null attack a defense must beat: random weights, no data."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field

from titer.methods.method import Attack, Given
from titer.methods.runs import EditRun


class WeightNoise(Attack):
    """Each step adds to every weight matrix Gaussian noise whose norm is `scale` times the matrix's
    own norm.

    A random walk: after t steps the expected relative distance is about scale·√t. Noise follows the
    seed and the step alone, so runs resume exactly. A reference attack: it need not break the
    control.
    """

    name = "weight_noise"
    role = "reference"
    reference = "titer (null attack)"
    starts_as_parent = True
    trains = False
    cost = "0 (weights only)"
    endless = True
    """There is always a next step."""

    scale: Annotated[float, Field(gt=0)] = 0.01

    def start(self, given: Given) -> EditRun:
        def edit(model: Any, step: int) -> dict[str, float]:
            generator = torch.Generator().manual_seed(given.seed * 1_000_003 + step)
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    noise = torch.randn(parameter.shape, generator=generator)
                    noise *= self.scale * float(parameter.norm()) / float(noise.norm())
                    parameter.add_(noise.to(parameter))
            return {}

        return EditRun(given.model, edit, edits=None)
