"""My defense: what it does to the model before it is released."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field

from titer.methods.losses import response_ce
from titer.methods.method import Defense, Given, Loss
from titer.methods.runs import Training, TrainingRun


class MyDefense(Training, Defense):
    """L = CE(refusal) + retain · CE(harmless response) + alpha · max(0, floor − CE(harmful
    response)).

    Cross-entropy is in nats per response token. The last term raises the loss of harmful answers
    until it reaches `floor`, and is 0 from there on. batch_size: rows of each kind per step.
    """

    # `name` is what studies and commands say. Raise `version` whenever the numbers would change.
    name = "my_defense"
    version = 1
    reference = "unpublished"  # or the paper, with the equation and its settings
    cost = "3F+3B"  # forward and backward passes of a step, for people; the engine counts FLOPs
    # Text it cannot do without. A study that lacks it is refused before any work starts. Further
    # models would be named in `wants` and read with `given.models.frozen(NAME)`.
    needs = ("harmful.refusal", "harmful.response")

    # Settings are fields with a type, a range and a default. `Training` brings lr, batch_size,
    # schedule, optimizer and others; `titer show` lists them all.
    alpha: Annotated[float, Field(ge=0)] = 1.0
    floor: Annotated[float, Field(gt=0)] = 5.0
    retain: Annotated[float, Field(ge=0)] = 1.0

    def start(self, given: Given) -> TrainingRun:
        # A stream gives one batch per step: the same seed, the same batches, also after an
        # interruption.
        size, seed, text = self.batch_size, given.seed, given.text
        refusals = text.stream("refusal", of="harmful", batch_size=size, seed=seed)
        harmful = text.stream("response", of="harmful", batch_size=size, seed=seed + 1)
        harmless = None
        if self.retain and "harmless" in text:  # optional text
            harmless = text.stream("response", of="harmless", batch_size=size, seed=seed + 2)

        def objective(model: Any, step: int) -> Loss:
            """The loss of one step, and figures that are logged with it."""
            refusal = response_ce(model, refusals.one(step))
            harm = response_ce(model, harmful.one(step))
            loss = refusal + self.alpha * torch.relu(self.floor - harm)
            figures = {"ce_refusal": refusal.item(), "ce_harmful": harm.item()}
            if harmless is not None:
                kept = response_ce(model, harmless.one(step))
                loss = loss + self.retain * kept
                figures["ce_harmless"] = kept.item()
            return loss, figures

        # No parameter requires a gradient yet: choose here what is trained.
        given.model.model.requires_grad_(True)
        return self.minimise(given.model, objective, horizon=given.horizon)


if __name__ == "__main__":  # python my_defense.py: the checks every defense must pass, offline
    from titer.testing.conformance import check_method
    from titer.testing.trial import tiny_trial

    check_method(MyDefense(lr=1e-3, batch_size=8), tiny_trial())
    print("my_defense passes the conformance checks")
