"""What a new judge changes in a study, and which cells its plan can no longer follow from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from titer.engine.planning.search import Grid, Point, Search, best_score, cheapest_breach, chosen
from titer.errors import UsageError
from titer.judges.judge import Judge
from titer.measures.judged import JudgeUse
from titer.measures.measure import Measure
from titer.measures.registry import measures, resolve_measure
from titer.records.bounds import bounds
from titer.records.record import CellRecord
from titer.study.base import Strict
from titer.study.cell import Planned, Role
from titer.study.complaints import validated
from titer.study.resistance import AttackUse
from titer.study.spec import Study
from titer.study.uses import MeasureUse

SETTING = "judge"
"""The setting under which a measure names its judge."""


def with_judge(study: Study, judge: JudgeUse, plugins: Iterable[str] = ()) -> Study:
    """The study with every measure that has a judge judged by this one. Raises UsageError if there
    is none, or the study was judged so already."""
    changed = 0

    def of(value: Any) -> Any:
        nonlocal changed
        if isinstance(value, MeasureUse):
            if not is_judged(value.measure):
                return value
            changed += 1
            settings = value.settings | {SETTING: judge.model_dump(mode="json")}
            resolve_measure(value.measure, settings, field="--judge")
            return value.model_copy(update={"settings": settings})
        if isinstance(value, Strict):
            kept = {"reward"} if isinstance(value, AttackUse) else set()
            fields = type(value).model_fields.keys() - kept
            return value.model_copy(update={n: of(getattr(value, n)) for n in fields})
        if isinstance(value, tuple):
            return tuple(of(v) for v in value)
        return {k: of(v) for k, v in value.items()} if isinstance(value, dict) else value

    made = of(study)
    if not changed:
        raise UsageError(
            "no measure of this run has a judge",
            field="run directory",
            value=study.name,
            expected="a study with a measure that judges replies, such as judged_harm",
        )
    every = tuple(dict.fromkeys((*study.plugins, *plugins)))
    raw = made.model_dump(mode="json") | {"plugins": list(every)}
    return validated(Study, raw, study.name)


def is_judged(measure: str) -> bool:
    """Whether a measure has its replies judged, by a judge that its settings name."""
    cls = measures().get(measure)
    if cls is None:
        raise UsageError(
            "a measure of the run is not known here",
            field="measure",
            value=measure,
            expected=f"one of {', '.join(sorted(measures()))}",
            remedy="give the plug-in file that defines it",
        )
    named = {f.alias or n for n, f in cls.model_fields.items()}
    return cls.judge is not Measure.judge and SETTING in named


def judge_of(measure: Measure) -> Judge:
    judge = measure.judge()
    if judge is None:
        raise UsageError(
            "a measure that names a judge has none",
            field="measure",
            value=measure.name,
            expected="a measure whose replies are judged",
        )
    return judge


def would_have_gone_on(record: CellRecord) -> bool:
    """Whether the run was stopped where, as it is read now, harm was not surely beyond the rule."""
    rule = record.cell.stop
    if record.outcome != "stopped_broken" or rule is None or not record.probes:
        return False
    last = record.probes[-1]
    labels = {m.label for m in record.cell.measures} & {"harm", "confirm"}
    for label in labels:
        reading, facts = last.reading(label), record.measures.get(label)
        if reading is None or facts is None:
            return True
        if bounds(reading, facts, rule.level)[0] < rule.above:
            return True
    return False


def lacks_confirmation(record: CellRecord) -> bool:
    """Whether harm is suspicious at a probe at which no confirmation was read."""
    rule = record.cell.stop
    if rule is None or not any(m.at == "suspected_breach" for m in record.cell.measures):
        return False
    for probe in record.probes:
        harm = probe.reading("harm")
        suspected = harm is not None and harm.value is not None and harm.value >= rule.suspect
        if suspected and probe.reading("confirm") is None:
            return True
    return False


def breached(record: CellRecord, phi: float) -> bool:
    harm = (probe.reading("harm") for probe in record.probes)
    return any(r is not None and r.value is not None and r.value >= phi for r in harm)


class SearchChoice:
    """Which settings the searches choose, as they are read now."""

    def __init__(
        self, study: Study, cells: Sequence[Planned], made: Mapping[str, CellRecord]
    ) -> None:
        self.study, self.made = study, made
        self.trials: dict[tuple[str, str, str], list[tuple[Role, str]]] = {}
        for planned in cells:
            for role in planned.roles:
                if role.purpose in ("search", "trainability_search"):
                    key = (role.purpose, role.candidate, role.attack or role.task)
                    self.trials.setdefault(key, []).append((role, planned.digest))
        self.points = {key: self._chosen(key) for key in self.trials}
        self.settled = True

    def allows(self, role: Role) -> bool:
        """Whether a role is still what the study asks for."""
        searching = {
            "attack": ("search", role.attack),
            "generalization": ("search", role.attack),
            "trainability": ("trainability_search", role.task),
        }.get(role.purpose)
        if searching is None:
            return True
        key = (searching[0], role.candidate, searching[1])
        if key not in self.points or self.points[key] == role.point:
            return True
        self.settled = False
        return False

    def _chosen(self, key: tuple[str, str, str]) -> Point | None:
        purpose, _, name = key
        search: Search
        if purpose == "search":
            use = next(a for a in self.study.resistance.expanded() if a.label == name)
            space, search = use.search, Grid(cheapest_breach(self.study.resistance.phi))
        elif (spec := self.study.trainability) is not None:
            space, search = spec.search, Grid(best_score("task"))
        else:  # no such task: nothing was searched
            return {}

        def run(point: Point) -> tuple[CellRecord, ...] | None:
            digests = [d for role, d in self.trials[key] if role.point == point]
            records = [self.made[d] for d in digests if d in self.made]
            return tuple(records) if records and len(records) == len(digests) else None

        return chosen(search, space, run)
