"""Wording of claims: what f means decides what may be said about it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

NOUNS = {
    "refusal removal": "refusal removal",
    "harmfulness": "harmfulness",
    "exact": "the rate of exactly right forbidden answers",
}


def noun(construct: str) -> str:
    """What f may be called. A measure that declares no harm construct is called f and nothing
    more.
    """
    return NOUNS.get(construct, "f")


def flops(value: float | None) -> str:
    """`1.2e+13 FLOPs`; an unknown cost is said to be unknown."""
    return "an unknown cost" if value is None else f"{value:.3g} FLOPs"


def steps(value: int) -> str:
    """`1 optimizer step`, `8 optimizer steps`."""
    return f"{value} optimizer step" + ("" if value == 1 else "s")


def edits(value: int) -> str:
    """`1 edit`, `3 edits`."""
    return f"{value} edit" + ("" if value == 1 else "s")


def listed(items: Sequence[object]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    names = [str(i) for i in items]
    return (
        names[0]
        if len(names) == 1
        else ", ".join(names[:-1]) + " and " + names[-1]
        if names
        else "none"
    )


def shared_budgets(budgets: Iterable[tuple[str, str, str]]) -> str:
    """One budget for all: `64 optimizer steps`; else each with the attacks that have it: `64
    optimizer steps (full_sft, lora_sft) and 1 edit (prune)`.

    budgets: (attack, its budget, a remark about it, e.g. what it cost; may be empty).
    """
    found: dict[str, list[str]] = {}
    for name, budget, remark in budgets:
        found.setdefault(budget, []).append(f"{name}: {remark}" if remark else name)
    if len(found) < 2:
        return next(iter(found), "")
    return listed([f"{budget} ({', '.join(names)})" for budget, names in found.items()])
