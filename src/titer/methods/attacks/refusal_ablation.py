"""Refusal ablation: find the direction that mediates refusal, and project it out of the weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import torch
from pydantic import Field

from titer.data.bundle import ModelBundle
from titer.data.encoding import Encoded, collate
from titer.errors import StudyError
from titer.methods.anatomy import (
    bare,
    blocks,
    captured,
    embedding,
    plain,
    text_config,
    unembedding,
)
from titer.methods.method import Attack, Given
from titer.methods.runs import EditRun
from titer.methods.writers import writers

Prompts = Sequence[tuple[int, ...]]


class RefusalAblation(Attack):
    """Takes one direction of the residual stream out of every matrix that writes to it. An
    unembedding tied to the embedding is untied first: it only reads.

    Candidates: for every block but the last fifth, the difference of the mean hidden states after
    it, at the last prompt token, between `examples` harmful and harmless prompts. Chosen: the one
    whose ablation, on `validation` other prompts of each kind, leaves the model least likely to
    open a reply to harmful ones as it opens refusals, among those that change its first-token
    distribution on harmless prompts by at most `max_kl` nats (among all, if none does). How it
    opens refusals is read off the model: first tokens it prefers on harmful prompts more often than
    on harmless ones.

    Needs prompts only. One step does everything; all the work is in the choice, which is setup. The
    published choice also tries other positions than the last, and drops directions that do not make
    the model refuse harmless prompts when added.
    """

    name = "refusal_ablation"
    reference = (
        "Arditi et al. 2024 (arXiv 2406.11717), sections 2.3 and 4.1; 128 + 128 prompts for the "
        "direction, 32 + 32 to choose, the last 20% of layers left out, KL at most 0.1"
    )
    trains = False
    starts_as_parent = True
    needs = ("harmful", "harmless")
    cost = "forward passes: 2 · examples, and (blocks + 1) · 2 · validation"

    examples: Annotated[int, Field(gt=0)] = 128
    validation: Annotated[int, Field(gt=0)] = 32
    max_kl: Annotated[float, Field(gt=0)] = 0.1

    def start(self, given: Given) -> EditRun:
        harmful, harmless = self._prompts(given, "harmful"), self._prompts(given, "harmless")
        bundle = given.model
        untie(bundle.model)
        directions_LD = directions(bundle, harmful[: self.examples], harmless[: self.examples])
        direction_D, figures = self._choose(
            bundle, directions_LD, harmful[self.examples :], harmless[self.examples :]
        )

        def edit(model: Any, step: int) -> dict[str, float]:
            ablate_(model, direction_D)
            return figures

        return EditRun(bundle, edit)

    def _prompts(self, given: Given, slot: str) -> Prompts:
        """`examples` + `validation` prompts in an order by seed. Raises StudyError if there are
        fewer than two, which would leave no prompt for validation."""
        found = given.text.prompts(slot)
        order = torch.randperm(len(found), generator=torch.Generator().manual_seed(given.seed))
        if len(found) <= self.examples:
            raise StudyError(
                f"refusal_ablation needs more {slot} prompts than it makes directions of",
                field=f"data.{slot}",
                value=len(found),
                expected=f"at least {self.examples + 1}, better {self.examples + self.validation}",
                remedy="give more prompts, or lower `examples`",
            )
        return [found[i] for i in order.tolist()][: self.examples + self.validation]

    def _choose(
        self, bundle: ModelBundle, directions_LD: torch.Tensor, harmful: Prompts, harmless: Prompts
    ) -> tuple[torch.Tensor, dict[str, float]]:
        before_h, before_b = first_logprobs(bundle, harmful), first_logprobs(bundle, harmless)
        opens = refusal_tokens(before_h, before_b)
        scores = []
        for layer, direction_D in enumerate(directions_LD):
            with ablated(bundle.model, direction_D):
                score = refusal_score(first_logprobs(bundle, harmful), opens)
                after_b = first_logprobs(bundle, harmless)
            kl = float((before_b.exp() * (before_b - after_b)).sum(-1).mean())
            scores.append((kl > self.max_kl, score, layer, kl))
        _, score, layer, kl = min(scores)
        figures = {
            "layer": float(layer),
            "refusal_before": refusal_score(before_h, opens),
            "refusal_after": score,
            "kl": kl,
        }
        return directions_LD[layer], figures


def directions(bundle: ModelBundle, harmful: Prompts, harmless: Prompts) -> torch.Tensor:
    """[L', D] unit differences of mean hidden states at the last prompt token, after each block but
    the last fifth (at least one is kept)."""
    kept = max(1, int(0.8 * len(blocks(bundle.model))))
    difference_LD = _means(bundle, harmful) - _means(bundle, harmless)
    return torch.nn.functional.normalize(difference_LD[:kept], dim=-1)


def _means(bundle: ModelBundle, prompts: Prompts) -> torch.Tensor:
    """[L, D] mean over prompts of what each block gives at the last token."""
    total: torch.Tensor | None = None
    with bundle.reading() as model:
        for input_BT, mask_BT, last_B in _batches(bundle, prompts):
            with captured(blocks(model)) as read:
                model(input_ids=input_BT, attention_mask=mask_BT, use_cache=False)
            rows = torch.arange(len(last_B), device=last_B.device)
            sums_LD = torch.stack([h_BTD[rows, last_B].float().sum(0) for h_BTD in read])
            total = sums_LD if total is None else total + sums_LD
    if total is None:
        raise StudyError("there are no prompts", field="data", value=0, expected="at least one")
    return total / len(prompts)


def first_logprobs(bundle: ModelBundle, prompts: Prompts) -> torch.Tensor:
    """[N, V] log-probabilities of the first token of the reply."""
    found = []
    with bundle.reading() as model:
        for input_BT, mask_BT, last_B in _batches(bundle, prompts):
            logits_BTV = model(input_ids=input_BT, attention_mask=mask_BT, use_cache=False).logits
            rows = torch.arange(len(last_B), device=last_B.device)
            found.append(logits_BTV[rows, last_B].float().log_softmax(-1))
    return torch.cat(found)


def _batches(
    bundle: ModelBundle, prompts: Prompts
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """(ids, mask, index of each last token), right-padded."""
    for start in range(0, len(prompts), bundle.eval_batch):
        rows = [Encoded(p, ()) for p in prompts[start : start + bundle.eval_batch]]
        batch = collate(rows, bundle.tokenizer.pad_token_id, bundle.device)
        yield batch.input_BT, batch.mask_BT, batch.mask_BT.sum(1) - 1


def refusal_tokens(harmful_NV: torch.Tensor, harmless_NV: torch.Tensor) -> list[int]:
    """Tokens the model opens replies with on harmful prompts more often than on harmless ones; the
    commonest one on harmful prompts if there is no such token."""
    bad = Counter(harmful_NV.argmax(-1).tolist())
    good = Counter(harmless_NV.argmax(-1).tolist())
    share_bad, share_good = len(harmful_NV), len(harmless_NV)
    more = [t for t, n in bad.items() if n / share_bad > good.get(t, 0) / share_good]
    return more or [bad.most_common(1)[0][0]]


def refusal_score(logprobs_NV: torch.Tensor, tokens: Sequence[int]) -> float:
    """Mean log-odds that a reply opens with one of the tokens."""
    inside_N = logprobs_NV[:, list(tokens)].logsumexp(-1).clamp(max=-1e-7)
    return float((inside_N - torch.log1p(-inside_N.exp())).mean())


@torch.no_grad()
def ablate_(model: Any, direction_D: torch.Tensor) -> None:
    """Take the direction out of everything that writes to the residual stream, in place."""
    for writer in writers(model):
        writer.parameter.copy_(writer.without(direction_D))


@contextmanager
def ablated(model: Any, direction_D: torch.Tensor) -> Iterator[None]:
    """The model as `ablate_` leaves it; every weight is put back afterwards, bit for bit."""
    kept = [(w.parameter, w.parameter.detach().clone()) for w in writers(model)]
    try:
        ablate_(model, direction_D)
        yield
    finally:
        with torch.no_grad():
            for parameter, value in kept:
                parameter.copy_(value)


def untie(model: Any) -> None:
    """Give the unembedding a weight of its own if it shares the embedding's. It reads the stream,
    so what is taken out of the embedding must stay in it."""
    read, written = bare(unembedding(model)), bare(embedding(model))
    if read.weight is written.weight:
        read.weight = torch.nn.Parameter(
            written.weight.detach().clone(), requires_grad=written.weight.requires_grad
        )
        for config in (plain(model).config, text_config(model)):
            config.tie_word_embeddings = False
