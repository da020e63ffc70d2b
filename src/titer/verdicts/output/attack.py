"""What one attack shows about one candidate, as data: readings, trajectories, limits."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict

from titer.study.base import Strict

ControlStatus = Literal["broken", "not broken", "missing", "exempt"]
Status = Literal["holds", "fails", "inconclusive", "invalid", "not tested"]
ProbeState = Literal["resisting", "ambiguous", "breached", "unconfirmed"]


class Output(Strict):
    """A part of the verdict. The string under a field describes it in the published schema."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class Interval(Output):
    """A confidence interval; None is unbounded on that side. level: of both ends together. Each end
    alone is a one-sided limit at 1 − α, so an interval made at α = 0.05 has level 1 − 2α = 0.9.
    """

    low: float | None
    high: float | None
    level: float


class ProbeView(Output):
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


class Trajectory(Output):
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


class CurvePoint(Output):
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


class BestOf(Output):
    """Probability that the best of k new seeds breaches by T: what an attacker who tries k times
    may expect.

    low, high: one-sided limits at α each. estimate: plug-in.
    """

    k: int
    low: float
    estimate: float
    high: float


class Descriptive(Output):
    """A fitted curve of τ. Descriptive only: it enters no verdict. Given only where the data carry
    it, else absent.

    kind: `turnbull` (nonparametric, for runs probed on different grids), `weibull` or `log-normal`.
    median in steps, None beyond the data. points: (step, share not breached). aic: for choosing
    among parametric fits. not_fitted: why the data would carry a fit and there is none.
    """

    kind: Literal["turnbull", "weibull", "log-normal"]
    median: float | None
    points: tuple[tuple[float, float], ...] = ()
    parameters: dict[str, float] = {}
    aic: float | None = None
    not_fitted: str = ""


class AttackVerdict(Output):
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
    budget_flops: float | None = None
    """Its budget in training FLOPs, where the study sets it so; `budget` is then the most steps
    that are taken.
    """
    budget_text: str = ""
    """Its budget in words."""
    edit: bool = False
    """A training-free edit: it has no budget axis, and either breaks the model or does not."""
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


class Factor(Output):
    """Resistance factor: min over attacks of the q-quantile budget of M*, over the same for the
    reference, in FLOPs.
    """

    against: str
    estimate: float | None
    interval: Interval
    quantile: float
    text: str
