"""From examples to token batches: chat rendering, response masks, seeded endless streams.

Prompt and response are tokenised apart and joined, so the prompt tokens seen in training are exactly those seen at
evaluation. Loss falls on response tokens only (the end-of-turn token included), never on prompt or padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError

from titer.data.examples import Example
from titer.errors import StudyError

UNLIMITED = 1_000_000
"""max_length for what must not be cut."""
IGNORED = -100
"""Label of positions that carry no loss (torch's default)."""


@dataclass(frozen=True)
class Encoded:
    """Token ids of one prompt and one response."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]


@dataclass(frozen=True)
class TokenBatch:
    """input_BT: token ids, right-padded. mask_BT: 1 on real tokens. labels_BT: ids on response tokens, else −100."""

    input_BT: torch.Tensor
    mask_BT: torch.Tensor
    labels_BT: torch.Tensor


def messages(example: Example) -> list[dict[str, str]]:
    system = [{"role": "system", "content": example.system}] if example.system else []
    return [*system, {"role": "user", "content": example.prompt}]


def _rendered(tokenizer: Any, chat: list[dict[str, str]], **options: Any) -> str:
    try:
        return tokenizer.apply_chat_template(chat, tokenize=False, **options)
    except TemplateError as error:  # e.g. templates that know no system turn
        raise StudyError("the model's chat template refuses a conversation", field="chat template", value=str(error),
                         expected=f"one that takes the turns {', '.join(m['role'] for m in chat)}",
                         remedy="use text without a system turn, or mend the template beside the model") from error  # fmt: skip


def prompt_text(tokenizer: Any, example: Example) -> str:
    """The chat-rendered prompt, up to where the assistant begins to speak."""
    return _rendered(tokenizer, messages(example), add_generation_prompt=True)


def response_text(tokenizer: Any, example: Example, response: str) -> str:
    """`response` as the template would render it after the prompt, end of turn included."""
    opening = prompt_text(tokenizer, example)
    full = _rendered(tokenizer, [*messages(example), {"role": "assistant", "content": response}])
    # Templates that rewrite earlier turns once an answer exists cannot be cut this way; the end token alone is right.
    rest = full[len(opening) :] if full.startswith(opening) else response + (tokenizer.eos_token or "")
    return rest.rstrip("\n")


# Rendering a chat template costs more than a small model's forward pass, and probes read the same prompts again and
# again; a tokenizer is never changed once loaded, so its encodings can be remembered.
@lru_cache(maxsize=65_536)
def encode_prompt(tokenizer: Any, example: Example) -> tuple[int, ...]:
    return tuple(tokenizer(prompt_text(tokenizer, example), add_special_tokens=False)["input_ids"])


@lru_cache(maxsize=65_536)
def encode(tokenizer: Any, example: Example, response: str, max_length: int) -> Encoded:
    """Prompt and response ids, the response cut so that both fit into max_length tokens."""
    prompt = encode_prompt(tokenizer, example)
    answer = tokenizer(response_text(tokenizer, example, response), add_special_tokens=False)["input_ids"]
    return Encoded(prompt, tuple(answer[: max(0, max_length - len(prompt))]))


def encode_all(
    tokenizer: Any, examples: Sequence[Example], field: str, max_length: int, *, least: int = 1
) -> list[Encoded]:
    """Every example with its `field` ('response' or 'refusal') as the answer.

    Examples whose prompt leaves no room for `least` answer tokens are left out: an empty loss mask teaches nothing and
    has corrupted published runs. Raises StudyError if the field is missing or nothing is left.
    """
    absent = sum(getattr(e, field) is None for e in examples)
    if absent:
        raise StudyError(f"{absent} of {len(examples)} examples have no {field}", field=field, value=None,
                         expected=f"a {field} for every training example",
                         remedy="set respond/refuse on the pool, or use text that has answers")  # fmt: skip
    encoded = [encode(tokenizer, e, getattr(e, field), max_length) for e in examples]
    kept = [e for e in encoded if len(e.response) >= least]
    if not kept:
        raise StudyError(
            "no training example fits", field="runtime.max_length", value=max_length,
            expected=f"room for the prompt and at least {least} answer token(s)", remedy="raise runtime.max_length",
        )  # fmt: skip
    return kept


def unfit(tokenizer: Any, examples: Sequence[Example], field: str, max_length: int) -> tuple[int, int, int]:
    """(cut, left out, all): how many answers `encode` shortens, and how many examples have no room for any of it."""
    given = [e for e in examples if getattr(e, field) is not None]
    whole = [encode(tokenizer, e, getattr(e, field), UNLIMITED) for e in given]
    lost = sum(len(e.prompt) >= max_length for e in whole)
    long = sum(len(e.prompt) + len(e.response) > max_length for e in whole)
    return long - lost, lost, len(given)


def collate(rows: Sequence[Encoded], pad: int, device: torch.device | str = "cpu") -> TokenBatch:
    """Right-padded batch; loss labels on the responses only."""
    width = max(len(r.prompt) + len(r.response) for r in rows)
    input_BT = np.full((len(rows), width), pad, dtype=np.int64)
    mask_BT = np.zeros((len(rows), width), dtype=np.int64)
    labels_BT = np.full((len(rows), width), IGNORED, dtype=np.int64)
    for i, row in enumerate(rows):
        p, n = len(row.prompt), len(row.prompt) + len(row.response)
        input_BT[i, :p], input_BT[i, p:n] = row.prompt, row.response
        mask_BT[i, :n] = 1
        labels_BT[i, p:n] = row.response
    return TokenBatch(*(torch.from_numpy(a).to(device) for a in (input_BT, mask_BT, labels_BT)))


class Stream:
    """An endless, seeded sequence of batches over rows, reshuffled every epoch.

    `indices(t)` is a pure function of (seed, t): there is no hidden position, so resuming needs nothing but t.
    """

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        if count < 1:
            raise StudyError("there is nothing to draw batches from", field="data", value=count,
                             expected="at least one example", remedy="give the method data")  # fmt: skip
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
        return [int(self._order(i // self.count)[i % self.count]) for i in range(start, start + self.batch_size)]
