"""What a method costs, counted from outside by hooks: steps, examples, tokens, FLOPs, seconds.

FLOPs of a forward pass over B×T positions: 2·P·B·T for the weight matrices (P = sum of in·out over all linear layers,
adapters and vocabulary projection included) plus 4·L·D·B·T² for attention scores and values (no halving for the causal
mask: the kernels used here compute the full square). A backward pass adds 2·P for the gradients of activations and
2·P_trained for those of weights, and twice the attention. Layers below the lowest trained one are counted although
autograd may skip them. Kaplan et al. 2020 (arXiv 2001.08361), section 2.1, with the attention term exact. Forward-only
passes count too. A test compares with torch's own FLOP counter.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn

from titer.records.model import Cost


class Meter:
    """Counts while `running()`; probes run with it stopped."""

    def __init__(self, model: Any, spent: Cost | None = None) -> None:
        spent = spent or Cost()
        self.steps, self.examples, self.tokens = spent.steps, spent.examples, spent.tokens
        self.flops, self.seconds = spent.flops, spent.seconds
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        config = base.config
        self._linear = [m for m in base.modules() if isinstance(m, nn.Linear)]
        self.matrix = sum(m.weight.numel() for m in self._linear)
        self._attention = 4 * config.num_hidden_layers * config.num_attention_heads * (
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )  # fmt: skip
        self._active = False
        self._since = 0.0
        self._trained: int | None = None
        self._hooks = [
            base.register_forward_pre_hook(self._before, with_kwargs=True),
            base.register_forward_hook(self._after),
        ]
        self._pending: tuple[int, int] = (0, 0)

    def _before(self, module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        if not self._active:
            return
        ids = kwargs.get("input_ids", args[0] if args else None)
        shape = ids.shape if ids is not None else kwargs["inputs_embeds"].shape
        rows, width = int(shape[0]), int(shape[1])
        positions = rows * width
        attention = self._attention * rows * width * width
        self.flops += 2 * self.matrix * positions + attention
        self._pending = (positions, attention)
        if torch.is_grad_enabled():
            mask = kwargs.get("attention_mask")
            self.examples += rows
            self.tokens += int(mask.sum()) if mask is not None else positions

    def _after(self, module: Any, args: tuple, output: Any) -> None:
        if self._active and output.logits.requires_grad:
            positions, attention = self._pending
            if self._trained is None:
                self._trained = sum(m.weight.numel() for m in self._linear if m.weight.requires_grad)
            cost = 2 * (self.matrix + self._trained) * positions + 2 * attention

            def backward(gradient: torch.Tensor) -> None:
                self.flops += cost

            output.logits.register_hook(backward)

    def start(self) -> None:
        self._active, self._since = True, time.perf_counter()

    def stop(self) -> None:
        self.seconds += time.perf_counter() - self._since
        self._active = False

    def cost(self) -> Cost:
        return Cost(steps=self.steps, examples=self.examples, tokens=self.tokens, flops=float(self.flops),
                    seconds=round(self.seconds, 6))  # fmt: skip

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()
