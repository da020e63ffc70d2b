"""The records of a run, sorted once by what they are for, with the constants every judgement needs."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from titer.records.model import CellRecord, MeasureFacts
from titer.records.view import Entry, RunView
from titer.study.spec import CONTROL, AttackUse, Study
from titer.verdicts.seeds import required_seeds
from titer.verdicts.tracks import Track, read_tracks, unfit


@dataclass(frozen=True)
class Design:
    """What the study fixed beforehand. level: α over the number of planned probes, for every exact bound of a run."""

    alpha: float
    delta: float
    seeds: tuple[int, ...]
    grid: tuple[int, ...]
    n_required: int
    level: float

    @property
    def budget(self) -> int:
        return self.grid[-1]


class Evidence:
    """A run view, indexed. Reading it never fails on missing cells: they are absent from the answers."""

    def __init__(self, view: RunView) -> None:
        self.view, self.study = view, view.study
        spec = self.study.resistance
        grid = spec.grid()
        self.design = Design(
            alpha=spec.alpha,
            delta=spec.delta,
            seeds=spec.seeds,
            grid=grid,
            n_required=required_seeds(spec.alpha, spec.delta),
            level=spec.alpha / len(grid),
        )
        self.battery: tuple[AttackUse, ...] = spec.expanded()
        self._index: dict[tuple[Any, ...], list[Entry]] = defaultdict(list)
        self._by_purpose: dict[str, list[Entry]] = defaultdict(list)
        for planned in view.plan.cells:
            for role in planned.roles:
                entry = Entry(planned.digest, role, view.records.get(planned.digest))
                self._by_purpose[role.purpose].append(entry)
                key = (role.purpose, role.candidate, role.attack, role.defended_on, role.attacked_on, role.task)
                self._index[key].append(entry)
        self._tracks: dict[tuple[Any, ...], tuple[Track, ...]] = {}

    def purpose(self, purpose: str) -> list[Entry]:
        """All entries of one purpose in plan order."""
        return self._by_purpose[purpose]

    def entries(
        self, purpose: str, candidate: str, *, attack: str = "", defended: str = "", attacked: str = "", task: str = ""
    ) -> list[Entry]:
        """Entries whose role is exactly this, in plan order."""
        return self._index.get((purpose, candidate, attack, defended, attacked, task), [])

    def tracks(self, candidate: str, attack: str) -> tuple[Track, ...]:
        """Confirmation trajectories of an attack (by label) on a candidate."""
        return self._read("attack", candidate, attack)

    def crossed(self, candidate: str, attack: str, defended: str, attacked: str) -> tuple[Track, ...]:
        """Trajectories of the generalization matrix."""
        return self._read("generalization", candidate, attack, defended=defended, attacked=attacked)

    def searched(self, candidate: str, attack: str) -> tuple[tuple[Entry, Track], ...]:
        """Search cells with a record, in plan order. They are never judged."""
        found = []
        for entry in self.entries("search", candidate, attack=attack):
            tracks = read_tracks([entry], self.design.grid, self.design.level, self.facts(attack))
            found += [(entry, t) for t in tracks]
        return tuple(found)

    def _read(self, purpose: str, candidate: str, attack: str, **where: str) -> tuple[Track, ...]:
        key = (purpose, candidate, attack, *sorted(where.items()))
        if key not in self._tracks:
            entries = self.entries(purpose, candidate, attack=attack, **where)
            self._tracks[key] = read_tracks(entries, self.design.grid, self.design.level, self.facts(attack))
        return self._tracks[key]

    @cached_property
    def _methods(self) -> dict[str, str]:
        return {a.name: a.attack for a in self.battery if a.name}

    def facts(self, attack: str) -> dict[str, Any]:
        """What the registry declared about the method of an attack; a label that is another method's name lends it nothing."""
        known = self.view.plan.methods
        return known.get(self._methods.get(attack, attack)) or known.get(attack) or {}

    def role(self, attack: str) -> str:
        """`attack` unless the method is declared a reference: an unknown method must break the control."""
        return "reference" if self.facts(attack).get("role") == "reference" else "attack"

    @cached_property
    def harm(self) -> MeasureFacts | None:
        """Facts of the primary harm measure, from the first record that has them."""
        return self._facts("harm")

    @cached_property
    def second(self) -> MeasureFacts | None:
        return self._facts("second")

    def _facts(self, label: str) -> MeasureFacts | None:
        for entry in self.purpose("attack"):
            if entry.record and label in entry.record.measures:
                return entry.record.measures[label]
        return None

    @cached_property
    def construct(self) -> str:
        """The declared construct of f; empty while nothing has been read."""
        return self.harm.harm_construct if self.harm else ""

    @cached_property
    def unfit_measure(self) -> str | None:
        """Why nothing can be judged at all, as a sentence; None if it can: an unfit measure, or data that overlap."""
        if shared := self.view.plan.disjointness.get("exact_overlap"):
            return (
                f"{shared} examples are in two parts of the data, so what was seen may be memory; run the study afresh"
            )
        if self.harm is None or not unfit(self.harm):
            return None
        return (
            f"the harm measure {self.harm.name!r} cannot be judged: it must score each item 0 or 1 (or declare its "
            "sampling fixed), and more must mean more harm"
        )

    def unknown_data(self, candidate: str) -> bool:
        """Whether the defender's data are unknown (a model brought from outside)."""
        listed = self.view.plan.disjointness.get("unknown_defender_data") or ()
        return candidate in listed or any(c.name == candidate and c.model is not None for c in self.study.candidates)

    def finished(self, purpose: str) -> list[CellRecord]:
        """Records of one purpose, each once."""
        return list({e.digest: e.record for e in self.purpose(purpose) if e.record}.values())


def candidates_of(study: Study) -> list[str]:
    """Names of the candidates other than the control."""
    return [c.name for c in study.candidates if c.name != CONTROL]
