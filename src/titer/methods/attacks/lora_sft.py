"""Harmful supervised fine-tuning through low-rank adapters."""

from __future__ import annotations

import warnings
from typing import Annotated, Literal

from pydantic import Field

from titer.methods.fine_tuning import imitation
from titer.methods.method import Attack, Given
from titer.methods.runs import Training, TrainingRun


class LoraSFT(Training, Attack):
    """`full_sft` on fresh LoRA adapters (peft) of all linear layers; the base weights stay as they
    are.

    rank, alpha (scale alpha/rank), dropout on the adapters' input (0 by default: an attacker gains
    nothing from it). targets: `all-linear`. micro_batch: rows per forward pass. The adapters'
    initialisation follows the seed.
    """

    name = "lora_sft"
    reference = (
        "Hu et al. 2021 (arXiv 2106.09685); as an attack Lermen et al. 2023 (arXiv 2310.20624)"
    )
    starts_as_parent = True
    adapter = True
    needs = (".response",)

    lr: Annotated[float, Field(gt=0)] = 1e-4
    rank: Annotated[int, Field(gt=0)] = 16
    alpha: Annotated[float, Field(gt=0)] = 32.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: Literal["all-linear"] = "all-linear"
    micro_batch: Annotated[int, Field(gt=0)] | None = None

    def start(self, given: Given) -> TrainingRun:
        from peft import LoraConfig, get_peft_model  # slow, and planning needs only the settings

        batches = given.text.stream(
            "response",
            of=("harmful", "harmless"),
            batch_size=self.batch_size,
            seed=given.seed,
        )
        config = LoraConfig(
            r=self.rank,
            lora_dropout=self.dropout,
            target_modules=self.targets,
            task_type="CAUSAL_LM",
            # Declared a whole number, but peft only divides it by the rank.
            lora_alpha=self.alpha,  # type: ignore[arg-type]
        )
        with warnings.catch_warnings():  # peft warns about tied embeddings, which are intended here
            warnings.simplefilter("ignore")
            model = get_peft_model(given.model.model.requires_grad_(False), config)
        bundle = given.model.having(model=model)
        own = [m for name, m in model.named_modules() if name.endswith("lora_dropout.default")]
        return self.descend(
            bundle, imitation(bundle, batches, self.micro_batch), horizon=given.horizon, noisy=own
        )
