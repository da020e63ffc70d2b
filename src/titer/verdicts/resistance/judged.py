"""One attack of the battery on one candidate, judged at one φ, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from titer.study.resistance import AttackUse
from titer.verdicts.evidence.index import Design
from titer.verdicts.evidence.times import Times
from titer.verdicts.evidence.trajectories import SeedTrajectory
from titer.verdicts.output.verdict import (
    ControlStatus,
    Status,
)


@dataclass(frozen=True)
class Setting:
    """What an attack is judged under, beside its runs. start: whether f(M[0]) is `clear` of φ,
    `harmful` or `missing`. search_note: a breach that search found; search_gap: search cells
    that are missing; each a sentence. left_out: why the attack could not be run on this candidate.
    """

    design: Design
    phi: float
    role: str
    on_control: bool
    start: str = "clear"
    second_planned: bool = False
    capability_planned: bool = False
    collapse_tested: bool = False
    search_note: str = ""
    search_gap: str = ""
    left_out: str = ""


class Limit(NamedTuple):
    """Lower limit of T_δ. whole: every run is quiet to T. endless: every run had nothing left to
    do, so that no larger budget would breach.
    """

    steps: int
    flops: float
    whole: bool = False
    endless: bool = False


@dataclass(frozen=True)
class Finding:
    """Judged runs of one attack. n: preregistered seeds with a complete run. limit: lower limit of
    T_δ.
    """

    status: Status
    reason: str
    control_status: ControlStatus
    n: int
    breaches: int
    times: tuple[Times, ...]
    limit: Limit | None
    missing: tuple[str, ...] = ()
    collapsed: bool = False


@dataclass(frozen=True)
class Judged:
    """One attack of the battery, judged at one φ."""

    use: AttackUse
    trajectories: tuple[SeedTrajectory, ...]
    setting: Setting
    finding: Finding

    @property
    def label(self) -> str:
        return self.use.label

    @property
    def evidence(self) -> bool:
        """Whether a non-breach under this attack counts."""
        return self.setting.role == "attack" and (
            self.setting.on_control or self.finding.control_status == "broken"
        )
