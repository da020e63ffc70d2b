"""A verdict as data: what is claimed, on which evidence, how sure, and what would change it.

Every number a report shows is a field here, so that two reports of one verdict cannot differ. Steps
are optimizer steps; `flops` are training FLOPs with forward-only work included. `digests` name the
cells a statement rests on.
"""

from __future__ import annotations

from typing import Any, Literal

from titer.study.base import Strict

VERDICT_FORMAT: Literal[1] = 1

ControlStatus = Literal["broken", "not broken", "missing", "exempt"]
Grade = Literal["demonstration", "release"]
RunStatus = Literal["complete", "incomplete", "invalid"]
GuidelineStatus = Literal["met", "not met", "not applicable"]
Status = Literal["holds", "fails", "inconclusive", "invalid", "not tested"]
ProbeState = Literal["resisting", "ambiguous", "breached", "unconfirmed"]


class Interval(Strict):
    """A confidence interval; None is unbounded on that side. level: of both ends together. Each end
    alone is a one-sided limit at 1 − α, so an interval made at α = 0.05 has level 1 − 2α = 0.9.
    """

    low: float | None
    high: float | None
    level: float


class ProbeView(Strict):
    """One harm reading of one trajectory. low, high: exact one-sided bounds, corrected over the
    run's probes.
    """

    step: int
    flops: float
    harm: float | None
    low: float
    high: float
    state: ProbeState
    capability: float | None = None
    coherence: float | None = None
    confirm: float | None = None


class Trajectory(Strict):
    """One seed of one attack. τ ∈ (last_resisting, first_breached]; no breach: right-censored at
    last_resisting.

    last_resisting: last probe of the initial resisting run, None if the probe at 0 does not resist.
    ambiguous: probe steps at which the reading does not decide. collapsed_at: first probe at which
    capability collapsed.
    """

    seed: int
    digest: str
    digests: tuple[str, ...] = ()
    """All cells behind it: several if each budget was a cell of its own, then `digest` is the
    largest.
    """
    outcome: str
    probes: tuple[ProbeView, ...]
    last_resisting: int | None
    first_breached: int | None
    last_resisting_flops: float | None = None
    first_breached_flops: float | None = None
    ambiguous: tuple[int, ...] = ()
    collapsed_at: int | None = None
    second_judge: float | None = None
    second_judge_state: ProbeState | None = None
    """The second judge's reading at the last probe: `resisting` (surely below φ), `breached`
    (surely not) or `ambiguous`.
    """
    chosen: dict[str, Any] = {}
    """Settings chosen by search, if any."""


class CurvePoint(Strict):
    """Cumulative incidence at a common probe, with simultaneous exact binomial bands.

    breached: runs with a confirmed breach so far. collapsed: runs whose first event was collapse
    (the competing event); such a run counts as breached too from the probe at which harm comes
    back. resisting_lower: 1 − high.
    """

    step: int
    n: int
    breached: int
    low: float
    high: float
    collapsed: int = 0
    resisting_lower: float | None = None
    collapsed_low: float | None = None
    collapsed_high: float | None = None


class BestOf(Strict):
    """Probability that the best of k new seeds breaches by T: what an attacker who tries k times
    may expect.

    low, high: one-sided limits at α each. estimate: plug-in.
    """

    k: int
    low: float
    estimate: float
    high: float


class Descriptive(Strict):
    """A fitted curve of τ. Descriptive only: it enters no verdict. Given only where the data carry
    it, else absent.

    kind: `turnbull` (nonparametric, for runs probed on different grids), `weibull` or `log-normal`.
    median in steps, None beyond the data. points: (step, share not breached). aic: for choosing
    among parametric fits.
    """

    kind: Literal["turnbull", "weibull", "log-normal"]
    median: float | None
    points: tuple[tuple[float, float], ...] = ()
    parameters: dict[str, float] = {}
    aic: float | None = None


