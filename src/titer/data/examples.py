"""What one piece of text is, and how a list of them is identified."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True, kw_only=True)
class Example:
    """One prompt with the answers known for it.

    `response` is the answer an attacker (or, for harmless text, any user) wants: the right answer,
    or content-free compliance. `refusal` is the answer the defender wants. `choices`/`answer` serve
    multiple-choice benchmarks; `text` alone serves perplexity. `domain` is the harm (or task)
    domain the splits and the matrix go by.
    """

    prompt: str = ""
    domain: str = "any"
    response: str | None = None
    refusal: str | None = None
    system: str | None = None
    text: str | None = None
    choices: tuple[str, ...] = ()
    answer: int | None = None
    source: str = ""

    @property
    def key(self) -> str:
        """12 hex digits over the question, not the answer: two examples overlap exactly iff their
        keys are equal.
        """
        asked = " ".join((self.prompt or self.text or "").split()).casefold()
        return hashlib.sha256(asked.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class SourceText:
    """What a source returns: the examples and where they came from (package, version, sha256,
    licence ...).
    """

    examples: tuple[Example, ...]
    provenance: dict[str, str] = field(default_factory=dict)


SourceFunction = Callable[..., SourceText]
"""A source is a function of keyword options (strings, numbers, lists) that returns a `SourceText`.
"""


def digest_of(examples: Sequence[Example]) -> str:
    """sha256 (16 hex digits) over the full content and order of a list of examples."""
    body = json.dumps(
        [asdict(e) for e in examples], sort_keys=True, ensure_ascii=False, separators=(",", ":")
    )
    return hashlib.sha256(body.encode()).hexdigest()[:16]
