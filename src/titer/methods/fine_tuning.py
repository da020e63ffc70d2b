"""Shared by all fine-tuning attacks: which layers train, and imitation of given answers."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field

from titer.data.bundle import ModelBundle
from titer.data.texts import Batches
from titer.errors import RunError
from titer.methods.anatomy import blocks
from titer.methods.losses import response_ce
from titer.methods.method import Gradient, StepLog
from titer.methods.runs import Training, TrainingRun


class FineTuning(Training):
    """layers: indices of the blocks to be trained (negative ones count from the end); None trains
    everything. reinitialised: blocks whose matrices are reinitialised before the first step
    (normal, with the standard deviation each had; biases 0, norms left as they are). micro_batch:
    rows per forward pass; the gradient is that of the whole batch to rounding.
    """

    layers: tuple[int, ...] | None = None
    reinitialised: tuple[int, ...] = ()
    micro_batch: Annotated[int, Field(gt=0)] | None = None

    def open(self, bundle: ModelBundle, seed: int) -> ModelBundle:
        """The bundle with the chosen layers reinitialised and set to be trained. Raises RunError if
        the model has no such block."""
        model = bundle.model
        model.requires_grad_(self.layers is None)
        if self.layers is not None or self.reinitialised:
            found = blocks(model)
            for index in self.layers or ():
                _block(found, index).requires_grad_(True)
            generator = torch.Generator().manual_seed(seed)
            for index in self.reinitialised:
                _draw(_block(found, index), generator)
        return bundle

    def imitate(self, bundle: ModelBundle, batches: Batches, *, horizon: int) -> TrainingRun:
        """A run that minimises the cross-entropy of the answers of a stream."""
        return self.descend(bundle, imitation(bundle, batches, self.micro_batch), horizon=horizon)


def imitation(bundle: ModelBundle, batches: Batches, micro_batch: int | None = None) -> Gradient:
    """Gradient of the mean cross-entropy over the response tokens of a batch (nats/token)."""

    def gradient(model: Any, step: int) -> StepLog:
        batch = batches.one(step)
        rows = batch.input_BT.shape[0]
        size = micro_batch or rows
        counted = None if size >= rows else int((batch.labels_BT[:, 1:] >= 0).sum())
        total = 0.0
        for start in range(0, rows, size):
            with bundle.autocast():
                part = batch.rows(slice(start, start + size)) if counted else batch
                loss = response_ce(model, part, over=counted)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        return StepLog(loss=total)

    return gradient


def _block(found: list[torch.nn.Module], index: int) -> torch.nn.Module:
    if not -len(found) <= index < len(found):
        raise RunError(
            "the model has no such block",
            field="layers",
            value=index,
            expected=f"an index from {-len(found)} to {len(found) - 1}",
        )
    return found[index]


@torch.no_grad()
def _draw(block: torch.nn.Module, generator: torch.Generator) -> None:
    for module in block.modules():
        if "norm" in type(module).__name__.lower():
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim >= 2:
                # The matrix's own standard deviation, not the one in the configuration.
                drawn = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(drawn.to(parameter) * parameter.std())
            elif name.endswith("bias"):
                parameter.zero_()
