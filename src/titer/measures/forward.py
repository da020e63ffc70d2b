"""Forward passes shared by measures: how likely is a given answer, and what does the model say by
itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from titer.data.bundle import ModelBundle
from titer.data.encoding import Encoded, collate, encode_prompt
from titer.data.examples import Example
from titer.errors import MeasureError


def refuse_too_long(bundle: ModelBundle, tokens: int) -> None:
    """Raises MeasureError if the model was not made for so many tokens: what it says beyond them
    would be read as its behaviour.
    """
    most = getattr(bundle.model.config, "max_position_embeddings", None)
    if most is not None and tokens > most:
        raise MeasureError(
            "a prompt with its answer is longer than the model's context",
            field="tokens",
            value=tokens,
            expected=f"at most {most}, the model's max_position_embeddings",
            remedy="shorten or leave out the longest prompts of the part that is read",
        )


def _sorted_chunks(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Indices in chunks of similar length, so that little padding is computed."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    for start in range(0, len(order), size):
        yield order[start : start + size]


def answer_logprobs(
    bundle: ModelBundle, rows: Sequence[Encoded]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """For each row (logprob_R, top_R): log p of each response token given everything before it, and
    whether it is the most likely token there. R = number of response tokens. Teacher-forced;
    probabilities in fp32 from logits in the precision of the forward pass (bf16 under autocast,
    which also lets `eval_batch` move them by rounding).
    """
    results: list = [None] * len(rows)
    pad = bundle.tokenizer.pad_token_id
    refuse_too_long(bundle, max((len(r.prompt) + len(r.response) for r in rows), default=0))
    for chunk in _sorted_chunks([len(r.prompt) + len(r.response) for r in rows], bundle.eval_batch):
        batch = collate([rows[i] for i in chunk], pad, bundle.device)
        # Only positions that predict a response token need the vocabulary projection.
        keep = max(batch.input_BT.shape[1] - min(len(rows[i].prompt) for i in chunk) + 1, 1)
        logits_BKV = bundle.model(
            input_ids=batch.input_BT,
            attention_mask=batch.mask_BT,
            use_cache=False,
            logits_to_keep=keep,
        ).logits
        offset = batch.input_BT.shape[1] - logits_BKV.shape[1]
        for b, i in enumerate(chunk):
            p, r = len(rows[i].prompt), len(rows[i].response)
            # One row at a time in fp32: a whole batch over a large vocabulary would be most of the
            # memory a cell needs.
            here_RV = logits_BKV[b, p - 1 - offset : p - 1 - offset + r].float()
            target_R = batch.input_BT[b, p : p + r]
            logprob_R = here_RV.log_softmax(-1).gather(1, target_R[:, None])[:, 0]
            results[i] = (logprob_R.cpu(), (here_RV.argmax(-1) == target_R).cpu())
    return results


class _NotANumber(LogitsProcessor):
    """Remembers the rows whose logits were not numbers: the most likely of those is an accident,
    not a reply.
    """

    def __init__(self) -> None:
        self.rows_B: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        found_B = scores.isnan().any(-1)
        self.rows_B = found_B if self.rows_B is None else self.rows_B | found_B
        return scores


@contextmanager
def _plain_generation(model: Any) -> Iterator[None]:
    """Without the generation settings that came with the model: penalties or suppressed tokens in a
    file beside the weights would change what it is taken to say, and an attacker would just
    delete them.
    """
    holder = model.get_base_model() if hasattr(model, "get_base_model") else model
    given = holder.generation_config
    holder.generation_config = GenerationConfig()
    try:
        yield
    finally:
        holder.generation_config = given


def generate(
    bundle: ModelBundle, examples: Sequence[Example], max_new_tokens: int
) -> list[str | None]:
    """Greedy replies (temperature 0, at most max_new_tokens tokens), special tokens removed.

    None where the model's numbers are not finite: it says nothing then.
    """
    prompts = [encode_prompt(bundle.tokenizer, e) for e in examples]
    replies: list[str | None] = [None] * len(prompts)
    pad = bundle.tokenizer.pad_token_id
    refuse_too_long(bundle, max(map(len, prompts), default=0) + max_new_tokens)
    for chunk in _sorted_chunks([len(p) for p in prompts], bundle.eval_batch):
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
                eos_token_id=bundle.tokenizer.eos_token_id,
                logits_processor=LogitsProcessorList([watch]),
            )
        for b, i in enumerate(chunk):
            if watch.rows_B is None or not watch.rows_B[b]:
                replies[i] = bundle.tokenizer.decode(
                    output_BT[b, width:], skip_special_tokens=True
                ).strip()
    return replies
