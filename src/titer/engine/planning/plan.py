"""The plan of a study, condition by condition.

Planning is repeated as results come in: cells that wait for a search are planned once its cells
have records. It is a pure function of (study, text, records), so an interrupted run plans the same
again.
"""

from __future__ import annotations

from titer.data.pools import Pools
from titer.engine.planning import generalization, resistance, stability, trainability
from titer.engine.planning.candidates import Candidates
from titer.engine.planning.pieces import Known, Pieces
from titer.study.cell import Plan
from titer.study.plugins import load_plugins
from titer.study.spec import Study


def plan(study: Study, pools: Pools, known: Known) -> Plan:
    """All cells that can be planned now. Raises StudyError, UnknownNameError, ThreatModelError,
    AssetError."""
    load_plugins(study.plugins)
    pieces = Pieces(study, pools, known)
    # Breadth first over purposes, so that a killed run leaves whole conditions rather than half of
    # everything.
    candidates = Candidates(pieces)
    stability.add(pieces, candidates)
    chosen = resistance.add(pieces, candidates)
    generalization.add(pieces, candidates, chosen)
    trainability.add(pieces, candidates)
    return pieces.plan()
