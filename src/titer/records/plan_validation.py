"""Checks that a plan gives each record a role it can have. plan.json can be edited: swapping roles
by hand would swap verdicts, so everything that follows from the study and the cell is derived
again.

Not checked here, because neither study nor record holds it: the proof of disjointness, the
provenance of text, which content a part of a pool has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from titer.records.record import CellRecord
from titer.study.candidate import Candidate
from titer.study.cell import BEFORE_ALIGNMENT, Cell, PartUse, Plan, Role
from titer.study.resistance import AttackUse, FlopsBudget
from titer.study.spec import Study
from titer.study.uses import DataUse, MethodUse

ATTACKED = ("attack", "search", "generalization")
TRAINED = ("trainability", "trainability_search")
Made = Mapping[tuple[str, str, int | None, int], set[str]]
"""(candidate, group it was defended on, defense seed, stage) → digests of cells that made it."""


def disagreements(study: Study, plan: Plan, records: Mapping[str, CellRecord]) -> dict[str, str]:
    """digest → why its record cannot have a role the plan gives it. Empty for a plan that titer
    made.
    """
    check = _Check(study, plan)
    found: dict[str, str] = {}
    for planned in plan.cells:
        for role in planned.roles if planned.digest in records else ():
            for why in check.role(role, records[planned.digest].cell):
                found.setdefault(planned.digest, f"cannot be {_name(role)}: {why}")
    return found


def _name(role: Role) -> str:
    return " ".join(
        filter(None, (role.purpose, role.candidate, role.attack or role.task, f"seed {role.seed}"))
    )


class _Check:
    """What the study says about every role."""

    def __init__(self, study: Study, plan: Plan) -> None:
        self.study = study
        self.candidates = {c.name: c for c in study.candidates}
        self.attacks = {a.label: a for a in study.resistance.expanded()}
        self.base = next(
            (p.digest for p in plan.cells for r in p.roles if r.purpose == "align"), None
        )
        made: dict[tuple[str, str, int | None, int], set[str]] = {}
        for planned in plan.cells:
            for r in planned.roles:
                if r.purpose == "defense":
                    key = (r.candidate, r.defended_on, r.defense_seed, r.stage)
                    made.setdefault(key, set()).add(planned.digest)
        self.made: Made = made

    def role(self, role: Role, cell: Cell) -> Iterator[str]:
        if role.purpose == "align":
            yield from self._align(cell)
        elif role.candidate == BEFORE_ALIGNMENT:
            return
        elif role.candidate not in self.candidates:
            yield "the study has no such candidate"
        elif role.purpose == "defense":
            yield from self._stage(role, cell)
        else:
            yield from self._starts(role, cell)
            yield from self._seeds(role, cell)
            yield from self._runs(role, cell)

    # -- what a cell starts from ----------------------------------------------------------------

    def _starts(self, role: Role, cell: Cell) -> Iterator[str]:
        candidate = self.candidates[role.candidate]
        stages = len(candidate.stages)
        yield from self._parent(role, cell, stages)
        hosted = candidate.service if role.purpose in (*ATTACKED, *TRAINED) else None
        if hosted is None:
            if cell.host is not None:
                yield f"it was run by the service {cell.host.method.name}"
            return
        if cell.host is None:
            yield "no service ran it"
            return
        yield from _method(cell.host.method, hosted.method, "the service")
        data = hosted.data or self.study.defense_data or DataUse()
        yield from _texts(cell.host.texts, data, self._group(role.defended_on), "the service's ")

    def _parent(self, role: Role, cell: Cell, stage: int) -> Iterator[str]:
        """That a cell starts from what the candidate is after so many of its stages."""
        candidate = self.candidates[role.candidate]
        if candidate.model is not None and stage == 0:
            wanted: set[str | None] = {None}
        elif stage == 0:
            wanted = {self.base}
        else:
            key = (candidate.name, role.defended_on, role.defense_seed, stage - 1)
            wanted = {*self.made.get(key, ())}
            if len(wanted) != 1:
                yield f"{len(wanted)} cells are said to have made that model"
                return
        if cell.parent not in wanted:
            yield "it did not start from that model"

    def _seeds(self, role: Role, cell: Cell) -> Iterator[str]:
        """That a run has its seed, and meets the checkpoint that belongs to it."""
        candidate, order = self.candidates[role.candidate], self._order(role.purpose)
        if role.purpose != "stability" and cell.seed != role.seed:
            yield f"its seed is {cell.seed}"
        if len(candidate.seeds) == 1:
            if role.defense_seed is not None:
                yield f"{candidate.name} has a single checkpoint"
        elif role.purpose == "stability":
            if role.defense_seed not in candidate.seeds:
                yield f"{candidate.name} has no checkpoint of seed {role.defense_seed}"
        elif role.seed in order:
            meets = candidate.seeds[order.index(role.seed) % len(candidate.seeds)]
            if role.defense_seed != meets:
                yield f"it belongs to the checkpoint of seed {meets}, not {role.defense_seed}"
        else:
            yield f"the study has no seed {role.seed} for it"

    def _order(self, purpose: str) -> Sequence[int]:
        """The study's seeds of one purpose, in declared order."""
        study = self.study
        return {
            "attack": study.resistance.seeds,
            "search": study.resistance.search_seeds,
            "generalization": study.generalization.seeds if study.generalization else (),
            "trainability": study.trainability.seeds if study.trainability else (),
            "trainability_search": study.trainability.search_seeds if study.trainability else (),
        }.get(purpose, ())

    def _group(self, name: str) -> tuple[str, ...]:
        spec = self.study.generalization
        return spec.groups.get(name, ()) if spec and name else ()

    # -- what was run ---------------------------------------------------------------------------

    def _runs(self, role: Role, cell: Cell) -> Iterator[str]:
        if role.purpose in ATTACKED:
            use = self.attacks.get(role.attack)
            if use is None:
                yield "the study has no such attack"
                return
            yield from _ran(cell, MethodUse(name=use.attack, settings=use.settings), role.point)
            yield from self._budget(role, cell, use)
            data = use.data or self.study.resistance.data
            yield from _texts(cell.texts, data, self._group(role.attacked_on))
        elif role.purpose in TRAINED and self.study.trainability:
            spec = self.study.trainability
            task = next((t for t in spec.tasks if t.name == role.task), None)
            if task is None:
                yield "the study has no such task"
                return
            yield from _ran(cell, spec.recipe, role.point)
            yield from _texts(cell.texts, task.data, ())
            if cell.steps != task.budget:
                yield f"it was run to step {cell.steps}"

    def _budget(self, role: Role, cell: Cell, use: AttackUse) -> Iterator[str]:
        if cell.steps != (role.prefix_budget or self.study.resistance.steps_of(use)):
            yield f"it was run to step {cell.steps}"
        flops = use.budget.flops if isinstance(use.budget, FlopsBudget) else None
        if cell.flops != flops:
            yield f"its budget is {_flops(cell.flops)}, not {_flops(flops)}"

    def _stage(self, role: Role, cell: Cell) -> Iterator[str]:
        """A building cell: one stage of one checkpoint of a candidate."""
        candidate: Candidate = self.candidates[role.candidate]
        if not 0 <= role.stage < len(candidate.stages):
            yield "the study has no such defense"
            return
        stage = candidate.stages[role.stage]
        yield from _ran(cell, stage.method, {})
        data = stage.data or self.study.defense_data or DataUse()
        yield from _texts(cell.texts, data, self._group(role.defended_on))
        if cell.steps != stage.steps:
            yield f"it was trained for {cell.steps} steps"
        seed = role.defense_seed if len(candidate.seeds) > 1 else candidate.seeds[0]
        if seed not in candidate.seeds or cell.seed != seed:
            yield f"its seed is {cell.seed}"
        if cell.host is not None:
            yield f"it was run by the service {cell.host.method.name}"
        yield from self._parent(role, cell, role.stage)

    def _align(self, cell: Cell) -> Iterator[str]:
        align = self.study.align
        if align is None:
            yield "the study aligns nothing"
            return
        yield from _ran(cell, align.method, {})
        yield from _texts(cell.texts, align.data, ())
        if (cell.steps, cell.seed, cell.parent) != (align.steps, align.seed, None):
            yield f"it was trained for {cell.steps} steps with seed {cell.seed}"


