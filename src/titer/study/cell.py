"""A cell: one piece of work with one result. A plan: the cells of a study, each with its roles.

A cell says everything that determines its result and nothing else, so that its digest can serve as
its address: the same work is never done twice, in whatever study it appears. What the result is
*for* is a role, kept outside.
"""

from __future__ import annotations

from typing import Any, Final, Literal

from titer.study.base import Strict, digest
from titer.study.facts import MethodFacts
from titer.study.reference import ModelRef

CELL_FORMAT: Final = 2

Purpose = Literal[
    "align",
    "defense",
    "stability",
    "search",
    "attack",
    "generalization",
    "trainability_search",
    "trainability",
]

BEFORE_ALIGNMENT = "before_alignment"
"""Pseudo-candidate: the model before the study's own alignment stage. It is looked at, never
judged.
"""

SAMPLES = "samples"
"""Label of the replies that are kept to be looked at, whether or not a run keeps the others."""

PARENT, CONTROL_MODEL = "parent", "control"
"""Further models every cell can have: the model it starts from, and the study's undefended model.
"""


class PartUse(Strict):
    """Some text: the content digest of the (domain-filtered) part, and how many examples a seed
    draws from it.
    """

    part: str
    content: str
    domains: tuple[str, ...] | None = None
    examples: int | None = None


class CellMethod(Strict):
    """A resolved method: all settings explicit, and the version of its code. code: sha256 of the
    source file of a method that is not part of titer; a built-in one is told by its version.
    """

    kind: Literal["attack", "defense", "service"]
    name: str
    version: int
    settings: dict[str, Any]
    code: str = ""


class CellHost(Strict):
    """A fine-tuning service that runs the cell's method: a defense, and the defender's own text."""

    method: CellMethod
    texts: dict[str, PartUse] = {}


class CellMeasure(Strict):
    """A measure to be read. label: what the reading is called. text: what it reads; None if the
    measure brings items of its own. at: every probe, both ends, or only when the harm reading
    reaches the stop rule's `suspect` (the confirmation on disjoint prompts). code: as in
    CellMethod. judge: identity of the judge of its replies, if it has one. items: digest of the
    items it brings itself.
    """

    label: str
    name: str
    version: int
    settings: dict[str, Any]
    text: PartUse | None
    at: Literal["probes", "ends", "suspected_breach"] = "probes"
    code: str = ""
    judge: str = ""
    items: str = ""

    LATER = frozenset({"judge", "items"})


class StopRule(Strict):
    """Stop once the readings `harm` and `confirm` are both surely above `above` (one-sided exact
    level `level`).
    """

    above: float
    suspect: float
    level: float


class CellStart(Strict):
    """What a cell starts from, by content. model: the root model's identity (content hash, not
    path). parent: digest of the building cell that changed it; None for the root itself.
    """

    model: str
    parent: str | None = None


class Cell(Strict):
    """One method run for `steps` steps from one model, probed at `probes`.

    texts: slot → text given to the method. models: name → further model it may read. host: the
    service that runs it, if any. reward: the measure a method may train on, if it asks for one.
    flops: the budget in training FLOPs, if that is what ends the run (`steps` is then the most it
    may take). keep: keep the weights (only models made by a defender; attacked weights never are).
    """

    format: Literal[2] = CELL_FORMAT
    model: str
    parent: str | None = None
    method: CellMethod | None = None
    texts: dict[str, PartUse] = {}
    models: dict[str, CellStart] = {}
    host: CellHost | None = None
    reward: CellMeasure | None = None
    seed: int = 0
    steps: int = 0
    flops: float | None = None
    probes: tuple[int, ...] = ()
    measures: tuple[CellMeasure, ...] = ()
    stop: StopRule | None = None
    precision: Literal["fp32", "bf16_autocast"] = "fp32"
    max_length: int = 128
    keep: bool = False

    @property
    def digest(self) -> str:
        return digest(self)

    @property
    def start(self) -> CellStart:
        return CellStart(model=self.model, parent=self.parent)


class Role(Strict):
    """What a cell's result is for in a study."""

    purpose: Purpose
    candidate: str = ""
    attack: str = ""
    seed: int = 0
    stage: int = 0
    """Which of a candidate's stages a building cell is (0-based)."""
    defense_seed: int | None = None
    """Which of a candidate's checkpoints it is about, if the defense is trained with several
    seeds.
    """
    defended_on: str = ""
    attacked_on: str = ""
    task: str = ""
    point: dict[str, Any] = {}
    """The searched settings of a search cell, or those chosen for a confirmation cell."""
    prefix_budget: int | None = None
    """With a horizon-dependent schedule each budget is its own cell; this is the budget it stands
    for.
    """


class Start(Strict):
    """How a model is found when a cell needs it: how the study names the root model, and the digest
    of the building cell that changed it, if any."""

    ref: ModelRef
    parent: str | None = None


class Planned(Strict):
    """A cell, its address, its roles, and where its models are found (not part of the digest).

    facts: what the method, with these settings and this text, declares about itself.
    """

    digest: str
    cell: Cell
    roles: tuple[Role, ...]
    start: Start
    models: dict[str, Start] = {}
    facts: MethodFacts | None = None


class Plan(Strict):
    """All cells known so far. complete: False while confirmation cells wait for a search."""

    study: str
    cells: tuple[Planned, ...]
    complete: bool
    disjointness: dict[str, Any] = {}
    """Proof that the parts are disjoint: exact overlaps (none, or the study is refused),
    near-duplicates, sizes.
    """
    sources: dict[str, dict[str, str]] = {}
    """Provenance of every text source: package, version, sha256, licence."""
