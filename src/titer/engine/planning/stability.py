"""Condition 2: one look at every candidate before any attack; and the models as loaded."""

from __future__ import annotations

from titer.engine.planning.candidates import Candidates
from titer.engine.planning.pieces import Origin, Pieces
from titer.study.cell import BEFORE_ALIGNMENT, CONTROL_MODEL, CellMeasure, Role


def add(pieces: Pieces, candidates: Candidates) -> None:
    """The harmless benchmarks on every candidate; the model before the study's own alignment too,
    with the harm measure in any case, to show what alignment did."""
    study = pieces.study
    benchmarks = study.stability.benchmarks if study.stability else ()
    looks = tuple(pieces.measure(b.measure, b.name) for b in benchmarks)
    if study.align:
        with_harm = (*looks, pieces.measure(study.resistance.harm, "harm"))
        _look(pieces, candidates.root, BEFORE_ALIGNMENT, with_harm)
    for candidate in study.candidates:
        # A model from elsewhere is looked at in any case: its record tells what was loaded.
        if looks or candidate.model is not None:
            for origin in candidates.every(candidate.name):
                compared = (CONTROL_MODEL,) if candidate.model is not None else ()
                _look(pieces, origin, candidate.name, looks, compared)


def _look(
    pieces: Pieces,
    origin: Origin,
    candidate: str,
    measures: tuple[CellMeasure, ...],
    compared: tuple[str, ...] = (),
) -> None:
    role = Role(purpose="stability", candidate=candidate, defense_seed=origin.defense_seed)
    pieces.add(origin, role, probes=(0,), measures=measures, models=compared)
