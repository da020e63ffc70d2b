"""Harmful supervised fine-tuning of all parameters."""

from __future__ import annotations

from collections.abc import Collection

from titer.methods.fine_tuning import FineTuning
from titer.methods.method import Attack, Given
from titer.methods.runs import TrainingRun
from titer.study.facts import MethodFacts


class FullSFT(FineTuning, Attack):
    """Descends on the response-masked cross-entropy of every pair the attacker holds, training the
    weights themselves.

    Pairs: the harmful ones, and harmless ones too if given (then it is a poisoned or, with harmless
    ones only, a benign fine-tuning).
    """

    name = "full_sft"
    reference = (
        "Qi et al. 2023 (arXiv 2310.03693); protocol after Rosati et al. 2024 (RepNoise, "
        "arXiv 2405.14577)"
    )
    needs = (".response",)

    def start(self, given: Given) -> TrainingRun:
        batches = given.text.stream(
            "response",
            of=("harmful", "harmless"),
            batch_size=self.batch_size,
            seed=given.seed,
        )
        bundle = self.open(given.model, given.seed)
        return self.imitate(bundle, batches, horizon=given.horizon)

    def facts(self, slots: Collection[str] = ()) -> MethodFacts:
        as_parent = {"starts_as_parent": not self.reinitialised}
        return super().facts(slots).model_copy(update=as_parent)
