"""The paper's own demonstration: ascend on harmful answers while descending on refusals."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field

from titer.data.encoding import collate, encode
from titer.data.subject import Subject
from titer.errors import StudyError
from titer.methods.losses import differing_positions, mean_over, response_ce, token_ce
from titer.methods.method import Defense, MethodData
from titer.methods.runs import Batches, SupervisedRun, Training


class AdversarialLoss(Training, Defense):
    """L = CE_m(y_r) − alpha · A(CE_m(y_h)) + retain · CE(harmless).

    m keeps only the positions at which the paired refusal and harmful answer differ; a batch's refusals and harmful
    answers belong to the same prompts. CE_m is the mean over kept positions in nats/token. The form A of the ascent:
    `linear` A(c) = c, the paper's, unbounded below; `log` A(c) = log(1 + c), damped but unbounded (RepNoise's
    baseline); `capped` A = mean over positions of min(ce, cap), bounded: a token less likely than e^−cap earns nothing
    more, so the model is not rewarded for destroying itself (ours). retain > 0 adds harmless pairs (ours; the paper
    has none). The paper's authors call the result superficial.
    """

    name = "adversarial_loss"
    reference = "Rosati et al. 2024 (arXiv 2402.16382), demonstration; published settings alpha 0.1, lr 1e-5"
    cost = "2F+2B (three batches)"
    needs = ("harmful.refusal", "harmful.response")

    lr: Annotated[float, Field(gt=0)] = 1e-5
    batch_size: Annotated[int, Field(gt=0)] = 4
    alpha: Annotated[float, Field(ge=0)] = 0.1
    form: Literal["linear", "log", "capped"] = "linear"
    cap: Annotated[float, Field(gt=0)] = 5.0
    retain: Annotated[float, Field(ge=0)] = 0.0

    def ascent(self, ce_BS: torch.Tensor, kept_BS: torch.Tensor) -> torch.Tensor:
        """A(CE_m) from token cross-entropies; scalar."""
        if self.form == "capped":
            return mean_over(ce_BS.clamp(max=self.cap), kept_BS)
        mean = mean_over(ce_BS, kept_BS)
        return torch.log1p(mean) if self.form == "log" else mean

    def start(self, subject: Subject, data: MethodData, *, seed: int, horizon: int) -> SupervisedRun:
        pairs = _pairs(subject, data)
        order = Batches(subject, [r for r, _ in pairs], batch_size=self.batch_size, seed=seed)
        keep = None
        if self.retain and data.harmless:
            keep = Batches.of(subject, data.harmless, "response", batch_size=self.batch_size, seed=seed + 1)

        def objective(model, step: int):
            rows = [pairs[i] for i in order.stream.indices(step)]
            refusals, harms = (collate(list(side), order.pad, order.device) for side in zip(*rows, strict=True))
            starts = [len(r.prompt) for r, _ in rows]  # the same prompt on both sides
            keep_r_BT, keep_h_BT = differing_positions(refusals.labels_BT, harms.labels_BT, starts, starts)
            ce_r_BS, _ = token_ce(_logits(model, refusals), refusals.labels_BT)
            ce_h_BS, _ = token_ce(_logits(model, harms), harms.labels_BT)
            refusal = mean_over(ce_r_BS, keep_r_BT[:, 1:])
            harm = mean_over(ce_h_BS, keep_h_BT[:, 1:])
            loss = refusal - self.alpha * self.ascent(ce_h_BS, keep_h_BT[:, 1:])
            other = {"ce_refusal": refusal.item(), "ce_harmful": harm.item()}
            if keep is not None:
                harmless = response_ce(model, keep(step))
                loss, other = loss + self.retain * harmless, other | {"ce_harmless": harmless.item()}
            return loss, other

        return self.supervised(subject, subject.model.requires_grad_(True), objective, horizon=horizon)


def _logits(model, batch) -> torch.Tensor:
    return model(input_ids=batch.input_BT, attention_mask=batch.mask_BT, use_cache=False).logits


def _pairs(subject: Subject, data: MethodData):
    """(refusal, harmful) encodings of the same prompts; only prompts with room for both."""
    missing = [e for e in data.harmful if e.response is None or e.refusal is None]
    if missing:
        raise StudyError("adversarial_loss needs a harmful answer and a refusal for every harmful prompt",
                         field="defense_data.harmful", value=f"{len(missing)} examples without",
                         expected="response and refusal", remedy="set respond and refuse on the pool")  # fmt: skip
    both = [
        tuple(encode(subject.tokenizer, e, answer, subject.max_length) for answer in (e.refusal, e.response))
        for e in data.harmful
    ]
    kept = [(r, h) for r, h in both if r.response and h.response]
    if not kept:
        raise StudyError("no harmful pair fits", field="runtime.max_length", value=subject.max_length,
                         expected="room for the prompt and an answer", remedy="raise runtime.max_length")  # fmt: skip
    return kept
