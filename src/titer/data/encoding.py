"""From examples to token batches: chat rendering, response masks, seeded endless streams.

Prompt and response are tokenised apart and joined, so the prompt tokens seen in training are
exactly those seen at evaluation. Loss falls on response tokens only (the end-of-turn token
included), never on prompt or padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError

from titer.data.examples import Example
from titer.data.wording import PLAIN, Wording
from titer.errors import StudyError

UNLIMITED = 1_000_000
"""max_length of sequences that must not be truncated."""
IGNORED = -100
"""Label of positions that carry no loss (torch's default)."""


@dataclass(frozen=True)
class Encoded:
    """Token ids of one prompt and one response. The first `silent` response tokens are read but
    carry no loss (text that a method put before the answer it trains)."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]
    silent: int = 0


@dataclass(frozen=True)
class TokenBatch:
    """input_BT: token ids, right-padded. mask_BT: 1 on real tokens. labels_BT: ids on response
    tokens that carry loss, else −100. first_B: index of each row's first response token.
    """

    input_BT: torch.Tensor
    mask_BT: torch.Tensor
    labels_BT: torch.Tensor
    first_B: tuple[int, ...]

    def rows(self, part: slice) -> TokenBatch:
        """Some of the rows, as a batch of the same width."""
        return TokenBatch(
            self.input_BT[part], self.mask_BT[part], self.labels_BT[part], self.first_B[part]
        )


def messages(example: Example) -> list[dict[str, str]]:
    system = [{"role": "system", "content": example.system}] if example.system else []
    return [*system, {"role": "user", "content": example.prompt}]


def _rendered(tokenizer: Any, chat: list[dict[str, str]], **options: Any) -> str:
    try:
        return str(tokenizer.apply_chat_template(chat, tokenize=False, **options))
    except TemplateError as error:  # e.g. templates that know no system turn
        raise StudyError(
            "the model's chat template refuses a conversation",
            field="chat template",
            value=str(error),
            expected=f"one that takes the turns {', '.join(m['role'] for m in chat)}",
            remedy="use text without a system turn, or correct the template beside the model",
        ) from error


def prompt_text(tokenizer: Any, example: Example, wording: Wording = PLAIN) -> str:
    """The chat-rendered prompt, up to where the assistant begins to speak."""
    chat = messages(wording.applied(example))
    return _rendered(tokenizer, chat, add_generation_prompt=True, **_template(wording))


def response_text(tokenizer: Any, example: Example, response: str, wording: Wording = PLAIN) -> str:
    """`response` as the template would render it after the prompt, end of turn included."""
    opening = prompt_text(tokenizer, example, wording)
    chat = [*messages(wording.applied(example)), {"role": "assistant", "content": response}]
    full = _rendered(tokenizer, chat, **_template(wording))
    # Templates that rewrite earlier turns once an answer exists cannot be split this way; use the
    # end token alone.
    rest = (
        full[len(opening) :] if full.startswith(opening) else response + (tokenizer.eos_token or "")
    )
    return rest.rstrip("\n")


def _template(wording: Wording) -> dict[str, str]:
    return {} if wording.template is None else {"chat_template": wording.template}


_CUT = "\u2e22placeholders\u2e23"
"""Stands in the user's turn where soft-prompt positions go, while the template is rendered."""


def _ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


# Rendering a chat template costs more than a small model's forward pass, and probes read the same
# prompts again and again; a tokenizer is never changed once loaded, so its encodings can be
# remembered.
@lru_cache(maxsize=65_536)
def encode_prompt(
    tokenizer: Any, example: Example, wording: Wording = PLAIN, placeholder: int = 0
) -> tuple[int, ...]:
    """Token ids of the prompt under a wording. placeholder: id of the first soft-prompt position;
    they follow the prompt within the user's turn. Ask through `ModelBundle.prompt`.

    Raises StudyError if the template refuses the turns, or does not show the prompt once.
    """
    if not wording.placeholders:
        return _ids(tokenizer, prompt_text(tokenizer, example, wording))
    marked = replace(wording, wrapper=f"{wording.wrapper}{_CUT}")
    before, cut, after = prompt_text(tokenizer, example, marked).partition(_CUT)
    if not cut or _CUT in after:
        raise StudyError(
            "the model's chat template does not show the prompt exactly once",
            field="chat template",
            value=str(tokenizer.chat_template)[:80],
            expected="one that renders the user's turn as it is, so that a soft prompt has a place",
        )
    soft = range(placeholder, placeholder + wording.placeholders)
    return (*_ids(tokenizer, before), *soft, *_ids(tokenizer, after))


@lru_cache(maxsize=65_536)
def encode(
    tokenizer: Any,
    example: Example,
    response: str,
    max_length: int,
    wording: Wording = PLAIN,
    placeholder: int = 0,
) -> Encoded:
    """Prompt and response ids, the response cut so that both fit into max_length tokens. Ask
    through `ModelBundle.encode`."""
    prompt = encode_prompt(tokenizer, example, wording, placeholder)
    answer = _ids(tokenizer, response_text(tokenizer, example, response, wording))
    return Encoded(prompt, answer[: max(0, max_length - len(prompt))])


def collate(rows: Sequence[Encoded], pad: int, device: torch.device | str = "cpu") -> TokenBatch:
    """Right-padded batch; loss labels on the responses only, but for their silent beginning."""
    width = max(len(r.prompt) + len(r.response) for r in rows)
    input_BT = np.full((len(rows), width), pad, dtype=np.int64)
    mask_BT = np.zeros((len(rows), width), dtype=np.int64)
    labels_BT = np.full((len(rows), width), IGNORED, dtype=np.int64)
    for i, row in enumerate(rows):
        p, n = len(row.prompt), len(row.prompt) + len(row.response)
        input_BT[i, :p], input_BT[i, p:n] = row.prompt, row.response
        mask_BT[i, :n] = 1
        labels_BT[i, p + row.silent : n] = row.response[row.silent :]
    return TokenBatch(
        torch.from_numpy(input_BT).to(device),
        torch.from_numpy(mask_BT).to(device),
        torch.from_numpy(labels_BT).to(device),
        first_B=tuple(len(r.prompt) for r in rows),
    )


class Stream:
    """An endless, seeded sequence of batches over rows, reshuffled every epoch.

    `indices(t)` is a pure function of (seed, t): there is no hidden position, so resuming needs
    nothing but t.
    """

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        if count < 1:
            raise StudyError(
                "there is nothing to draw batches from",
                field="data",
                value=count,
                expected="at least one example",
            )
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self._epochs: dict[int, np.ndarray] = {}

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._epochs:
            if len(self._epochs) > 4:
                self._epochs.clear()
            self._epochs[epoch] = np.random.default_rng([self.seed, epoch]).permutation(self.count)
        return self._epochs[epoch]

    def indices(self, step: int) -> list[int]:
        """Row indices of the batch of step `step` (0-based); a batch may straddle two epochs."""
        start = step * self.batch_size
        return [
            int(self._order(i // self.count)[i % self.count])
            for i in range(start, start + self.batch_size)
        ]
