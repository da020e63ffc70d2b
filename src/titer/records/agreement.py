"""Whether a plan gives each record the role it can have. plan.json is a file like any other: roles that were swapped by hand would swap
verdicts, so what can be derived again from the study and the cell is derived again.

Not checked here, because a record does not hold it: the proof of disjointness, the provenance of text, what methods declare about themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from titer.records.model import CellRecord
from titer.study.cell import BEFORE_ALIGNMENT, Cell, Plan, Role
from titer.study.spec import CONTROL, Candidate, Study


def disagreements(study: Study, plan: Plan, records: Mapping[str, CellRecord]) -> dict[str, str]:
    """digest → why its record cannot have a role the plan gives it. Empty for a plan that titer made."""
    start = _starts(study, plan)
    found: dict[str, str] = {}
    for planned in plan.cells:
        for role in planned.roles if planned.digest in records else ():
            for why in _check(study, role, records[planned.digest].cell, start):
                found.setdefault(planned.digest, f"cannot be {_name(role)}: {why}")
    return found


def _name(role: Role) -> str:
    return " ".join(filter(None, (role.purpose, role.candidate, role.attack or role.task, f"seed {role.seed}")))


def _starts(study: Study, plan: Plan) -> dict[tuple[str, str], str | None]:
    """(candidate, group it was defended on) → digest of the cell that made it; None where no cell did. The root is CONTROL's parent."""
    root = next((p.digest for p in plan.cells for r in p.roles if r.purpose == "align"), None)
    made: dict[tuple[str, str], str | None] = {(CONTROL, ""): root}
    for planned in plan.cells:
        for role in planned.roles:
            if role.purpose == "defense":
                made[role.candidate, role.defended_on] = planned.digest
    for candidate in study.candidates:
        if candidate.model is not None:
            made[candidate.name, ""] = None
    return made


def _check(study: Study, role: Role, cell: Cell, start: Mapping[tuple[str, str], str | None]) -> Iterator[str]:
    if role.candidate == BEFORE_ALIGNMENT:
        return
    if role.purpose in ("attack", "search", "generalization", "stability", "trainability", "trainability_search"):
        key = (role.candidate, role.defended_on)
        if key in start and cell.parent != start[key]:
            yield "it did not start from that model"
    if role.purpose in ("attack", "search", "generalization"):
        use = next((a for a in study.resistance.expanded() if a.label == role.attack), None)
        if use is None:
            yield "the study has no such attack"
        else:
            yield from _method(cell, use.attack, {**use.settings, **role.point})
        if cell.steps != (role.prefix_budget or study.resistance.budget):
            yield f"it was run to step {cell.steps}"
    elif role.purpose.startswith("trainability") and study.trainability:
        recipe = study.trainability.recipe
        yield from _method(cell, recipe.name, {**recipe.settings, **role.point})
    elif role.purpose == "defense":
        candidate = next((c for c in study.candidates if c.name == role.candidate), None)
        yield from _defense(cell, candidate)
    if role.purpose not in ("stability", "align", "defense") and cell.seed != role.seed:
        yield f"its seed is {cell.seed}"


def _defense(cell: Cell, candidate: Candidate | None) -> Iterator[str]:
    if candidate is None or candidate.defense is None:
        yield "the study has no such defense"
        return
    yield from _method(cell, candidate.defense.name, candidate.defense.settings)
    if cell.steps != candidate.steps:
        yield f"it was trained for {cell.steps} steps"


def _method(cell: Cell, name: str, settings: Mapping[str, Any]) -> Iterator[str]:
    if cell.method is None or cell.method.name != name:
        yield f"it is a run of {cell.method.name if cell.method else 'no method'}"
        return
    for key, value in settings.items():
        if not _same(cell.method.settings.get(key), value):
            yield f"its {key} is {cell.method.settings.get(key)!r}"
            return


def _same(ran: Any, asked: Any) -> bool:
    """Whether a resolved setting is the one the study gives: methods may turn `"8"` or 8 into 8.0."""
    if ran == asked or str(ran) == str(asked):
        return True
    try:
        return float(ran) == float(asked)
    except (TypeError, ValueError):
        return isinstance(asked, (list, tuple)) and isinstance(ran, list) and list(asked) == ran
