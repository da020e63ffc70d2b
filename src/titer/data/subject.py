"""A model in hand, with all that is needed to feed it text."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch


@dataclass
class Subject:
    """model: transformers causal LM with fp32 master weights. max_length: tokens of a training sequence.

    eval_batch: rows of a measuring forward pass (does not change results beyond rounding).
    """

    model: Any
    tokenizer: Any
    device: torch.device
    precision: Literal["fp32", "bf16_autocast"] = "fp32"
    max_length: int = 128
    eval_batch: int = 32

    def autocast(self) -> AbstractContextManager:
        """Mixed precision for forward passes, where the study asks for it; the weights stay fp32."""
        if self.precision == "bf16_autocast":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()
