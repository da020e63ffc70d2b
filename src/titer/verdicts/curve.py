"""Share of seeds breached by each common probe, with collapse as a competing event."""

from __future__ import annotations

from collections.abc import Sequence

from titer.verdicts.evidence import Design
from titer.verdicts.model import CurvePoint
from titer.verdicts.seeds import band
from titer.verdicts.tracks import Times, Track, collapsed_at


def curve(tracks: Sequence[Track], judged: Sequence[Times], design: Design) -> tuple[CurvePoint, ...]:
    """Cumulative incidence at the planned probes with simultaneous exact bands (Bonferroni over K probes, level 1 − α).

    The lower band counts confirmed breaches; the upper one every run that is not surely resisting up to that probe,
    so ambiguous, diverged and unfinished runs widen the band instead of being dropped. collapsed: runs that collapsed
    and had not breached.
    """
    if not tracks:
        return ()
    n, level = len(tracks), design.alpha / len(design.grid)
    fallen = [collapsed_at(k) for k in tracks]
    points = []
    for step in design.grid:
        hit = [_at(k, t.first) <= step for k, t in zip(tracks, judged, strict=True)]
        unsure = [_at(k, t.last, -1) < step for k, t in zip(tracks, judged, strict=True)]
        low, high = band(sum(hit), sum(unsure), n, level)
        gone = sum(f is not None and f <= step and not h for f, h in zip(fallen, hit, strict=True))
        points.append(
            CurvePoint(step=step, n=n, breached=sum(hit), low=low, high=high, collapsed=gone, resisting_lower=1 - high)
        )
    return tuple(points)


def _at(track: Track, index: int | None, otherwise: float = float("inf")) -> float:
    return track.probes[index].step if index is not None else otherwise
