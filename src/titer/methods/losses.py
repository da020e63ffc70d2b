"""Objectives shared by methods: pure functions of logits and labels, shapes in the names, checked
first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from titer.data.encoding import IGNORED, TokenBatch
from titer.errors import MeasureError


def token_ce(
    logits_BTV: torch.Tensor, labels_BT: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy in nats at each labelled position.

    Returns (ce_BS, counted_BS), S = T − 1: position s holds −log p(labels[s+1] | tokens up to s), 0
    where the label is −100; counted is True where it is not.
    """
    if logits_BTV.shape[:2] != labels_BT.shape:
        raise MeasureError(
            "logits and labels do not match",
            field="logits_BTV",
            value=tuple(logits_BTV.shape),
            expected=f"{tuple(labels_BT.shape)} + (V,)",
        )
    target_BS = labels_BT[:, 1:]
    ce_BS = functional.cross_entropy(
        logits_BTV[:, :-1].float().transpose(1, 2),
        target_BS,
        ignore_index=IGNORED,
        reduction="none",
    )
    return ce_BS, target_BS != IGNORED


def mean_over(values_BS: torch.Tensor, counted_BS: torch.Tensor) -> torch.Tensor:
    """Mean of the counted values, 0 if none is counted (so that an empty mask gives no gradient
    instead of NaN).
    """
    return (values_BS * counted_BS).sum() / counted_BS.sum().clamp(min=1)


def response_ce(model: Any, batch: TokenBatch, *, over: int | None = None) -> torch.Tensor:
    """Mean cross-entropy (nats/token) over the response tokens of a batch: the loss of supervised
    fine-tuning. over: divide the sum by so many tokens instead, for a part of a batch.
    """
    logits_BTV = model(
        input_ids=batch.input_BT, attention_mask=batch.mask_BT, use_cache=False
    ).logits
    # Same value as mean_over(token_ce(...)), without keeping the masked positions around.
    loss = functional.cross_entropy(
        logits_BTV[:, :-1].flatten(0, 1).float(),
        batch.labels_BT[:, 1:].flatten(),
        ignore_index=IGNORED,
        reduction="mean" if over is None else "sum",
    )
    return loss if over is None else loss / over


def differing_positions(
    labels_a_BT: torch.Tensor,
    labels_b_BT: torch.Tensor,
    first_a: Sequence[int],
    first_b: Sequence[int],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks m_a, m_b (bool, as the labels): response positions at which the paired answers differ.

    Answers are aligned at their first response token (first_a[i], first_b[i]: its index in row i).
    A position that only one of the two has counts as differing. Rosati et al. 2024, adversarial
    loss, mask m.
    """
    masks = [labels_a_BT != IGNORED, labels_b_BT != IGNORED]
    for i, (a, b) in enumerate(zip(first_a, first_b, strict=True)):
        n = min(int(masks[0][i].sum()), int(masks[1][i].sum()))
        same = labels_a_BT[i, a : a + n] == labels_b_BT[i, b : b + n]
        masks[0][i, a : a + n] &= ~same
        masks[1][i, b : b + n] &= ~same
    return masks[0], masks[1]
