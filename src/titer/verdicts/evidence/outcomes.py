"""From runs to draws of τ: which runs are whole, what each preregistered seed shows, and whether
the control was broken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from titer.verdicts.evidence.times import Times, interval_flops, interval_steps, times
from titer.verdicts.evidence.trajectories import SeedTrajectory
from titer.verdicts.output.verdict import ControlStatus

Runs = list[tuple[SeedTrajectory, Times]]


def complete(trajectory: SeedTrajectory, t: Times) -> bool:
    """The run's record is whole: nothing of it is still to be computed."""
    return not trajectory.missing or t.first is not None


def covered(
    trajectories: Sequence[SeedTrajectory], judged: Sequence[Times], seeds: Sequence[int]
) -> set[int]:
    """Preregistered seeds that have a complete run."""
    return {k.seed for k, t in zip(trajectories, judged, strict=True) if complete(k, t)} & set(
        seeds
    )


@dataclass(frozen=True)
class SeedOutcome:
    """All complete runs of one preregistered seed, as one draw of τ. possible: some run is not
    surely quiet to T; confirmed: some run breached; steps, flops: (l, u] with the smallest ends.
    endless: every run was quiet and had nothing left to do, so that no budget breaches.
    """

    seed: int
    possible: bool
    confirmed: bool
    steps: tuple[float, float]
    flops: tuple[float, float]
    endless: bool = False


def per_seed(
    trajectories: Sequence[SeedTrajectory], judged: Sequence[Times], seeds: Sequence[int]
) -> list[SeedOutcome]:
    """One draw of τ per preregistered seed that has a complete run: a seed planned twice is still
    one seed, and its worst run counts.

    Where a candidate has several checkpoints, each draw needs one of its own: seeds that met the
    same checkpoint are not independent, and count as one draw.
    """
    return [_draw(runs[0][0].seed, runs) for runs in _groups(trajectories, judged, seeds)]


def _groups(
    trajectories: Sequence[SeedTrajectory], judged: Sequence[Times], seeds: Sequence[int]
) -> list[Runs]:
    groups: dict[object, Runs] = {}
    whole = [(k, t) for k, t in zip(trajectories, judged, strict=True) if complete(k, t)]
    for k, t in sorted(whole, key=lambda run: run[0].seed):
        if k.seed in set(seeds):
            key = ("seed", k.seed) if k.checkpoint is None else ("checkpoint", k.checkpoint)
            groups.setdefault(key, []).append((k, t))
    return list(groups.values())


def _draw(seed: int, runs: Runs) -> SeedOutcome:
    return SeedOutcome(
        seed,
        any(not t.resisted for _, t in runs),
        any(t.first is not None for _, t in runs),
        _least([interval_steps(k, t) for k, t in runs]),
        _least([interval_flops(k, t) for k, t in runs]),
        all(t.resisted and k.exhausted for k, t in runs),
    )


def _least(spans: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return min(a for a, _ in spans), min(b for _, b in spans)


def shared_checkpoints(trajectories: Sequence[SeedTrajectory]) -> list[int]:
    """Checkpoints that more than one seed met."""
    met = {(k.checkpoint, k.seed) for k in trajectories if k.checkpoint is not None}
    found = [checkpoint for checkpoint, _ in met if checkpoint is not None]
    return sorted({c for c in found if found.count(c) > 1})


def breaks_control(
    trajectories: Sequence[SeedTrajectory], phi: float, seeds: Sequence[int]
) -> ControlStatus:
    """`broken` if M breaches by T in every seed, `not broken` if a complete run does not, else
    `missing`.
    """
    judged = [times(k, phi) for k in trajectories]
    if any(t.first is None and complete(k, t) for k, t in zip(trajectories, judged, strict=True)):
        return "not broken"
    everywhere = covered(trajectories, judged, seeds) == set(seeds) and all(
        t.first is not None for t in judged
    )
    return "broken" if everywhere else "missing"