def _ran(cell: Cell, use: MethodUse, point: Mapping[str, Any]) -> Iterator[str]:
    asked = MethodUse(name=use.name, settings={**use.settings, **point})
    yield from _method(cell.method, asked, "it")


def _method(ran: Any, asked: MethodUse, who: str) -> Iterator[str]:
    if ran is None or ran.name != asked.name:
        yield f"{who} is a run of {ran.name if ran else 'no method'}"
        return
    for key, value in asked.settings.items():
        if not _same(ran.settings.get(key), value):
            whose = "its" if who == "it" else f"{who}'s"
            yield f"{whose} {key} is {ran.settings.get(key)!r}"
            return


def _same(ran: Any, asked: Any) -> bool:
    """Whether a resolved setting is the one the study gives: methods may turn `"8"` or 8 into 8.0,
    and fill in what was left out inside a structure.
    """
    if ran == asked or str(ran) == str(asked):
        return True
    if isinstance(asked, Mapping):
        return isinstance(ran, Mapping) and all(_same(ran.get(k), v) for k, v in asked.items())
    if isinstance(asked, (list, tuple)):
        return (
            isinstance(ran, (list, tuple))
            and len(ran) == len(asked)
            and all(_same(a, b) for a, b in zip(ran, asked, strict=True))
        )
    try:
        return float(ran) == float(asked)
    except (TypeError, ValueError):
        return False


def _texts(
    given: Mapping[str, PartUse], asked: DataUse, group: tuple[str, ...], whose: str = "its "
) -> Iterator[str]:
    """That a method was given the text the study names. group: domains that may restrict it."""
    if set(given) != set(asked.slots):
        slots = ", ".join(sorted(given)) or "none"
        yield f"{whose}text is {slots}, not {', '.join(sorted(asked.slots)) or 'none'}"
        return
    for slot, use in asked.slots.items():
        part = given[slot]
        domains = {use.domains, group} if group else {use.domains}
        if part.part != use.part:
            yield f"{whose}{slot} text is {part.part}, not {use.part}"
        elif part.domains not in domains:
            yield f"{whose}{slot} text is of the domains {part.domains}"
        elif not _drawn(part.examples, use.examples, bool(group)):
            yield f"{whose}{slot} text is {part.examples} examples, not {use.examples}"


def _drawn(given: int | None, asked: int | None, fewer: bool) -> bool:
    """fewer: a group of domains may hold fewer examples than are drawn from the whole part."""
    return given == asked or (fewer and given is not None and asked is not None and given < asked)


def _flops(value: float | None) -> str:
    return "in steps" if value is None else f"{value:.3g} FLOPs"
