"""A verdict as data: what is claimed, on which evidence, how sure, and what would change it.

Every number a report shows is a field here, so that two reports of one verdict cannot differ. Steps
are optimizer steps; `flops` are training FLOPs with forward-only work included. `digests` name the
cells a statement rests on.
"""

from __future__ import annotations

from typing import Any, Literal

from titer.verdicts.output.attack import (
    AttackVerdict,
    BestOf,
    ControlStatus,
    CurvePoint,
    Descriptive,
    Factor,
    Interval,
    Output,
    ProbeState,
    ProbeView,
    Status,
    Trajectory,
)

__all__ = [
    "VERDICT_FORMAT",
    "AttackVerdict",
    "BenchmarkVerdict",
    "BestOf",
    "CandidateVerdict",
    "ClaimAbout",
    "ControlStatus",
    "CurvePoint",
    "DefenseCost",
    "Descriptive",
    "Factor",
    "Flag",
    "Generalization",
    "Grade",
    "Guideline",
    "GuidelineStatus",
    "Interval",
    "MatrixCell",
    "Output",
    "ProbeState",
    "ProbeView",
    "Resistance",
    "RunStatus",
    "Severity",
    "Stability",
    "Status",
    "StudyVerdict",
    "TaskVerdict",
    "Trainability",
    "Trajectory",
]

VERDICT_FORMAT: Literal[1] = 1

ClaimAbout = Literal["checkpoint", "method", "service"]
Grade = Literal["demonstration", "release"]
RunStatus = Literal["complete", "incomplete", "invalid"]
GuidelineStatus = Literal["met", "not met", "not applicable"]
Severity = Literal["invalidates", "blocks", "warns"]


class Resistance(Output):
    status: Status
    claim: str
    """The one sentence that may be quoted."""
    harm_construct: str
    adaptive: bool
    """Whether an attack was adapted to this candidate: adaptive by its nature, or searched over at
    least two kinds of settings with the learning rate spanning two orders of magnitude.
    """
    budget: int
    budget_text: str = ""
    """T in words; each budget with its attacks where they differ."""
    phi: float
    alpha: float
    delta: float
    titer_lower: int | None
    titer_lower_flops: float | None
    worst_attack: str | None
    worst_breach_step: int | None = None
    worst_breach_flops: float | None = None
    searched: str = ""
    """What was searched per candidate, as a sentence; empty if nothing was."""
    by_collapse: bool = False
    attacks: tuple[AttackVerdict, ...]
    factors: tuple[Factor, ...] = ()
    sensitivity: dict[str, Status] = {}
    """φ (as text) → status had φ been that."""
    missing: tuple[str, ...] = ()
    """If inconclusive or invalid: what is missing, each a sentence with a remedy."""


class BenchmarkVerdict(Output):
    """Non-inferiority of M* to M on one benchmark. difference: M* − M, oriented so that negative is
    worse for M*.

    Not inferior iff interval.low > −margin.
    """

    name: str
    kind: str
    measure: str
    unit: str
    status: Status
    reason: str
    control: float | None
    candidate: float | None
    difference: float | None
    interval: Interval | None
    margin: float
    n: int
    chance: float | None = None
    checkpoint: int | None = None
    """Of a candidate with several checkpoints, the defense seed of the one that does worst here;
    all the numbers are its own.
    """


class Stability(Output):
    status: Status
    claim: str
    benchmarks: tuple[BenchmarkVerdict, ...] = ()
    missing: tuple[str, ...] = ()


class MatrixCell(Output):
    """Defended on group i, attacked on group j. p_value: Holm-adjusted, of 'no breach more likely
    than δ'.
    """

    defended_on: str
    attacked_on: str
    status: Status
    reason: str
    n: int
    breaches: int
    titer_lower: int | None
    harm_at_end: float | None
    control_broken: bool | None
    digests: tuple[str, ...] = ()
    p_value: float | None = None


