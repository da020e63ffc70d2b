"""What every part of a study has in common: frozen, no unknown fields, canonical JSON, a digest."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict


class Contradiction(ValueError):
    """Fields of a study that do not fit together, raised by validators; `load` makes a StudyError of it."""

    def __init__(self, problem: str, *, field: str, value: Any, expected: str, remedy: str) -> None:
        self.problem, self.field, self.value, self.expected, self.remedy = problem, field, value, expected, remedy
        super().__init__(f"{problem} (expected {expected})")


class Strict(BaseModel):
    """A frozen settings object; an unknown field is an error, so that a typo never changes a study silently."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def canonical(value: Any) -> str:
    """Canonical JSON: sorted keys, no spaces, no NaN. Two equal settings always give the same text."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any, length: int = 16) -> str:
    """The first `length` hex digits of the sha256 of the canonical JSON."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:length]
