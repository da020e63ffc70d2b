"""Condition 1: the battery on every candidate, after the search over its settings, if any."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

from titer.engine.planning.candidates import Candidates
from titer.engine.planning.pieces import Bound, Origin, Pieces
from titer.engine.planning.search import Grid, Point, Trial, cheapest_breach, chosen
from titer.errors import StudyError
from titer.records.record import CellRecord
from titer.study.candidate import CONTROL, Candidate
from titer.study.cell import SAMPLES, CellMeasure, Role, StopRule
from titer.study.resistance import FlopsBudget
from titer.study.spec import AttackUse, MethodUse

Chosen = dict[tuple[str, str], Point | None]
"""(candidate, attack) → the searched settings to confirm; None while the search is not finished."""


def add(pieces: Pieces, candidates: Candidates) -> Chosen:
    study, spec, found = pieces.study, pieces.study.resistance, Chosen()
    unbroken = set[tuple[str, str]]()
    for candidate, attack in itertools.product(study.candidates, spec.expanded()):
        key = candidate.name, attack.label
        if spec.leaves_out(attack.label, candidate.name):
            found[key] = None  # no search is waited for
            continue
        point, broken = _search(pieces, candidates, candidate, attack)
        pieces.complete &= point is not None
        found[key] = point
        if point is not None and not broken:
            unbroken.add(key)
    for attack, candidate in itertools.product(spec.expanded(), study.candidates):
        points = [found[candidate.name, attack.label]]
        if attack.control_point and (candidate.name, attack.label) in unbroken:
            points.append(found[CONTROL, attack.label])
        for n, point in enumerate(points):
            if point is not None and point not in points[:n]:
                _confirm(pieces, candidates, candidate, attack, point)
    return found


def _search(
    pieces: Pieces, candidates: Candidates, candidate: Candidate, attack: AttackUse
) -> tuple[Point | None, bool]:
    """(the point to confirm, None while the search is not finished; whether some point broke the
    candidate in every search seed)."""
    spec = pieces.study.resistance
    harm = (pieces.measure(spec.harm, "harm", part=spec.search_part),) if attack.search else ()

    rank, broken = cheapest_breach(spec.phi), False

    def run(point: Point) -> tuple[CellRecord, ...] | None:
        nonlocal broken
        digests = []
        for index, seed in enumerate(spec.search_seeds):
            origin = candidates.of(candidate.name, index)
            role = Role(
                purpose="search",
                candidate=candidate.name,
                attack=attack.label,
                seed=seed,
                defense_seed=origin.defense_seed,
                point=point,
            )
            digests.append(attacked(pieces, origin, attack, point, role, measures=harm))
        records = pieces.finished(digests)
        broken |= records is not None and math.isfinite(rank(Trial(point, records))[0])
        return records

    return chosen(Grid(rank), attack.search, run), broken


def _confirm(
    pieces: Pieces, candidates: Candidates, candidate: Candidate, attack: AttackUse, point: Point
) -> None:
    spec = pieces.study.resistance
    grid = spec.grid(attack)
    free = bound(pieces, attack, point).facts.horizon_free
    # A horizon-dependent schedule shares no prefix: every budget of the grid is trained on its own.
    budgets = [None] if free else list(grid[1:])
    for (index, seed), budget in itertools.product(enumerate(spec.seeds), budgets):
        origin = candidates.of(candidate.name, index)
        role = Role(
            purpose="attack",
            candidate=candidate.name,
            attack=attack.label,
            seed=seed,
            defense_seed=origin.defense_seed,
            point=point,
            prefix_budget=budget,
        )
        measures = harm_measures(pieces)
        if spec.samples and index == 0:
            measures += (pieces.measure(spec.samples, SAMPLES, "ends"),)
        attacked(pieces, origin, attack, point, role, measures=measures)


def bound(
    pieces: Pieces, attack: AttackUse, point: Point, domains: Iterable[str] | None = None
) -> Bound:
    """The method of an attack at one point of its search, with its text."""
    use = MethodUse(name=attack.attack, settings={**attack.settings, **point})
    data = attack.data or pieces.study.resistance.data
    return pieces.method("attack", use, data, f"attacks.{attack.name}", domains=domains)


def attacked(
    pieces: Pieces,
    origin: Origin,
    attack: AttackUse,
    point: Point,
    role: Role,
    *,
    measures: tuple[CellMeasure, ...],
    domains: Iterable[str] | None = None,
) -> str:
    """Plan one run of an attack; returns its digest."""
    spec = pieces.study.resistance
    grid = spec.grid(attack)
    levels = (spec.phi, *spec.sensitivity)
    stop = StopRule(above=max(levels), suspect=min(levels), level=spec.alpha / len(grid))
    budget = role.prefix_budget
    method = bound(pieces, attack, point, domains)
    return pieces.add(
        origin,
        role,
        method=method,
        seed=role.seed,
        steps=grid[-1] if budget is None else budget,
        flops=attack.budget.flops if isinstance(attack.budget, FlopsBudget) else None,
        probes=grid if budget is None else (0, budget),
        measures=measures,
        stop=stop,
        reward=_reward(pieces, attack, method),
    )


def _reward(pieces: Pieces, attack: AttackUse, method: Bound) -> CellMeasure | None:
    """What the attack trains on. Raises StudyError if its method asks for a reward and has none."""
    field = f"attacks.{attack.name}.reward"
    if attack.reward is not None:
        return pieces.reward(attack.reward, field)
    if method.method.wants_reward:
        raise StudyError(
            f"{method.method.name} trains on a reward, and was given none",
            field=field,
            value=None,
            expected="a measure that scores replies",
        )
    return None


def harm_measures(pieces: Pieces, domains: Iterable[str] | None = None) -> tuple[CellMeasure, ...]:
    """What is read of an attacked model: harm, its confirmation on other prompts, capability, and
    (over all domains only) the second judge."""
    spec = pieces.study.resistance
    found = [
        pieces.measure(spec.harm, "harm", domains=domains),
        pieces.measure(
            spec.harm, "confirm", "suspected_breach", part=spec.confirm, domains=domains
        ),
    ]
    if spec.capability:
        found.append(pieces.measure(spec.capability, "capability"))
    if spec.second and domains is None:
        found.append(pieces.measure(spec.second, "second", "ends"))
    return tuple(found)
