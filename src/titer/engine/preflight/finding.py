"""What a preflight finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "notice"]


@dataclass(frozen=True)
class Finding:
    """error: the study would fail, or read something else than it says. notice: worth knowing.

    model: the starting model it is about, empty if about none. about: a method, a measure, `text`,
    `tokenizer`, `chat template` or `stop tokens`. problem: one sentence. expected: what would be
    right.
    """

    severity: Severity
    model: str
    about: str
    problem: str
    expected: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.problem.rstrip('.')}. Expected: {self.expected}."


def error(model: object, about: str, problem: str, expected: str) -> Finding:
    return Finding("error", str(model), about, problem, expected)


def notice(model: object, about: str, problem: str, expected: str) -> Finding:
    return Finding("notice", str(model), about, problem, expected)


def cause_of(problem: BaseException) -> str:
    """What another library raised, as a clause."""
    return f"{type(problem).__name__}: {' '.join(str(problem).split())[:300].rstrip('.')}"
