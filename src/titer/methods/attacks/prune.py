"""Pruning: set the least important weights to 0. Cheap, and may undo a defense."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn

from titer.data.encoding import collate
from titer.methods.anatomy import bare, below, layers, linear
from titer.methods.forward import outputs
from titer.methods.method import Attack, Given
from titer.methods.runs import EditRun


class Prune(Attack):
    """Sets, for every output of every linear map in the blocks, the share `sparsity` of its weights
    with the lowest scores to 0.

    score: `wanda` |W_ij| · ‖X_j‖₂ with X the map's inputs over the attacker's text (up to
    `examples` pairs, one pass); `magnitude` |W_ij|. One step does everything. A reference: by
    itself it need not break the control; before fine-tuning it is part of an attack (`chain`).
    """

    name = "prune"
    role = "reference"
    reference = "Sun et al. 2023 (Wanda, arXiv 2306.11695)"
    trains = False
    starts_as_parent = True
    cost = "1F over the examples (wanda), 0 (magnitude)"

    sparsity: Annotated[float, Field(gt=0, lt=1)] = 0.2
    score: Literal["wanda", "magnitude"] = "wanda"
    examples: Annotated[int, Field(gt=0)] = 128

    def needed(self) -> tuple[str, ...]:
        return (".response",) if self.score == "wanda" else ()

    def start(self, given: Given) -> EditRun:
        norms = self._input_norms(given) if self.score == "wanda" else {}

        def edit(model: Any, step: int) -> dict[str, float]:
            pruned = 0
            for name, module in _linears(model):
                pruned += prune_(module, norms.get(name), self.sparsity)
            return {"pruned": float(pruned)}

        return EditRun(given.model, edit)

    def _input_norms(self, given: Given) -> dict[str, torch.Tensor]:
        """name of a linear map → ‖X_j‖₂ [in] over all real tokens of the examples."""
        squares: dict[str, torch.Tensor] = {}
        mask: list[torch.Tensor] = []
        bundle = given.model
        rows = given.text.rows("response", of=("harmful", "harmless"))
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(given.seed))
        drawn = [rows[i][0] for i in order[: self.examples].tolist()]

        def seen(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
            def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
                flat = args[0].detach().float().reshape(-1, args[0].shape[-1])
                real = mask[-1].reshape(-1, 1) if mask[-1].numel() == flat.shape[0] else 1.0
                total = (flat * real).square().sum(0)
                squares[name] = squares.get(name, 0) + total

            return hook

        with bundle.reading() as model:
            hooks = [m.register_forward_pre_hook(seen(n)) for n, m in _linears(model)]
            try:
                for start in range(0, len(drawn), bundle.eval_batch):
                    part = drawn[start : start + bundle.eval_batch]
                    batch = collate(part, bundle.tokenizer.pad_token_id, bundle.device)
                    mask.append(batch.mask_BT)
                    outputs(model, batch)
            finally:
                for hook in hooks:
                    hook.remove()
        return {name: total.sqrt() for name, total in squares.items()}


def _linears(model: Any) -> list[tuple[str, nn.Module]]:
    stack, listed = layers(model)
    return [(n, bare(m)) for n, m in below(listed, f"{stack}.") if linear(m) is not None]


@torch.no_grad()
def prune_(module: Any, input_norms: torch.Tensor | None, sparsity: float) -> int:
    """Prune a linear map in place, per output; returns how many weights are now 0 that were not."""
    transposed = type(module).__name__ == "Conv1D"  # [in, out]
    weight = module.weight.T if transposed else module.weight
    score = weight.abs() if input_norms is None else weight.abs() * input_norms.to(weight)
    count = int(sparsity * weight.shape[1])
    lowest = score.topk(count, dim=1, largest=False).indices
    values = weight.gather(1, lowest)
    weight.scatter_(1, lowest, 0.0)
    return int((values != 0).sum())
