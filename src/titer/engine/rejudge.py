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

from titer.engine.rejudge_rules import (
    SETTING,
    SearchChoice,
    breached,
    is_judged,
    judge_of,
    lacks_confirmation,
    with_judge,
    would_have_gone_on,
)
from titer.errors import MeasureError, RecordError, StudyError, UsageError
from titer.judges.cache import JudgementCache, judged
from titer.measures.judged import JudgeUse
from titer.measures.measure import Measure, scored
from titer.measures.registry import resolve_measure
from titer.measures.requests import Transcript
from titer.records.record import CellRecord, ProbeRecord, Reading
from titer.records.store import RunStore
from titer.study.base import canonical
from titer.study.cell import Cell, CellMeasure, Plan, Planned
from titer.study.plugins import code_digest, load_plugins
from titer.study.spec import Study

NOTE = "rejudged"
"""Note in a record that was judged again: the digest of the one it was made from."""
CUT_SHORT = "cut_short"
"""Note in a record of a run that the old judge stopped and the new one would not have."""

Replies = dict[tuple[int, str], list[Transcript]]
"""(step, label) → replies."""


@dataclass
class Rejudged:
    """The result. records: judged again; taken_over: without a judge, as they were. replies:
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
    with suppress(StudyError):  # missing plug-ins are reported where they are needed
        load_plugins(before.plugins)
    study = with_judge(before, judge, plugins)
    rejudging = _Rejudging(old, new, study, judge, report)
    rejudging.refuse()  # before the directory is taken
    with new.locked():
        new.begin(study)
        return rejudging.work()


# -- the study ------------------------------------------------------------------------------------


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
        """Raise UsageError if there is nothing to judge again."""
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
        with suppress(RecordError):  # a damaged record counts as missing
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
            "judge": judge_of(measure).identity(),
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
        if would_have_gone_on(made):
            self.result.cut_short += 1
            if {role.purpose for role in planned.roles} == {"search"} and not breached(
                made, self.study.resistance.phi
            ):
                return None
            made = made.model_copy(update={"notes": {**made.notes, CUT_SHORT: "by the old judge"}})
        self.result.unconfirmed += lacks_confirmation(made)
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
        judge = judge_of(measure)
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
        choice = SearchChoice(self.study, cells, made)
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