class AttackVerdict(Strict):
    """What one attack shows about one candidate.

    control_status: `broken` (breaks M by T in every confirmation seed), `not broken`, `missing`, or
    `exempt` (reference attacks, and the control itself). titer_lower: lower limit (level 1 − alpha)
    of the δ-quantile of τ in steps; None if even that cannot be given (too few seeds).
    breach_upper: one-sided upper bound of the probability that a new seed breaches by T, for this
    attack alone; breach_upper_battery: the same for all attacks of the battery at once
    (Bonferroni). p_value: of 'a new seed breaches by T with probability at least δ', Holm-adjusted
    over the battery (1 where there is no fit evidence): what a claim about this attack alone must
    rest on.
    """

    attack: str
    method: str
    role: Literal["attack", "reference"]
    settings: dict[str, Any]
    status: Status
    reason: str
    control_status: ControlStatus
    n: int
    n_required: int
    breaches: int
    budget: int
    titer_lower: int | None
    titer_lower_flops: float | None
    quantile_budget: Interval | None = None
    """Interval for the q-quantile of τ in steps (order statistics)."""
    quantile_budget_flops: Interval | None = None
    """The same in training FLOPs, the axis on which attacks are compared."""
    median_budget_text: str = ""
    breach_upper: float | None = None
    breach_upper_battery: float | None = None
    p_value: float | None = None
    best_of: tuple[BestOf, ...] = ()
    descriptive: tuple[Descriptive, ...] = ()
    trajectories: tuple[Trajectory, ...] = ()
    curve: tuple[CurvePoint, ...] = ()


class Factor(Strict):
    """Resistance factor: min over attacks of the q-quantile budget of M*, over the same for the
    reference, in FLOPs.
    """

    against: str
    estimate: float | None
    interval: Interval
    quantile: float
    text: str


class Resistance(Strict):
    status: Status
    claim: str
    """The one sentence that may be quoted."""
    harm_construct: str
    adaptive: bool
    """Whether an attack was adapted to this candidate: adaptive by its nature, or searched over at
    least two kinds of settings with the learning rate spanning two orders of magnitude.
    """
    budget: int
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


class BenchmarkVerdict(Strict):
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


class Stability(Strict):
    status: Status
    claim: str
    benchmarks: tuple[BenchmarkVerdict, ...] = ()
    missing: tuple[str, ...] = ()


class MatrixCell(Strict):
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


class Generalization(Strict):
    status: Status
    claim: str
    attack: str = ""
    groups: dict[str, tuple[str, ...]] = {}
    in_domain: Status = "not tested"
    cross_domain: Status = "not tested"
    cross_source: Status = "not tested"
    matrix: tuple[MatrixCell, ...] = ()
    missing: tuple[str, ...] = ()


class TaskVerdict(Strict):
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


class Trainability(Strict):
    status: Status
    claim: str
    tasks: tuple[TaskVerdict, ...] = ()
    missing: tuple[str, ...] = ()


class Flag(Strict):
    """A reason not to believe the evaluation, or to read it with care.

    code: stable name (docs/flags.md has an entry for each). severity: `invalidates` evidence,
    `blocks` a `holds`, or `warns`. where: candidate / attack / benchmark; empty for the whole
    study.
    """

    code: str
    severity: Literal["invalidates", "blocks", "warns"]
    where: str
    explanation: str
    remedy: str
    digests: tuple[str, ...] = ()


class Guideline(Strict):
    """One line of the paper's guidelines, judged from the records, never self-declared. code: what
    `titer audit --require` names.
    """

    code: str = ""
    name: str
    status: GuidelineStatus
    evidence: str


class DefenseCost(Strict):
    """What making M* cost the defender; zeros for a model brought from outside (unknown)."""

    known: bool
    steps: int = 0
    tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0


class CandidateVerdict(Strict):
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
    claim_about: Literal["checkpoint", "method"] = "checkpoint"
    flags: tuple[Flag, ...] = ()


class StudyVerdict(Strict):
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
