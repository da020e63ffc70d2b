"""The roles a study asks for, derived from the study alone: a plan that lacks one was thinned, and
what it leaves out might have decided the verdict.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from titer.study.base import canonical
from titer.study.candidate import CONTROL, Candidate
from titer.study.cell import BEFORE_ALIGNMENT, Plan, Role
from titer.study.spec import Study
from titer.study.uses import combinations

Key = tuple[object, ...]


def lacking(study: Study, plan: Plan) -> list[str]:
    """What the study asks for and the plan has no cell for, in words. Empty for a plan titer made.

    While the plan is not complete, confirmation cells still wait for a search, and are not missed.
    """
    have = {_key(role) for planned in plan.cells for role in planned.roles}
    found = [name for key, name in _required(study, plan.complete) if key not in have]
    if not plan.complete and not _waits(study):
        found.append("confirmation, which waits for no search")
    budgets: dict[Key, set[int]] = {}
    for planned in plan.cells:
        for role in planned.roles:
            if role.prefix_budget is not None and role.purpose == "attack":
                budgets.setdefault(_key(role), set()).add(role.prefix_budget)
    grids = {a.label: set(study.resistance.grid(a)[1:]) for a in study.resistance.expanded()}
    for key, got in budgets.items():
        label = str(key[2])
        for budget in sorted(grids.get(label, set()) - got):
            found.append(f"attack {key[1]} {label} seed {key[3]} to step {budget}")
    return found


def _key(role: Role) -> Key:
    """What of a role the study fixes before any work is done."""
    where = role.attack or role.task
    if role.purpose in ("search", "trainability_search"):
        return (role.purpose, role.candidate, where, role.seed, canonical(role.point))
    if role.purpose == "generalization":
        return (
            role.purpose,
            role.candidate,
            where,
            role.seed,
            role.defended_on,
            role.attacked_on,
        )
    if role.purpose == "defense":
        return (role.purpose, role.candidate, role.seed, role.stage, role.defended_on)
    if role.purpose == "stability":
        return (role.purpose, role.candidate, role.defense_seed)
    return (role.purpose, role.candidate, where, role.seed)


def _waits(study: Study) -> bool:
    """Whether some confirmation can wait for a search at all."""
    searched = any(a.search for a in study.resistance.expanded())
    return searched or bool(study.trainability and study.trainability.search)


def _required(study: Study, complete: bool) -> Iterator[tuple[Key, str]]:
    if study.align:
        yield ("align", "", "", study.align.seed), "the alignment"
    for candidate in study.candidates:
        yield from _built(study, candidate)
        yield from _attacked(study, candidate, complete)
        yield from _trained(study, candidate, complete)
    yield from _looked_at(study)
    yield from _crossed(study, complete)


def _built(study: Study, candidate: Candidate) -> Iterator[tuple[Key, str]]:
    for seed, stage in itertools.product(candidate.seeds, range(len(candidate.stages))):
        key = ("defense", candidate.name, seed, stage, "")
        yield key, f"stage {stage + 1} of {candidate.name}"


def _attacked(study: Study, candidate: Candidate, complete: bool) -> Iterator[tuple[Key, str]]:
    spec = study.resistance
    for attack in spec.expanded():
        if spec.leaves_out(attack.label, candidate.name):
            continue
        name = f"{candidate.name} {attack.label}"
        points = combinations(attack.search) if attack.search else []
        for seed, point in itertools.product(spec.search_seeds, points):
            key = ("search", candidate.name, attack.label, seed, canonical(point))
            yield key, f"search {name} seed {seed}"
        if complete or not attack.search:
            for seed in spec.seeds:
                yield (
                    ("attack", candidate.name, attack.label, seed),
                    f"attack {name} seed {seed}",
                )


def _trained(study: Study, candidate: Candidate, complete: bool) -> Iterator[tuple[Key, str]]:
    spec = study.trainability
    if spec is None:
        return
    for task in spec.tasks:
        points = combinations(spec.search) if spec.search else []
        for seed, point in itertools.product(spec.search_seeds, points):
            yield (
                ("trainability_search", candidate.name, task.name, seed, canonical(point)),
                f"search {candidate.name} {task.name} seed {seed}",
            )
        if complete or not spec.search:
            for seed in spec.seeds:
                yield (
                    ("trainability", candidate.name, task.name, seed),
                    f"trainability {candidate.name} {task.name} seed {seed}",
                )


def _looked_at(study: Study) -> Iterator[tuple[Key, str]]:
    if study.align:
        yield ("stability", BEFORE_ALIGNMENT, None), "the model before its alignment"
    benchmarks = study.stability.benchmarks if study.stability else ()
    for candidate in study.candidates:
        if benchmarks or candidate.model is not None:
            several = len(candidate.seeds) > 1
            for seed in candidate.seeds if several else (None,):
                yield ("stability", candidate.name, seed), f"stability {candidate.name}"


def _crossed(study: Study, complete: bool) -> Iterator[tuple[Key, str]]:
    spec = study.generalization
    if spec is None:
        return
    attack = next(a for a in study.resistance.expanded() if a.name == spec.attack)
    if attack.search and not complete:
        return
    wanted = None if spec.candidates is None else {*spec.candidates, CONTROL}
    for candidate in study.candidates:
        skipped = study.resistance.leaves_out(attack.label, candidate.name)
        if (wanted is not None and candidate.name not in wanted) or candidate.model or skipped:
            continue
        rows = tuple(spec.groups) if candidate.defenses else ("",)
        for row, column, seed in itertools.product(rows, spec.groups, spec.seeds):
            key = ("generalization", candidate.name, attack.label, seed, row, column)
            yield key, f"generalization {candidate.name} {row or '-'} × {column} seed {seed}"
