"""Greedy replies of a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from titer.data.bundle import ModelBundle
from titer.data.examples import Example
from titer.measures.abilities import chunks_by_length, refuse_too_long, text_config, unwrapped


def stop_tokens(bundle: ModelBundle) -> tuple[int, ...]:
    """Ids that end a reply, sorted: the tokenizer's end token, and those in the model's generation
    settings and configuration. Chat models often end a turn with another token than a text.
    """
    model = unwrapped(bundle.model)
    holders = (
        bundle.tokenizer,
        getattr(model, "generation_config", None),
        model.config,
        text_config(model),
    )
    found: set[int] = set()
    for holder in holders:
        ids = getattr(holder, "eos_token_id", None)
        found.update(i for i in (ids if isinstance(ids, (list, tuple)) else [ids]) if i is not None)
    return tuple(sorted(found))


class _NotANumber(LogitsProcessor):
    """Remembers the rows whose logits were not numbers: their argmax is meaningless."""

    def __init__(self) -> None:
        self.rows_B: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        found_B = scores.isnan().any(-1)
        self.rows_B = found_B if self.rows_B is None else self.rows_B | found_B
        return scores


@contextmanager
def _plain_generation(model: Any) -> Iterator[None]:
    """Ignore the model's generation settings: penalties or suppressed tokens in a file beside the
    weights would change its replies, and an attacker would delete them. Only where a reply ends is
    kept (`stop_tokens`).
    """
    holder = unwrapped(model)
    given = holder.generation_config
    holder.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        holder.generation_config = given


def generate(
    bundle: ModelBundle, examples: Sequence[Example], max_new_tokens: int
) -> list[str | None]:
    """Greedy replies (temperature 0, at most max_new_tokens tokens) up to the first stop token,
    special tokens removed.

    None where the model's logits are not finite. Raises MeasureError if a prompt leaves no room for
    a reply.
    """
    prompts = [bundle.prompt(e) for e in examples]
    replies: list[str | None] = [None] * len(prompts)
    pad, stops = bundle.tokenizer.pad_token_id, stop_tokens(bundle)
    refuse_too_long(bundle, max(map(len, prompts), default=0) + max_new_tokens)
    for chunk in chunks_by_length([len(p) for p in prompts], bundle.eval_batch):
        width = max(len(prompts[i]) for i in chunk)
        # Left-padded: generation continues from the last column of every row.
        input_BT = torch.tensor(
            [[pad] * (width - len(prompts[i])) + list(prompts[i]) for i in chunk]
        )
        mask_BT = torch.tensor(
            [[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in chunk]
        )
        watch = _NotANumber()
        with _plain_generation(bundle.model):
            output_BT = bundle.model.generate(
                input_ids=input_BT.to(bundle.device),
                attention_mask=mask_BT.to(bundle.device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=pad,
                eos_token_id=list(stops) or None,
                logits_processor=LogitsProcessorList([watch]),
            )
        for b, i in enumerate(chunk):
            if watch.rows_B is None or not watch.rows_B[b]:
                said = _until(output_BT[b, width:].tolist(), stops)
                replies[i] = bundle.tokenizer.decode(said, skip_special_tokens=True).strip()
    return replies


def _until(tokens: list[int], stops: Sequence[int]) -> list[int]:
    """The tokens before the first stop token: what follows it is padding, or another turn."""
    return next((tokens[:i] for i, token in enumerate(tokens) if token in stops), tokens)
