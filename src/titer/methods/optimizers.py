"""The optimizers a training can choose from, all of them torch's own, behind one state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch

OptimizerName = Literal["adamw", "sgd", "adafactor", "muon"]


class Optimizer:
    """One torch optimizer, or two for Muon, which is made for matrices alone.

    name: `adamw`; `sgd` (Nesterov momentum); `adafactor`; `muon` (updates scaled to those of AdamW,
    so that one learning rate serves both; vectors and what belongs to no block, such as embeddings
    and the output head, go to AdamW).
    """

    def __init__(
        self,
        name: OptimizerName,
        named: Mapping[str, torch.nn.Parameter],
        *,
        lr: float,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        momentum: float = 0.0,
    ) -> None:
        self.parts: list[torch.optim.Optimizer] = []
        parameters = list(named.values())
        optim = torch.optim
        if name == "sgd":
            self.parts.append(
                optim.SGD(
                    parameters,
                    lr=lr,
                    weight_decay=weight_decay,
                    momentum=momentum,
                    nesterov=momentum > 0,
                )
            )
        elif name == "adafactor":
            self.parts.append(optim.Adafactor(parameters, lr=lr, weight_decay=weight_decay))
        else:
            rest = parameters
            if name == "muon":
                inner = {n for n, p in named.items() if p.ndim == 2 and _in_block(n)}
                matrices = [p for n, p in named.items() if n in inner]
                rest = [p for n, p in named.items() if n not in inner]
                if matrices:
                    self.parts.append(
                        optim.Muon(
                            matrices,
                            lr=lr,
                            weight_decay=weight_decay,
                            adjust_lr_fn="match_rms_adamw",
                        )
                    )
            if rest:
                self.parts.append(
                    optim.AdamW(rest, lr=lr, weight_decay=weight_decay, betas=betas, fused=True)
                )

    def step(self, lr: float) -> None:
        """One update at learning rate `lr`; the gradients are dropped."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = lr
            part.step()
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        return {
            str(k): {str(i): dict(s) for i, s in part.state_dict()["state"].items()}
            for k, part in enumerate(self.parts)
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for k, part in enumerate(self.parts):
            current = part.state_dict()
            current["state"] = {int(i): s for i, s in state[str(k)].items()}
            part.load_state_dict(current)


def _in_block(name: str) -> bool:
    """Whether a parameter belongs to one of the repeated blocks: these are numbered."""
    return any(part.isdigit() for part in name.split("."))


def trained(model: Any) -> dict[str, torch.nn.Parameter]:
    """name → parameter of what is trained."""
    return {n: p for n, p in model.named_parameters() if p.requires_grad}
