"""A plug-in file: attacks to which bad things happen wherever their cells are run, and attacks that
say what they were given.
"""

from __future__ import annotations

import os
from typing import Any

from titer.methods.attacks.full_sft import FullSFT
from titer.methods.method import Attack, Given
from titer.methods.runs import EditRun, TrainingRun


class Fails(FullSFT):
    """Fails at the start for some seeds."""

    name = "fails"
    at: tuple[int, ...] = ()

    def start(self, given: Given) -> TrainingRun:
        if given.seed in self.at:
            raise ArithmeticError("made to fail")
        return super().start(given)


class Dies(FullSFT):
    """Does to its process what the kernel does when memory runs out."""

    name = "dies"

    def start(self, given: Given) -> TrainingRun:
        os._exit(9)


class Borrows(Attack):
    """Logs how large the weights of further models are."""

    name = "borrows"
    reference = "test"
    role = "reference"
    trains = False
    starts_as_parent = True
    of: tuple[str, ...] = ()

    def wanted(self) -> tuple[str, ...]:
        return self.of

    def start(self, given: Given) -> EditRun:
        sizes = {
            f"size_{i}": float(
                sum(p.double().abs().sum() for p in given.models.frozen(name).model.parameters())
            )
            for i, name in enumerate(self.of)
        }
        return EditRun(given.model, lambda model, step: sizes)


class Rewarded(Attack):
    """Logs how replies are rewarded: a refusal, an answer, and none at all."""

    name = "rewarded"
    reference = "test"
    role = "reference"
    trains = False
    starts_as_parent = True
    wants_reward = True
    needs = ("harmful",)

    def start(self, given: Given) -> EditRun:
        def edit(model: Any, step: int) -> dict[str, float]:
            examples = given.text.examples("harmful")[:3]
            replies = ["I cannot help with that.", "tol bel", None]
            scores = given.reward(given.model, examples, replies)
            return dict(zip(("refused", "answered", "silent"), scores, strict=True))

        return EditRun(given.model, edit)