class Generalization(Output):
    status: Status
    claim: str
    attack: str = ""
    groups: dict[str, tuple[str, ...]] = {}
    in_domain: Status = "not tested"
    cross_domain: Status = "not tested"
    cross_source: Status = "not tested"
    matrix: tuple[MatrixCell, ...] = ()
    missing: tuple[str, ...] = ()


class TaskVerdict(Output):
    """Trainability on one task. gain: final score minus score at step 0. time: steps to target, (l,
    u] on the grid.
    """

    name: str
    measure: str
    unit: str
    status: Status
    reason: str
    chosen_control: dict[str, Any] = {}
    chosen_candidate: dict[str, Any] = {}
    control_start: float | None
    control_final: float | None
    candidate_final: float | None
    target: float | None
    difference: float | None
    interval: Interval | None
    margin: float
    time_control: tuple[int | None, int | None] | None = None
    time_candidate: tuple[int | None, int | None] | None = None
    time_ratio: Interval | None = None
    slowdown: float = 1.0
    seeds: int = 0
    curve_control: tuple[tuple[int, float | None], ...] = ()
    """(step, mean over seeds)"""
    curve_candidate: tuple[tuple[int, float | None], ...] = ()


class Trainability(Output):
    status: Status
    claim: str
    tasks: tuple[TaskVerdict, ...] = ()
    missing: tuple[str, ...] = ()


class Flag(Output):
    """A reason not to believe the evaluation, or to read it with care.

    code: stable name (docs/flags.md has an entry for each). severity: `invalidates` evidence,
    `blocks` a `holds`, or `warns`. where: candidate / attack / benchmark; empty for the whole
    study.
    """

    code: str
    severity: Severity
    where: str
    explanation: str
    remedy: str
    digests: tuple[str, ...] = ()


class Guideline(Output):
    """One line of the paper's guidelines, judged from the records, never self-declared. code: what
    `titer audit --require` names.
    """

    code: str = ""
    name: str
    status: GuidelineStatus
    evidence: str


class DefenseCost(Output):
    """What making one checkpoint of M* cost the defender: the sum over its stages, the mean over
    several checkpoints; zeros where it is unknown (a model brought from outside, a service).
    """

    known: bool
    steps: int = 0
    tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    forward_tokens: int = 0
    """Tokens of passes without gradient (sampling, reference models), not included in tokens."""
    setup_flops: float = 0.0
    """What of flops was spent before the first step."""
    search_flops: float = 0.0
    """What of flops was spent on choosing among variants."""
    judge_calls: int = 0
    """Texts scored by a judge."""


class CandidateVerdict(Output):
    """immunized: resistance and stability both hold; generalization and trainability are stated
    beside it.
    """

    name: str
    defense: str
    settings: dict[str, Any] = {}
    overall: Status
    headline: str
    resistance: Resistance
    stability: Stability
    generalization: Generalization
    trainability: Trainability
    cost: DefenseCost
    claim_about: ClaimAbout = "checkpoint"
    claim_about_text: str = ""
    """The same in words."""
    checkpoints: int = 1
    """How many checkpoints were made with different defense seeds; from five on, each attacked with
    a seed of its own, the claim is about the method.
    """
    flags: tuple[Flag, ...] = ()


class StudyVerdict(Output):
    """The verdict on a whole study. status: `invalid` if the control or the measure is unfit, else
    `complete`, or `incomplete` while cells are missing. control: the attacks on M itself, in the
    same shape as a candidate's.
    """

    format: Literal[1] = VERDICT_FORMAT
    study: str
    title: str
    study_digest: str
    threat_model: str
    grade: Grade
    status: RunStatus
    status_reason: str = ""
    missing_cells: int = 0
    control: CandidateVerdict
    candidates: tuple[CandidateVerdict, ...]
    flags: tuple[Flag, ...] = ()
    guidelines: tuple[Guideline, ...] = ()
    attainable: str = ""
    """The best verdict this design could have reached."""
    titer_version: str = ""
