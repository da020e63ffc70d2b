"""Wording of claims: what f means decides what may be said about it."""

from __future__ import annotations

from collections.abc import Sequence

NOUNS = {
    "refusal removal": "refusal removal",
    "harmfulness": "harmfulness",
    "exact": "the rate of exactly right forbidden answers",
}


def noun(construct: str) -> str:
    """What f may be called. A measure that declares no harm construct is called f and nothing more."""
    return NOUNS.get(construct, "f")


def flops(value: float | None) -> str:
    """`1.2e+13 FLOPs`; an unknown cost is said to be unknown."""
    return "an unknown cost" if value is None else f"{value:.3g} FLOPs"


def steps(value: int) -> str:
    """`1 optimizer step`, `8 optimizer steps`."""
    return f"{value} optimizer step" + ("" if value == 1 else "s")


def listed(items: Sequence[object]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    names = [str(i) for i in items]
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1] if names else "none"
