"""Condition 4: harmless fine-tuning of every candidate, with the same search over the recipe."""

from __future__ import annotations

import itertools

from titer.engine.planning.candidates import Candidates
from titer.engine.planning.pieces import Origin, Pieces
from titer.engine.planning.search import Grid, Point, best_score, chosen
from titer.records.record import CellRecord
from titer.study.candidate import Candidate
from titer.study.cell import Purpose, Role
from titer.study.spec import MethodUse, Task, Trainability, geometric


def add(pieces: Pieces, candidates: Candidates) -> None:
    spec = pieces.study.trainability
    if spec is None:
        return
    for task, candidate in itertools.product(spec.tasks, pieces.study.candidates):
        point = _search(pieces, candidates, spec, task, candidate)
        pieces.complete &= point is not None
        if point is None:
            continue
        for index, seed in enumerate(spec.seeds):
            origin = candidates.of(candidate.name, index)
            role = _role("trainability", candidate, task, origin, seed, point)
            _trained(pieces, origin, spec, task, point, role, part=None)


def _search(
    pieces: Pieces, candidates: Candidates, spec: Trainability, task: Task, candidate: Candidate
) -> Point | None:
    def run(point: Point) -> tuple[CellRecord, ...] | None:
        digests = []
        for index, seed in enumerate(spec.search_seeds):
            origin = candidates.of(candidate.name, index)
            role = _role("trainability_search", candidate, task, origin, seed, point)
            part = task.search_part
            digests.append(_trained(pieces, origin, spec, task, point, role, part=part))
        return pieces.finished(digests)

    return chosen(Grid(best_score("task")), spec.search, run)


def _role(
    purpose: Purpose, candidate: Candidate, task: Task, origin: Origin, seed: int, point: Point
) -> Role:
    return Role(
        purpose=purpose,
        candidate=candidate.name,
        task=task.name,
        seed=seed,
        defense_seed=origin.defense_seed,
        point=point,
    )


def _trained(
    pieces: Pieces,
    origin: Origin,
    spec: Trainability,
    task: Task,
    point: Point,
    role: Role,
    *,
    part: str | None,
) -> str:
    """Plan one run of the recipe; returns its digest."""
    recipe = MethodUse(name=spec.recipe.name, settings={**spec.recipe.settings, **point})
    where, text = "trainability.recipe", f"trainability.{task.name}"
    return pieces.add(
        origin,
        role,
        method=pieces.method("attack", recipe, task.data, where, text_field=text),
        seed=role.seed,
        steps=task.budget,
        probes=geometric(task.budget),
        measures=(pieces.measure(task.measure, "task", part=part),),
    )
