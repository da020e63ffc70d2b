"""Judging a finished run again by another judge, from the replies it kept: no model is loaded.

Every measure of the study that has a judge gets the new one; what a method was rewarded with while
it trained stays what it was. Plan and records are those of the old run with these settings changed,
so that the new run directory is what `titer run` would have made with the new judge, as far as the
old run went.

It went as far as the old judge let it. A run that the old judge stopped, and that the new one would
have let go on, keeps the outcome `stopped_broken`: no verdict counts such a run as resisting, since
it did not come to its budget. Other prompts were read where the old judge suspected a breach: where
only the new one sees it, it stays unconfirmed, which is no resistance either.

If a search was cut short, which settings it would have chosen is not known; its record is left out.
Confirmations of settings that the new readings would not have chosen leave the plan, which is then
not complete: `titer run` on the new directory finishes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from titer.engine.planning.search import Grid, Point, Search, best_score, cheapest_breach, chosen
from titer.errors import MeasureError, RecordError, StudyError, UsageError
from titer.judges.cache import JudgementCache, judged
from titer.judges.judge import Judge
from titer.measures.judged import JudgeUse
from titer.measures.measure import Measure, Transcript, scored
from titer.measures.registry import measures, resolve_measure
from titer.records.bounds import bounds
from titer.records.model import CellRecord, ProbeRecord, Reading
from titer.records.store import RunStore
from titer.study.base import Strict, canonical
from titer.study.cell import Cell, CellMeasure, Plan, Planned, Role
from titer.study.conditions import AttackUse
from titer.study.load import validated
from titer.study.plugins import code_digest, load_plugins
from titer.study.spec import Study
from titer.study.uses import MeasureUse

SETTING = "judge"
"""The setting under which a measure names its judge."""
NOTE = "rejudged"
"""Note in a record that was judged again: the digest of the one it was made from."""
CUT_SHORT = "cut_short"
"""Note in a record of a run that the old judge stopped and the new one would not have."""

Replies = dict[tuple[int, str], list[Transcript]]
"""(step, label) → what was said there."""


@dataclass
class Rejudged:
    """What came of it. records: judged again; taken_over: without a judge, as they were. replies:
    judged; unjudged: those without a judgement. cut_short: runs that the new judge would have let
    go on. unconfirmed: runs in which it suspects a breach where no other prompts were read.
    missing: planned cells without a record. complete: whether no search is open.
    """

    records: int = 0
    taken_over: int = 0
    replies: int = 0
    unjudged: int = 0
    cut_short: int = 0
    unconfirmed: int = 0
    missing: int = 0
    complete: bool = True


Report = Callable[[int, int], None]
"""(records done, records in all)"""


def rejudge(
    old: RunStore,
    new: RunStore,
    judge: JudgeUse,
    *,
    plugins: Sequence[str] = (),
    report: Report = lambda done, total: None,
) -> Rejudged:
    """Judge the run in `old` again and write it to `new`.

    plugins: further files for the new study. Given again after an interruption, it asks the judge
    only what is still unknown. Raises UsageError (no judge in the study, the same judge as before,
    no replies kept), StudyError (the judge does not fit a measure), MeasureError (it does not
    answer).
    """
    if old.root.resolve() == new.root.resolve():
        raise UsageError(
            "a run cannot be judged again in its own directory",
            field="--to",
            value=str(new.root),
            expected="another directory than the run's",
        )
    before = old.study()
    with suppress(StudyError):  # those that are missed are told by name where they are needed
        load_plugins(before.plugins)
    study = with_judge(before, judge, plugins)
    rejudging = _Rejudging(old, new, study, judge, report)
    rejudging.refuse()  # before the directory is taken
    with new.locked():
        new.begin(study)
        return rejudging.work()


# -- the study ------------------------------------------------------------------------------------


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


# -- plan and records -----------------------------------------------------------------------------


@dataclass
class _Rejudging:
    old: RunStore
    new: RunStore
    study: Study
    judge: JudgeUse
    report: Report
    result: Rejudged = field(default_factory=Rejudged)

    def __post_init__(self) -> None:
        self.cache = JudgementCache(self.new.judgements)
        self._measures: dict[str, Measure] = {}
        self.before = self.old.plan()
        self.pairs = [(p, self._changed(p)) for p in self.before.cells]
        self.records = {p.digest: self._record(p.digest) for p in self.before.cells}

    def refuse(self) -> None:
        """Raise UsageError where there is nothing to judge again."""
        if all(p.digest == now.digest for p, now in self.pairs):
            raise UsageError(
                "the run was judged so already",
                field="--judge",
                value=self.judge.name,
                expected="another judge, or other settings",
            )
        lacking = sum(not self._has_replies(p, now) for p, now in self.pairs)
        if lacking:
            raise UsageError(
                "the run did not keep what its models said",
                field="run directory",
                value=f"{self.old.root} ({lacking} records without their replies)",
                expected="a run made with `titer run --keep-transcripts`",
            )

    def work(self) -> Rejudged:
        made: dict[str, CellRecord] = {}
        found = [(now, r) for p, now in self.pairs if (r := self.records[p.digest]) is not None]
        for done, (planned, record) in enumerate(found):
            self.report(done, len(found))
            again = self._again(planned, record)
            if again is not None:
                made[planned.digest] = again
        self.report(len(found), len(found))
        plan = self._plan(made)
        self.new.write_plan(plan)
        self.result.missing = sum(p.digest not in made for p in plan.cells)
        self.result.complete = plan.complete
        return self.result

    def _record(self, digest: str) -> CellRecord | None:
        with suppress(RecordError):  # a damaged record is none
            return self.old.record(digest)
        return None

    def _changed(self, planned: Planned) -> Planned:
        """The planned cell with the new judge."""
        cell = planned.cell
        measured = tuple(self._measured(m) for m in cell.measures)
        changed = cell.model_copy(update={"measures": measured})
        return planned.model_copy(update={"cell": changed, "digest": changed.digest})

    def _measured(self, spec: CellMeasure) -> CellMeasure:
        if not is_judged(spec.name):
            return spec
        settings = spec.settings | {SETTING: self.judge.model_dump(mode="json")}
        measure = resolve_measure(spec.name, settings, field="--judge")
        if (measure.version, code_digest(type(measure))) != (spec.version, spec.code):
            raise UsageError(
                "the run was read with another version of a measure",
                field="measure",
                value=f"{spec.name} v{spec.version}",
                expected=f"the version installed, v{measure.version}, with the same code",
                remedy="use the titer, or the plug-in file, that made the run",
            )
        changed = {
            "settings": measure.model_dump(mode="json"),
            "judge": _judge_of(measure).identity(),
        }
        return spec.model_copy(update=changed)

    def _has_replies(self, planned: Planned, now: Planned) -> bool:
        record = self.records[planned.digest]
        if record is None or planned.digest == now.digest:
            return True
        rows = self.old.read_transcripts(planned.digest)
        there = {(row.get("step"), row.get("label")) for row in rows}
        return all(needed in there for needed in _needed(record, now.cell))

    # -- one record -----------------------------------------------------------------------------

    def _again(self, planned: Planned, record: CellRecord) -> CellRecord | None:
        """Write the record as the new judge sees it; None if it is left out."""
        rows = self.old.read_transcripts(record.digest)
        if planned.digest == record.digest:
            self.new.take_over(self.old, record.digest)
            if rows:
                self.new.write_transcripts(record.digest, rows)
            self.result.taken_over += 1
            return record
        replies = _grouped(rows)
        made = self._judged(planned.cell, record, replies)
        if _would_have_gone_on(made):
            self.result.cut_short += 1
            if {role.purpose for role in planned.roles} == {"search"} and not _breached(
                made, self.study.resistance.phi
            ):
                return None
            made = made.model_copy(update={"notes": {**made.notes, CUT_SHORT: "by the old judge"}})
        self.result.unconfirmed += _lacks_confirmation(made)
        flat = [{"step": s, "label": k, **t} for (s, k), ts in replies.items() for t in ts]
        self.new.write_transcripts(made.digest, flat)
        self.new.write_record(made)
        self.result.records += 1
        return made

    def _judged(self, cell: Cell, record: CellRecord, replies: Replies) -> CellRecord:
        """The record with the new judge's readings; its judgements go into `replies`."""
        specs = {m.label: m for m in cell.measures if is_judged(m.name)}
        probes: list[ProbeRecord] = []
        for probe in record.probes:
            readings = []
            for reading in probe.readings:
                spec = specs.get(reading.label)
                if spec is not None:
                    reading = self._reading(spec, probe.step, replies, probes)
                readings.append(reading)
            probes.append(probe.model_copy(update={"readings": tuple(readings)}))
        facts = {
            k: self._measure(specs[k]).facts() if k in specs else f
            for k, f in record.measures.items()
        }
        return record.model_copy(
            update={
                "digest": cell.digest,
                "cell": cell,
                "probes": tuple(probes),
                "measures": facts,
                "notes": {**record.notes, NOTE: record.digest},
            }
        )

    def _reading(
        self, spec: CellMeasure, step: int, replies: Replies, before: Sequence[ProbeRecord]
    ) -> Reading:
        said = replies.get((step, spec.label))
        if said is None:  # nothing was done after the probe before: its readings are repeated
            return next(r for r in before[-1].readings if r.label == spec.label)
        measure = self._measure(spec)
        judge = _judge_of(measure)
        again = judged(judge, said, self.cache)
        replies[step, spec.label] = again
        spoken = [t for t in again if t.get("reply") is not None]
        unknown = sum(t["judged"] is None for t in spoken)
        if spoken and unknown == len(spoken):
            raise MeasureError(
                f"the judge {judge.name} gave no judgement of any of {unknown} replies",
                field="--judge",
                value=judge.name,
                expected="a judge that can be reached, and answers in the form its settings name",
                remedy="the same command goes on where it stopped; judgements are kept",
            )
        self.result.replies += len(spoken)
        self.result.unjudged += unknown
        return scored(measure, again, spec.label)

    def _measure(self, spec: CellMeasure) -> Measure:
        key = canonical([spec.name, spec.settings])
        if key not in self._measures:
            self._measures[key] = resolve_measure(spec.name, spec.settings)
        return self._measures[key]

    # -- searches -------------------------------------------------------------------------------

    def _plan(self, made: Mapping[str, CellRecord]) -> Plan:
        """The plan, without confirmations of what the searches would not have chosen."""
        cells = [now for _, now in self.pairs]
        choice = _Choice(self.study, cells, made)
        kept = []
        for planned in cells:
            roles = tuple(role for role in planned.roles if choice.allows(role))
            if roles:
                kept.append(planned.model_copy(update={"roles": roles}))
        return self.before.model_copy(
            update={
                "study": self.study.digest,
                "cells": tuple(kept),
                "complete": self.before.complete and choice.settled,
            }
        )


