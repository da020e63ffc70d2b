"""The shared runs: supervised training given a loss, and a sequence of weight edits. Methods rarely need another."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, Field

from titer.data.encoding import Encoded, Stream, TokenBatch, collate, encode_all
from titer.data.examples import Example
from titer.data.subject import Subject
from titer.methods.method import Objective, StepLog

Schedule = Literal["constant", "linear", "cosine"]


def schedule_factor(schedule: Schedule, step: int, *, warmup: int, horizon: int) -> float:
    """Factor on the learning rate of step `step` (0-based): linear warm-up of fixed length, then the schedule.

    `constant` does not look at the horizon. `linear` and `cosine` decay to 0 at it.
    """
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    progress = (step - warmup) / max(1, horizon - warmup)
    return 1.0 - progress if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))


class SupervisedRun:
    """AdamW on a loss. Only trainable parameters enter the state, so an adapter's checkpoint is small."""

    def __init__(
        self,
        *,
        model: Any,
        objective: Objective,
        autocast: Callable[[], Any],
        lr: float,
        horizon: int,
        schedule: Schedule = "constant",
        warmup_steps: int = 0,
        weight_decay: float = 0.0,
        clip_norm: float = 1.0,
    ) -> None:
        self.model, self.objective, self.autocast = model, objective, autocast
        self.lr, self.schedule, self.warmup, self.horizon = lr, schedule, warmup_steps, horizon
        self.clip_norm = clip_norm
        self.named = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.parameters = list(self.named.values())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=lr, weight_decay=weight_decay, fused=True)
        self.taken = 0

    def step(self) -> StepLog:
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * schedule_factor(self.schedule, self.taken, warmup=self.warmup, horizon=self.horizon)
        with self.autocast():
            loss, other = self.objective(self.model, self.taken)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.taken += 1
        return StepLog(loss=loss.item(), grad_norm=norm.item(), other=other)

    def state_dict(self) -> dict[str, Any]:
        return {
            "taken": self.taken,
            "weights": {n: p.detach() for n, p in self.named.items()},
            "optimizer": {str(i): s for i, s in self.optimizer.state_dict()["state"].items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.taken = state["taken"]
        with torch.no_grad():
            for name, value in state["weights"].items():
                self.named[name].copy_(value)
        current = self.optimizer.state_dict()
        current["state"] = {int(i): s for i, s in state["optimizer"].items()}
        self.optimizer.load_state_dict(current)


class Training(BaseModel):
    """The settings every gradient method has; mixed into its class so that studies name them flat.

    lr: peak learning rate of AdamW. batch_size: rows of each kind of text per step. warmup_steps: linear, of fixed
    length. schedule: `constant` shares prefixes; `linear` and `cosine` decay to 0 at the horizon, so each budget is a
    run of its own. weight_decay, clip_norm (gradient 2-norm).
    """

    lr: Annotated[float, Field(gt=0)] = 2e-5
    batch_size: Annotated[int, Field(gt=0)] = 8
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    schedule: Schedule = "constant"
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip_norm: Annotated[float, Field(gt=0)] = 1.0

    def supervised(self, subject: Subject, model: Any, objective: Objective, *, horizon: int) -> SupervisedRun:
        """A supervised run of `objective` with these settings."""
        return SupervisedRun(
            model=model, objective=objective, autocast=subject.autocast, horizon=horizon, lr=self.lr,
            schedule=self.schedule, warmup_steps=self.warmup_steps, weight_decay=self.weight_decay,
            clip_norm=self.clip_norm,
        )  # fmt: skip


class EditRun:
    """A weight edit applied once per step; without a gradient. `edit(model, step)` returns figures to log."""

    def __init__(self, *, model: Any, edit: Callable[[Any, int], dict[str, float]]) -> None:
        self.model, self.edit, self.taken = model, edit, 0

    def step(self) -> StepLog:
        with torch.no_grad():
            other = self.edit(self.model, self.taken)
        self.taken += 1
        return StepLog(loss=0.0, grad_norm=0.0, other=other)

    def state_dict(self) -> dict[str, Any]:
        return {"taken": self.taken, "weights": {n: p.detach() for n, p in self.model.named_parameters()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.taken = state["taken"]
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(state["weights"][name])


class Batches:
    """Encoded rows served as an endless seeded stream of token batches."""

    def __init__(self, subject: Subject, rows: list[Encoded], *, batch_size: int, seed: int) -> None:
        self.rows, self.stream = rows, Stream(len(rows), batch_size, seed)
        self.pad, self.device = subject.tokenizer.pad_token_id, subject.device

    @classmethod
    def of(cls, subject: Subject, examples: tuple[Example, ...], field: str, *, batch_size: int, seed: int) -> Batches:
        rows = encode_all(subject.tokenizer, examples, field, subject.max_length)
        return cls(subject, rows, batch_size=batch_size, seed=seed)

    def __call__(self, step: int) -> TokenBatch:
        return collate([self.rows[i] for i in self.stream.indices(step)], self.pad, self.device)
