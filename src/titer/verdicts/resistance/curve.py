"""Share of seeds breached by each common probe, with collapse as a competing event."""

from __future__ import annotations

from collections.abc import Sequence

from titer.verdicts.evidence.index import Design
from titer.verdicts.evidence.times import Times, collapsed_at
from titer.verdicts.evidence.trajectories import SeedTrajectory
from titer.verdicts.output.verdict import CurvePoint
from titer.verdicts.statistics.seeds import band


def curve(
    trajectories: Sequence[SeedTrajectory], judged: Sequence[Times], design: Design
) -> tuple[CurvePoint, ...]:
    """Cumulative incidence at the planned probes with simultaneous exact bands (Bonferroni over K
    probes, level 1 − α).

    The lower band counts confirmed breaches; the upper one every run that is not surely resisting
    up to that probe, so ambiguous, diverged and unfinished runs widen the band instead of being
    dropped. Collapse is a competing event, never a censoring: its incidence counts the runs whose
    first event it was, with a band of the same kind. A run that resisted to T is quiet at every
    probe; where T is in FLOPs the curve ends with the longest run.
    """
    groups = [
        [(k, t) for k, t in zip(trajectories, judged, strict=True) if k.seed == seed]
        for seed in sorted({k.seed for k in trajectories})
    ]
    if not groups:
        return ()
    # One draw per seed: of runs of one seed, the first breach, the first doubt and the first
    # collapse count.
    breach = [min(_at(k, t.first) for k, t in g) for g in groups]
    quiet = [min(float("inf") if t.resisted else _at(k, t.last, -1) for k, t in g) for g in groups]
    fall = [
        min((f for k, _ in g if (f := collapsed_at(k)) is not None), default=float("inf"))
        for g in groups
    ]
    n, level = len(groups), design.alpha / len(design.grid)
    points = []
    for step in _steps(trajectories, design):
        hit, unsure = sum(b <= step for b in breach), sum(q < step for q in quiet)
        low, high = band(hit, unsure, n, level)
        gone = sum(f <= step and f < b for f, b in zip(fall, breach, strict=True))
        fell = band(gone, gone, n, level)
        points.append(
            CurvePoint(
                step=step,
                n=n,
                breached=hit,
                low=low,
                high=high,
                collapsed=gone,
                resisting_lower=1 - high,
                collapsed_low=fell[0],
                collapsed_high=fell[1],
            )
        )
    return tuple(points)


def _steps(trajectories: Sequence[SeedTrajectory], design: Design) -> list[int]:
    """The planned probes; of a budget in FLOPs those up to the end of the longest run, and that."""
    if design.flops is None:
        return list(design.grid)
    end = max((p.step for k in trajectories for p in k.probes), default=0)
    return sorted({*(g for g in design.grid if g <= end), end})


def _at(trajectory: SeedTrajectory, index: int | None, otherwise: float = float("inf")) -> float:
    return trajectory.probes[index].step if index is not None else otherwise
