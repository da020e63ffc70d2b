"""Verdicts: records in, verdict out. Pure functions, no torch."""

from titer.verdicts.design.attainable import attainable, required_seeds
from titer.verdicts.judge import judge
from titer.verdicts.output.verdict import StudyVerdict

__all__ = ["StudyVerdict", "attainable", "judge", "required_seeds"]
