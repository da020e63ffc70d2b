"""A (possibly unfinished) run as the verdicts see it: the study, the plan and the records."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from titer.records.record import CellRecord
from titer.study.cell import Plan, Planned, Role
from titer.study.facts import MethodFacts
from titer.study.spec import Study


@dataclass(frozen=True)
class Entry:
    """One role of one cell, with its record (None while the cell is missing). planned: what the
    plan says the cell's method declares about itself.
    """

    digest: str
    role: Role
    record: CellRecord | None
    planned: MethodFacts | None = None

    @property
    def facts(self) -> MethodFacts | None:
        """What the cell's method declared about itself: in its record, or in the plan while there
        is none. None if it declared nothing.
        """
        return self.record.facts if self.record else self.planned


@dataclass(frozen=True)
class RunView:
    """study, plan, records by cell digest. problems: corrupted records that were set aside, as
    sentences. plan_problems: why the plan cannot be the one that was written for the study.
    """

    study: Study
    plan: Plan
    records: dict[str, CellRecord]
    problems: tuple[str, ...] = ()
    plan_problems: tuple[str, ...] = ()

    def entry(self, planned: Planned, role: Role) -> Entry:
        return Entry(planned.digest, role, self.records.get(planned.digest), planned.facts)

    def entries(self, purpose: str, **where: Any) -> Iterator[Entry]:
        """Entries of one purpose, in plan order, whose role fields equal `where`."""
        for planned in self.plan.cells:
            for role in planned.roles:
                if role.purpose == purpose and all(getattr(role, k) == v for k, v in where.items()):
                    yield self.entry(planned, role)

    @property
    def missing(self) -> int:
        """Cells planned but not finished."""
        return sum(p.digest not in self.records for p in self.plan.cells)
