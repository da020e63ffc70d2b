"""My attack: what an attacker who holds the weights does to the model."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from titer.methods.losses import response_ce
from titer.methods.method import Attack, Given, Loss
from titer.methods.runs import Training, TrainingRun


class MyAttack(Training, Attack):
    """L = CE(harmful response) + keep · CE(harmless response), training all weights.

    Cross-entropy is in nats per response token. Harmless text, if the study gives any, keeps the
    model useful. batch_size: rows of each kind per step.
    """

    # `name` is what studies and commands say. Raise `version` whenever the numbers would change.
    name = "my_attack"
    version = 1
    reference = "unpublished"  # or the paper, with the equation and its settings
    cost = "2F+2B"  # forward and backward passes of a step, for people; the engine counts FLOPs
    # Text it cannot do without. A study that lacks it is refused before any work starts.
    needs = ("harmful.response",)
    # Before the first step the model answers exactly as the one it was given (a LoRA adapter that
    # starts at 0 does too; drawing layers anew does not). A conformance check tests it.
    starts_as_parent = True
    # `role = "reference"` exempts an attack from having to break the undefended model; an attack
    # that edits weights without a gradient says `trains = False` and returns an `EditRun`.

    # Settings are fields with a type, a range and a default. `Training` brings lr, batch_size,
    # schedule, optimizer and others; `titer show` lists them all.
    keep: Annotated[float, Field(ge=0)] = 1.0

    def start(self, given: Given) -> TrainingRun:
        # A stream gives one batch per step: the same seed, the same batches, also after an
        # interruption.
        size, seed, text = self.batch_size, given.seed, given.text
        harmful = text.stream("response", of="harmful", batch_size=size, seed=seed)
        harmless = None
        if self.keep and "harmless" in text:  # optional text
            harmless = text.stream("response", of="harmless", batch_size=size, seed=seed + 1)

        def objective(model: Any, step: int) -> Loss:
            """The loss of one step, and figures that are logged with it."""
            loss = response_ce(model, harmful.one(step))
            figures = {"ce_harmful": loss.item()}
            if harmless is not None:
                kept = response_ce(model, harmless.one(step))
                loss = loss + self.keep * kept
                figures["ce_harmless"] = kept.item()
            return loss, figures

        # No parameter requires a gradient yet: choose here what is trained.
        given.model.model.requires_grad_(True)
        return self.minimise(given.model, objective, horizon=given.horizon)


if __name__ == "__main__":  # python my_attack.py: the checks every attack must pass, offline
    from titer.testing.conformance import check_attack
    from titer.testing.trial import tiny_trial

    check_attack(MyAttack(lr=1e-3, batch_size=16), tiny_trial())
    print("my_attack passes the conformance checks")
