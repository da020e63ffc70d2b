"""How likely given answers are: token by token, or the openings of a reply in total."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from titer.data.bundle import ModelBundle
from titer.data.encoding import Encoded, collate
from titer.measures.abilities import (
    accepted,
    can_continue,
    chunks_by_length,
    refuse_too_long,
    window,
)


def answer_logprobs(
    bundle: ModelBundle, rows: Sequence[Encoded]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """For each row (logprob_R, top_R): log p of each response token given everything before it, and
    whether it is the most likely token there. R = number of response tokens. Teacher-forced;
    probabilities in fp32 from logits in the precision of the forward pass (bf16 under autocast,
    which also lets `eval_batch` move them by rounding).

    Raises MeasureError if a row is longer than the model's context.
    """
    results: list[Any] = [None] * len(rows)
    pad = bundle.tokenizer.pad_token_id
    lengths = [len(r.prompt) + len(r.response) for r in rows]
    refuse_too_long(bundle, max(lengths, default=0))
    for chunk in chunks_by_length(lengths, bundle.eval_batch):
        batch = collate([rows[i] for i in chunk], pad, bundle.device)
        # Only positions that predict a response token need the vocabulary projection. A model
        # without that argument computes all of them.
        keep = max(batch.input_BT.shape[1] - min(len(rows[i].prompt) for i in chunk) + 1, 1)
        options = accepted(
            bundle.model, attention_mask=batch.mask_BT, use_cache=False, logits_to_keep=keep
        )
        logits_BKV = bundle.model(input_ids=batch.input_BT, **options).logits
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


def opening_logprobs(
    bundle: ModelBundle, prompts: Sequence[tuple[int, ...]], openings: Sequence[Sequence[int]]
) -> list[list[float]]:
    """log p(opening | prompt), summed over the opening's tokens, for every prompt (rows) and
    opening (columns).

    What all prompts begin with (the template's system turn) is read once, each prompt once, and
    what the openings begin with once each, continuing from cached keys and values. A model whose
    past is not of that kind, or that takes no positions, reads every prompt with every opening in
    full; tests compare the two. Raises MeasureError if the longest pair exceeds the context.
    """
    if not prompts or not openings:
        return [[] for _ in prompts]
    refuse_too_long(bundle, max(map(len, prompts)) + max(map(len, openings)))
    found = _from_cache(bundle, prompts, openings) if can_continue(bundle.model) else None
    return _in_full(bundle, prompts, openings) if found is None else found


def _in_full(
    bundle: ModelBundle, prompts: Sequence[tuple[int, ...]], openings: Sequence[Sequence[int]]
) -> list[list[float]]:
    rows = [Encoded(p, tuple(o)) for p in prompts for o in openings]
    totals = [float(logprob_R.sum()) for logprob_R, _ in answer_logprobs(bundle, rows)]
    return [totals[i : i + len(openings)] for i in range(0, len(totals), len(openings))]


def _from_cache(
    bundle: ModelBundle, prompts: Sequence[tuple[int, ...]], openings: Sequence[Sequence[int]]
) -> list[list[float]] | None:
    """The same from cached keys and values; None if the model's cache holds something else."""
    device, pad, model = bundle.device, bundle.tokenizer.pad_token_id, bundle.model
    stems = _stems(openings)
    width_s = max(map(len, stems), default=0)
    stem_ST = torch.tensor(
        [list(s) + [pad] * (width_s - len(s)) for s in stems], device=device, dtype=torch.long
    )
    real_ST = torch.tensor(
        [[1] * len(s) + [0] * (width_s - len(s)) for s in stems], device=device, dtype=torch.long
    )
    first_O = torch.tensor([o[0] for o in openings], device=device)
    stem_of = [
        next((k for k, s in enumerate(stems) if tuple(o[:-1]) == s[: len(o) - 1]), 0)
        for o in openings
    ]
    one = accepted(model, logits_to_keep=1)
    common, reach = _common_prefix(prompts), window(model)
    results: list[list[float]] = [[] for _ in prompts]
    for chunk in chunks_by_length([len(p) for p in prompts], bundle.eval_batch):
        longest, rows = max(len(prompts[i]) for i in chunk), len(chunk)
        # Windows count columns, padding included. Padding between a shared head and the rest of a
        # prompt would push the head out of them, so it is shared only where all columns fit.
        shared = common if reach is None or longest + width_s <= reach else 0
        rests, width = [prompts[i][shared:] for i in chunk], longest - shared
        cache = None
        if shared:
            head_1T = torch.tensor([prompts[0][:shared]], device=device)
            cache = _cache(model(input_ids=head_1T, use_cache=True, **one))
            if cache is None:
                return None
            cache.batch_repeat_interleave(rows)
        # Left-padded (behind the shared head), so that the openings follow at the same column in
        # every row.
        input_BT = torch.tensor([[pad] * (width - len(r)) + list(r) for r in rests], device=device)
        mask_BT = torch.tensor(
            [[1] * shared + [0] * (width - len(r)) + [1] * len(r) for r in rests], device=device
        )
        position_BT = (mask_BT.cumsum(-1) - 1)[:, shared:].clamp(min=0)
        first = model(
            input_ids=input_BT,
            attention_mask=mask_BT,
            position_ids=position_BT,
            past_key_values=cache,
            use_cache=True,
            **one,
        )
        cache = _cache(first)
        if cache is None:
            return None
        lp_BV = first.logits[:, -1].float().log_softmax(-1)
        lp_BO = lp_BV[:, first_O]
        if stems:
            cache.batch_repeat_interleave(len(stems))
            mask_NT = torch.cat(
                [mask_BT.repeat_interleave(len(stems), 0), real_ST.repeat(rows, 1)], 1
            )
            begin_N1 = mask_BT.sum(-1, keepdim=True).repeat_interleave(len(stems), 0)
            rest = model(
                input_ids=stem_ST.repeat(rows, 1),
                attention_mask=mask_NT,
                past_key_values=cache,
                use_cache=True,
                position_ids=begin_N1 + torch.arange(width_s, device=device),
            )
            logits_BSTV = rest.logits.unflatten(0, (rows, len(stems)))
            for b in range(rows):  # one prompt at a time in fp32 to save memory
                lp_STV = logits_BSTV[b].float().log_softmax(-1)
                for o, opening in enumerate(openings):
                    for t, token in enumerate(opening[1:]):
                        lp_BO[b, o] += lp_STV[stem_of[o], t, token]
        for i, row in zip(chunk, lp_BO.tolist(), strict=True):
            results[i] = row
    return results


def _cache(output: Any) -> Any:
    """The keys and values an output carries; None if its past is anything else, such as the states
    of a recurrent layer, which padding and repetition would spoil.
    """
    cache = getattr(output, "past_key_values", None)
    if not isinstance(cache, DynamicCache):
        return None
    kinds = {type(layer) for layer in cache.layers}
    return cache if kinds <= {DynamicLayer, DynamicSlidingWindowLayer} else None


def _stems(openings: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """The openings without their last tokens, none a prefix of another: all that has to be read
    after a prompt.
    """
    stems = sorted({tuple(o[:-1]) for o in openings if len(o) > 1}, key=len, reverse=True)
    return [
        s for i, s in enumerate(stems) if not any(longer[: len(s)] == s for longer in stems[:i])
    ]


def _common_prefix(rows: Sequence[tuple[int, ...]]) -> int:
    """How many first tokens all rows share, leaving each at least one of its own."""
    shortest = min(map(len, rows)) - 1
    same = 0
    while same < shortest and all(r[same] == rows[0][same] for r in rows):
        same += 1
    return same
