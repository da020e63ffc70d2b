"""Harmful supervised fine-tuning of all parameters."""

from __future__ import annotations

from titer.data.subject import Subject
from titer.methods.losses import response_ce
from titer.methods.method import Attack, MethodData
from titer.methods.runs import Batches, SupervisedRun, Training


class FullSFT(Training, Attack):
    """AdamW on the response-masked cross-entropy of every pair the attacker holds, all parameters trained.

    Pairs: the harmful ones, and harmless ones too if given (then it is a poisoned or, with harmless ones only, a benign
    fine-tuning).
    """

    name = "full_sft"
    reference = "Qi et al. 2023 (arXiv 2310.03693); protocol after Rosati et al. 2024 (RepNoise, arXiv 2405.14577)"
    starts_as_parent = True
    needs = ("response",)

    def start(self, subject: Subject, data: MethodData, *, seed: int, horizon: int) -> SupervisedRun:
        batches = Batches.of(subject, data.harmful + data.harmless, "response", batch_size=self.batch_size, seed=seed)
        return self.supervised(
            subject,
            subject.model.requires_grad_(True),
            lambda model, step: (response_ce(model, batches(step)), {}),
            horizon=horizon,
        )
