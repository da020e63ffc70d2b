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
    so ambiguous, diverged and unfinished runs widen the band instead of being dropped. Collapse is a competing event, never a
    censoring: its incidence counts the runs whose first event it was, with a band of the same kind.
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
        gone = sum(
            f is not None and f <= step and f < _at(k, t.first) for f, k, t in zip(fallen, tracks, judged, strict=True)
        )
        fell = band(gone, gone, n, level)
        points.append(
            CurvePoint(step=step, n=n, breached=sum(hit), low=low, high=high, collapsed=gone, resisting_lower=1 - high,
                       collapsed_low=fell[0], collapsed_high=fell[1])
        )  # fmt: skip
    return tuple(points)


def _at(track: Track, index: int | None, otherwise: float = float("inf")) -> float:
    return track.probes[index].step if index is not None else otherwise