def _judge_of(measure: Measure) -> Judge:
    judge = measure.judge()
    if judge is None:
        raise UsageError(
            "a measure that names a judge has none",
            field="measure",
            value=measure.name,
            expected="a measure whose replies are judged",
        )
    return judge


def _needed(record: CellRecord, cell: Cell) -> list[tuple[int, str]]:
    """(step, label) of every judged reading that was taken, not repeated."""
    labels = {m.label for m in cell.measures if is_judged(m.name)}
    last = record.cost.steps if record.outcome == "finished" else cell.steps
    return [
        (probe.step, reading.label)
        for probe in record.probes
        for reading in probe.readings
        if reading.label in labels and probe.step <= last
    ]


def _grouped(rows: Iterable[Mapping[str, Any]]) -> Replies:
    found: Replies = {}
    for row in rows:
        said = {k: v for k, v in row.items() if k not in ("step", "label")}
        found.setdefault((row["step"], row["label"]), []).append(said)
    return found


def _would_have_gone_on(record: CellRecord) -> bool:
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


def _lacks_confirmation(record: CellRecord) -> bool:
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


def _breached(record: CellRecord, phi: float) -> bool:
    harm = (probe.reading("harm") for probe in record.probes)
    return any(r is not None and r.value is not None and r.value >= phi for r in harm)


class _Choice:
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
        else:
            assert self.study.trainability is not None
            space, search = self.study.trainability.search, Grid(best_score("task"))

        def run(point: Point) -> tuple[CellRecord, ...] | None:
            digests = [d for role, d in self.trials[key] if role.point == point]
            records = [self.made[d] for d in digests if d in self.made]
            return tuple(records) if records and len(records) == len(digests) else None

        return chosen(search, space, run)
