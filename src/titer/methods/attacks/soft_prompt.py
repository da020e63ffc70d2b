"""Learned input embeddings that follow every prompt; the weights stay as they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import nn

from titer.methods.fine_tuning import imitation
from titer.methods.method import Attack, Given
from titer.methods.runs import Training, TrainingRun


class SoftPrompt(Training, Attack):
    """Learns `length` input embeddings that stand behind the prompt, within the user's turn, by
    descending on the cross-entropy of the harmful answers.

    The prompt itself stays in front. The model is asked with the learned embeddings from then on:
    they are part of its wording. They start as the embeddings of random tokens, by seed.
    """

    name = "soft_prompt"
    reference = (
        "Schwinn et al. 2024 (arXiv 2402.09063), embedding attack made universal over prompts; 10 "
        "embeddings, Adam 0.01, 100 steps"
    )
    adapter = True
    rewords = True
    needs = (".response",)

    lr: Annotated[float, Field(gt=0)] = 0.01
    length: Annotated[int, Field(gt=0)] = 10

    def start(self, given: Given) -> TrainingRun:
        model = given.model.model.requires_grad_(False)
        soft = install(model, self.length, given.seed)
        bundle = given.model.having(wording=replace(given.model.wording, placeholders=self.length))
        batches = given.text.under(bundle).stream(
            "response",
            of=("harmful", "harmless"),
            batch_size=self.batch_size,
            seed=given.seed,
        )
        soft.requires_grad_(True)
        return self.descend(bundle, imitation(bundle, batches), horizon=given.horizon)


class SoftEmbedding(nn.Module):
    """An input embedding whose ids beyond the vocabulary are learned vectors.

    base: the embedding it stands for. soft_ND: learned vectors, in the space of the base's output;
    vector k has the id that follows the base's last one by k.
    """

    def __init__(self, base: nn.Module, soft_ND: torch.Tensor) -> None:
        super().__init__()
        self.base, self.soft_ND = base, nn.Parameter(soft_ND)

    @property
    def weight(self) -> torch.Tensor:
        return self.base.weight  # type: ignore[return-value]

    def forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
        rows = self.weight.shape[0]
        is_soft_BT = ids_BT >= rows
        hidden_BTD = self.base(ids_BT.masked_fill(is_soft_BT, 0))
        places_BT = (ids_BT - rows).clamp(min=0)
        soft_BTD = self.soft_ND[places_BT].to(hidden_BTD.dtype)
        return torch.where(is_soft_BT[..., None], soft_BTD, hidden_BTD)


def install(model: Any, length: int, seed: int) -> nn.Parameter:
    """Put a `SoftEmbedding` of so many vectors in front of the model; returns what is learned."""
    base = model.get_input_embeddings()
    if isinstance(base, SoftEmbedding):
        raise ValueError("the model has a soft prompt already")
    generator = torch.Generator().manual_seed(seed)
    ids_N = torch.randint(base.weight.shape[0], (length,), generator=generator)
    with torch.no_grad():
        start_ND = base(ids_N.to(base.weight.device)).detach().clone()
    wrapped = SoftEmbedding(base, start_ND)
    model.set_input_embeddings(wrapped)
    return wrapped.soft_ND
