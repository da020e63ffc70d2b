"""A loaded model with its tokenizer, device and wording."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from titer.data.encoding import UNLIMITED, Encoded, encode, encode_prompt
from titer.data.examples import Example
from titer.data.wording import PLAIN, Wording


@dataclass(frozen=True)
class ModelBundle:
    """model: transformers causal LM with fp32 master weights. max_length: tokens of a training
    sequence. eval_batch: rows of a measuring forward pass (changes results by rounding at most).

    wording: how this model is asked. `prompt` and `encode` are the only way to turn an example into
    tokens, so that training, measuring and judging use the same words.
    """

    model: Any
    tokenizer: Any
    device: torch.device
    precision: Literal["fp32", "bf16_autocast"] = "fp32"
    max_length: int = 128
    eval_batch: int = 32
    wording: Wording = PLAIN

    def having(self, **changes: Any) -> ModelBundle:
        """The bundle with some fields replaced: another model, another wording."""
        return replace(self, **changes)

    def autocast(self) -> AbstractContextManager[Any]:
        """Mixed precision for forward passes where the study asks for it; the weights stay fp32."""
        if self.precision == "bf16_autocast":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()

    @contextmanager
    def reading(self) -> Iterator[Any]:
        """The model in evaluation mode, without gradient, under `autocast`; then its mode again."""
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad(), self.autocast():
                yield self.model
        finally:
            self.model.train(training)

    @property
    def placeholder(self) -> int:
        """Token id of the first soft-prompt placeholder: the first beyond the embedding's rows, so
        that no text can contain it. Placeholder k has this id + k."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    def prompt(self, example: Example) -> tuple[int, ...]:
        """Token ids of the prompt as this model is asked, up to where it begins to speak."""
        first = self.placeholder if self.wording.placeholders else 0
        return encode_prompt(self.tokenizer, example, self.wording, first)

    def encode(self, example: Example, answer: str, max_length: int | None = None) -> Encoded:
        """Ids of prompt and answer; the answer is cut so that both fit into max_length tokens
        (`UNLIMITED` if None)."""
        most = UNLIMITED if max_length is None else max_length
        first = self.placeholder if self.wording.placeholders else 0
        return encode(self.tokenizer, example, answer, most, self.wording, first)
