"""A cell: one piece of work with one result. A plan: the cells of a study, each with the roles its result plays.

A cell says everything that determines its result and nothing else, so that its digest can serve as its address:
the same work is never done twice, in whatever study it appears. What the result is *for* is a role, kept outside.
"""

from __future__ import annotations

from typing import Any, Final, Literal

from titer.study.base import Strict, digest

CELL_FORMAT: Final = 1

Purpose = Literal[
    "align", "defense", "stability", "search", "attack", "generalization", "trainability_search", "trainability"
]


BEFORE_ALIGNMENT = "before_alignment"
"""Pseudo-candidate: the model before the study's own alignment stage. It is looked at, never judged."""


class PartUse(Strict):
    """Some text: the content digest of the (domain-filtered) part, and how many examples a seed draws from it."""

    part: str
    content: str
    domains: tuple[str, ...] | None = None
    examples: int | None = None


class CellMethod(Strict):
    """A resolved method: all settings explicit, and the version of its code."""

    kind: Literal["attack", "defense"]
    name: str
    version: int
    settings: dict[str, Any]


class CellMeasure(Strict):
    """A measure to be read. label: what the reading is called. at: every probe, both ends, or only when the harm
    reading reaches `when_above` (the confirmation on disjoint prompts)."""

    label: str
    name: str
    version: int
    settings: dict[str, Any]
    text: PartUse
    at: Literal["probes", "ends", "suspected_breach"] = "probes"


class StopRule(Strict):
    """Stop once the readings `harm` and `confirm` are both surely above `above` (one-sided exact level `level`)."""

    above: float
    suspect: float
    level: float


class Cell(Strict):
    """One method driven for `steps` optimizer steps from one model, probed at `probes`.

    model: the root model's identity (content hash, not path). parent: digest of the building cell whose weights this
    one starts from; None for the root itself. keep: keep the weights (only models made by a defender; attacked
    weights are never kept). horizon: True when the schedule depends on `steps`, so no prefix may be read off.
    """

    format: Literal[1] = CELL_FORMAT
    model: str
    parent: str | None = None
    method: CellMethod | None = None
    harmful: PartUse | None = None
    harmless: PartUse | None = None
    seed: int = 0
    steps: int = 0
    probes: tuple[int, ...] = ()
    measures: tuple[CellMeasure, ...] = ()
    stop: StopRule | None = None
    precision: Literal["fp32", "bf16_autocast"] = "fp32"
    max_length: int = 128
    keep: bool = False

    @property
    def digest(self) -> str:
        return digest(self)


class Role(Strict):
    """What a cell's result is for in a study."""

    purpose: Purpose
    candidate: str = ""
    attack: str = ""
    seed: int = 0
    defended_on: str = ""
    attacked_on: str = ""
    task: str = ""
    point: dict[str, Any] = {}
    """The searched settings of a search cell, or those chosen for a confirmation cell."""
    prefix_budget: int | None = None
    """With a horizon-dependent schedule each budget is its own cell; this is the budget it stands for."""


class Planned(Strict):
    """A cell, its address, and its roles."""

    digest: str
    cell: Cell
    roles: tuple[Role, ...]
    model_name: str
    """How the study names the root model (to load it); not part of the digest."""


class Plan(Strict):
    """All cells known so far. complete: False while the confirmation cells wait for the result of a search."""

    study: str
    cells: tuple[Planned, ...]
    complete: bool
    disjointness: dict[str, Any] = {}
    """Proof that the parts are disjoint: exact overlaps (none, or the study is refused), near-duplicates, sizes."""
    sources: dict[str, dict[str, str]] = {}
    """Provenance of every text source: package, version, sha256, licence."""
    methods: dict[str, dict[str, Any]] = {}
    """Facts about each method by name: kind, role, stage, adapter, horizon_free ... as the registry declares them."""
