"""From runs to draws of τ: which runs are whole, what each preregistered seed shows, and whether the control was broken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from titer.verdicts.model import ControlStatus
from titer.verdicts.tracks import Times, Track, interval_flops, interval_steps, times


def complete(track: Track, t: Times) -> bool:
    """The run's record is whole: nothing of it is still to be computed."""
    return not track.missing or t.first is not None


def covered(tracks: Sequence[Track], judged: Sequence[Times], seeds: Sequence[int]) -> set[int]:
    """Preregistered seeds that have a complete run."""
    return {k.seed for k, t in zip(tracks, judged, strict=True) if complete(k, t)} & set(seeds)


@dataclass(frozen=True)
class SeedRuns:
    """All complete runs of one preregistered seed, as one draw of τ. possible: some run is not surely quiet to T; confirmed: some run breached;
    steps, flops: (l, u] with the smallest ends.
    """

    seed: int
    possible: bool
    confirmed: bool
    steps: tuple[float, float]
    flops: tuple[float, float]


def per_seed(tracks: Sequence[Track], judged: Sequence[Times], seeds: Sequence[int]) -> list[SeedRuns]:
    """One draw of τ per preregistered seed that has a complete run: a seed planned twice is still one seed, and its worst run counts."""
    out = []
    for seed in sorted(set(seeds)):
        runs = [(k, t) for k, t in zip(tracks, judged, strict=True) if k.seed == seed and complete(k, t)]
        if runs:
            spans = [(interval_steps(k, t), interval_flops(k, t)) for k, t in runs]
            out.append(SeedRuns(seed, any(not t.resisted for _, t in runs), any(t.first is not None for _, t in runs),
                                _least([a for a, _ in spans]), _least([b for _, b in spans])))  # fmt: skip
    return out


def _least(spans: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return min(a for a, _ in spans), min(b for _, b in spans)


def breaks_control(tracks: Sequence[Track], phi: float, seeds: Sequence[int]) -> ControlStatus:
    """`broken` if M breaches by T in every seed, `not broken` if a complete run does not, else `missing`."""
    judged = [times(k, phi) for k in tracks]
    if any(t.first is None and complete(k, t) for k, t in zip(tracks, judged, strict=True)):
        return "not broken"
    everywhere = covered(tracks, judged, seeds) == set(seeds) and all(t.first is not None for t in judged)
    return "broken" if everywhere else "missing"
