"""What trains must not judge: every use of every part of a pool, and which may not share one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Protocol

from titer.study.base import Contradiction
from titer.study.candidate import Candidate
from titer.study.conditions import Stability, Trainability
from titer.study.resistance import Resistance
from titer.study.uses import Align, DataUse

TRAINS, JUDGES, SEARCHES = "training", "judging", "searching"


class UsesText(Protocol):
    """The fields of a study that name parts of pools."""

    @property
    def align(self) -> Align | None: ...
    @property
    def defense_data(self) -> DataUse | None: ...
    @property
    def candidates(self) -> tuple[Candidate, ...]: ...
    @property
    def resistance(self) -> Resistance: ...
    @property
    def stability(self) -> Stability | None: ...
    @property
    def trainability(self) -> Trainability | None: ...


def uses(study: UsesText) -> Iterator[tuple[str, str, str]]:
    """(what for, where in the study, part) for every part that is used."""
    r = study.resistance
    trains: list[tuple[str, DataUse | None]] = [
        ("resistance.data", r.data),
        *((f"attacks.{a.label}.data", a.data) for a in r.attacks),
    ]
    for candidate in study.candidates:
        own = [s.data for s in (*candidate.stages, candidate.service) if s is not None]
        trains += [
            (f"candidates.{candidate.name}.data", d) if d else ("defense_data", study.defense_data)
            for d in own
        ]
    if study.align:
        trains.append(("align.data", study.align.data))
    judges: list[tuple[str, str | None]] = [
        ("resistance.harm", r.harm.part),
        ("resistance.confirm", r.confirm),
    ]
    judges += [
        (f"resistance.{n}", m.part)
        for n, m in (("second", r.second), ("capability", r.capability), ("samples", r.samples))
        if m
    ]
    searches = [("resistance.search_part", r.search_part)]
    for b in study.stability.benchmarks if study.stability else ():
        judges.append((f"stability.{b.name}", b.measure.part))
    for t in study.trainability.tasks if study.trainability else ():
        trains.append((f"trainability.{t.name}.data", t.data))
        judges.append((f"trainability.{t.name}.measure", t.measure.part))
        searches.append((f"trainability.{t.name}.search_part", t.search_part))
    yield from ((TRAINS, where, part) for where, data in trains if data for part in data.parts)
    yield from ((JUDGES, where, part) for where, part in judges if part)
    yield from ((SEARCHES, where, part) for where, part in searches if part)


def refuse_shared_parts(study: UsesText) -> None:
    """Raises Contradiction if one part both trains and judges, trains and searches, or searches and
    judges; or if the defender is given the very harmful text of the attacker.
    """
    found = list(uses(study))
    for (kind, where, part), (other, there, same) in itertools.combinations(found, 2):
        if part == same and kind != other:
            raise Contradiction(
                f"{part} is used for {kind} ({where}) and for {other} ({there})",
                field=where,
                value=part,
                expected="parts of their own: what trains must not judge, and what is searched on "
                "neither",
                remedy="cut another part from the pool",
            )
    defender = [
        stage.data or study.defense_data
        for c in study.candidates
        for stage in (*c.stages, c.service)
        if stage is not None
    ]
    attacker = {
        part
        for data in (study.resistance.data, *(a.data for a in study.resistance.attacks))
        for part in _harmful(data)
    }
    for data in defender:
        for part in _harmful(data):
            if part in attacker:
                raise Contradiction(
                    f"{part} trains both the defense and the attack",
                    field="defense_data",
                    value=part,
                    expected="text of the defender's own",
                    remedy="cut another part from the pool",
                )


def _harmful(data: DataUse | None) -> list[str]:
    """Parts of every slot but `harmless`."""
    return [u.part for slot, u in data.slots.items() if slot != "harmless"] if data else []
