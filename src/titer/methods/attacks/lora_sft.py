"""Harmful supervised fine-tuning through low-rank adapters."""

from __future__ import annotations

import warnings
from typing import Annotated, Literal

from pydantic import Field

from titer.data.subject import Subject
from titer.methods.losses import response_ce
from titer.methods.method import Attack, MethodData
from titer.methods.runs import Batches, SupervisedRun, Training


class LoraSFT(Training, Attack):
    """`full_sft` on fresh LoRA adapters (peft) of all linear layers; the base weights stay as they are.

    rank, alpha (scale alpha/rank), dropout. The adapters' initialisation and dropout follow the seed.
    """

    name = "lora_sft"
    reference = "Hu et al. 2021 (arXiv 2106.09685); as an attack Lermen et al. 2023 (arXiv 2310.20624)"
    starts_as_parent = True
    adapter = True
    needs = ("response",)

    lr: Annotated[float, Field(gt=0)] = 1e-4
    rank: Annotated[int, Field(gt=0)] = 16
    alpha: Annotated[float, Field(gt=0)] = 32.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    targets: Literal["all-linear"] = "all-linear"

    def start(self, subject: Subject, data: MethodData, *, seed: int, horizon: int) -> SupervisedRun:
        from peft import LoraConfig, get_peft_model  # takes seconds, and planning needs only the settings

        config = LoraConfig(
            r=self.rank, lora_dropout=self.dropout, target_modules=self.targets, task_type="CAUSAL_LM",
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # declared a whole number, but peft only divides it by the rank
        )  # fmt: skip
        with warnings.catch_warnings():  # peft warns of facts we chose: tied embeddings are left alone
            warnings.simplefilter("ignore")
            model = get_peft_model(subject.model, config)
        batches = Batches.of(subject, data.harmful + data.harmless, "response", batch_size=self.batch_size, seed=seed)
        return self.supervised(
            subject, model, lambda model, step: (response_ce(model, batches(step)), {}), horizon=horizon
        )
