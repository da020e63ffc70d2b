"""Synthetic runs and studies for the tests of verdicts and reports, in one place to import from."""

from __future__ import annotations

from helpers.synthetic_cells import BREAKS, GRID, NAN, PROMPTS, RESISTS, cost, facts, reading
from helpers.synthetic_run import Make
from helpers.synthetic_study import (
    BENCH_FACTS,
    GENERALIZATION,
    STABILITY,
    TRAINABILITY,
    bench,
    example_verdict,
    learning,
    realistic,
)

__all__ = [
    "BENCH_FACTS",
    "BREAKS",
    "GENERALIZATION",
    "GRID",
    "NAN",
    "PROMPTS",
    "RESISTS",
    "STABILITY",
    "TRAINABILITY",
    "Make",
    "bench",
    "cost",
    "example_verdict",
    "facts",
    "learning",
    "reading",
    "realistic",
]
