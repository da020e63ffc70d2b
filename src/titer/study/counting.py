"""Numbers of things in words, for every message and report."""

from __future__ import annotations


def counted(n: int, noun: str, plural: str | None = None) -> str:
    """`1 seed`, `5 seeds`, `0 matrices`; plural: where it is not the noun with an `s`."""
    return f"{n} {noun if n == 1 else plural or noun + 's'}"
