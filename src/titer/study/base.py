"""Base of all parts of a study: frozen models without unknown fields, canonical JSON, digests."""

from __future__ import annotations

import hashlib
import json
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_serializer


class Contradiction(ValueError):
    """Fields of a study that do not fit together, raised by validators; `load` makes a StudyError
    of it.
    """

    def __init__(
        self, problem: str, *, field: str, value: Any, expected: str, remedy: str | None = None
    ) -> None:
        self.problem, self.field, self.value, self.expected, self.remedy = (
            problem,
            field,
            value,
            expected,
            remedy,
        )
        super().__init__(f"{problem} (expected {expected})")


class Strict(BaseModel):
    """A frozen settings object; an unknown field is an error, so that a typo never changes a study
    silently.

    LATER: fields that were added after records existed. At their default they are not written, so
    that a new field changes no digest: adding one to a study, a cell or a record means naming it
    here.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    LATER: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _without_later(self, handler: Any) -> Any:
        body = handler(self)
        for name in self.LATER:
            if getattr(self, name) == type(self).model_fields[name].get_default(
                call_default_factory=True
            ):
                body.pop(name, None)
        return body


def canonical(value: Any) -> str:
    """Canonical JSON: sorted keys, no spaces, no NaN. Equal settings always give the same text."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def digest(value: Any, length: int = 16) -> str:
    """The first `length` hex digits of the sha256 of the canonical JSON."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:length]
