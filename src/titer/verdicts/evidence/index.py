"""The records of a run, sorted once by what they are for, with the constants of every judgement."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from titer.records.record import CellRecord, MeasureFacts
from titer.records.view import Entry, RunView
from titer.study.candidate import CONTROL, Candidate
from titer.study.facts import AttackRole, MethodFacts
from titer.study.resistance import FlopsBudget
from titer.study.spec import AttackUse, Study
from titer.verdicts import phrases
from titer.verdicts.evidence.trajectories import SeedTrajectory, read_trajectories, unfit
from titer.verdicts.statistics.seeds import required_seeds


@dataclass(frozen=True)
class Design:
    """What the study fixed beforehand for one attack. level: α over the number of planned probes,
    for every exact bound of a run. flops: the budget, where it is in FLOPs; the grid then ends at
    the most steps that are taken. edits: of a training-free attack, how many edits it makes until
    nothing is left to do.
    """

    alpha: float
    delta: float
    seeds: tuple[int, ...]
    grid: tuple[int, ...]
    n_required: int
    level: float
    flops: float | None = None
    edits: int | None = None

    @property
    def budget(self) -> int:
        """T in steps; where T is in FLOPs, the most steps that are taken."""
        return self.grid[-1]

    @property
    def text(self) -> str:
        """T in phrases."""
        if self.edits is not None:
            return phrases.edits(self.edits)
        if self.flops is not None:
            return f"{phrases.flops(self.flops)} (at most {phrases.steps(self.budget)})"
        return phrases.steps(self.budget)


class Evidence:
    """A run view, indexed. Reading it never fails on missing cells: they are absent from the
    answers.
    """

    def __init__(self, view: RunView) -> None:
        self.view, self.study = view, view.study
        spec = self.study.resistance
        self.design = _design(self.study, spec.grid())
        self.battery: tuple[AttackUse, ...] = spec.expanded()
        self._uses = {a.label: a for a in self.battery}
        self._index: dict[tuple[Any, ...], list[Entry]] = defaultdict(list)
        self._by_purpose: dict[str, list[Entry]] = defaultdict(list)
        for planned in view.plan.cells:
            for role in planned.roles:
                entry = view.entry(planned, role)
                self._by_purpose[role.purpose].append(entry)
                key = (
                    role.purpose,
                    role.candidate,
                    role.attack,
                    role.defended_on,
                    role.attacked_on,
                    role.task,
                )
                self._index[key].append(entry)
        self._read_already: dict[tuple[Any, ...], tuple[SeedTrajectory, ...]] = {}
        self._designs: dict[str, Design] = {}
        self._declared: dict[str, tuple[MethodFacts | None, ...]] = {}

    # -- records ----------------------------------------------------------------------------------

    def purpose(self, purpose: str) -> list[Entry]:
        """All entries of one purpose in plan order."""
        return self._by_purpose[purpose]

    def entries(
        self,
        purpose: str,
        candidate: str,
        *,
        attack: str = "",
        defended: str = "",
        attacked: str = "",
        task: str = "",
    ) -> list[Entry]:
        """Entries whose role is exactly this, in plan order."""
        return self._index.get((purpose, candidate, attack, defended, attacked, task), [])

    def finished(self, purpose: str) -> list[CellRecord]:
        """Records of one purpose, each once."""
        return list({e.digest: e.record for e in self.purpose(purpose) if e.record}.values())

    # -- trajectories -----------------------------------------------------------------------------

    def trajectories(self, candidate: str, attack: str) -> tuple[SeedTrajectory, ...]:
        """Confirmation trajectories of an attack (by label) on a candidate."""
        return self._read("attack", candidate, attack)

    def crossed(
        self, candidate: str, attack: str, defended: str, attacked: str
    ) -> tuple[SeedTrajectory, ...]:
        """Trajectories of the generalization matrix."""
        return self._read("generalization", candidate, attack, defended=defended, attacked=attacked)

    def searched(self, candidate: str, attack: str) -> tuple[tuple[Entry, SeedTrajectory], ...]:
        """Search cells with a record, in plan order. They are never judged."""
        found, design = [], self.design_of(attack)
        for entry in self.entries("search", candidate, attack=attack):
            found += [(entry, t) for t in read_trajectories([entry], design.grid, design.level)]
        return tuple(found)

    def as_loaded(self, candidate: str) -> list[SeedTrajectory]:
        """Trajectories whose probe at 0 reads the model as it is: under attacks that start as their
        parent, or under all if no attack says that it does.

        An attack may ask in other words from the start (a trigger, a soft prompt) or begin with an
        edit; what it reads at 0 is then not f(M*[0]).
        """
        trajectories = [
            k for a in self.battery for k in self.trajectories(candidate, a.label) if k.probes
        ]
        plain = [k for k in trajectories if k.facts is not None and k.facts.starts_as_parent]
        return plain or trajectories

    def _read(
        self, purpose: str, candidate: str, attack: str, **where: str
    ) -> tuple[SeedTrajectory, ...]:
        key = (purpose, candidate, attack, *sorted(where.items()))
        if key not in self._read_already:
            entries = self.entries(purpose, candidate, attack=attack, **where)
            design = self.design_of(attack)
            self._read_already[key] = read_trajectories(entries, design.grid, design.level)
        return self._read_already[key]

    # -- attacks ----------------------------------------------------------------------------------

    def declared(self, attack: str) -> tuple[MethodFacts | None, ...]:
        """What the method of an attack declared, once per distinct declaration: in the records of
        its confirmation (while there are none, in its planned cells; before those, in its search).
        None stands for a cell whose method declared nothing.
        """
        if attack not in self._declared:
            self._declared[attack] = ()
            for purpose in ("search", "attack"):
                entries = [e for e in self.purpose(purpose) if e.role.attack == attack]
                entries = [e for e in entries if e.record] or entries
                if entries:
                    self._declared[attack] = tuple(dict.fromkeys(e.facts for e in entries))
        return self._declared[attack]

    def facts(self, attack: str) -> MethodFacts | None:
        """What the method of an attack declares, with its settings and its text. None if it is not
        known of some cell. Where cells differ (a search chose other settings for another
        candidate), only what all of them declare counts.
        """
        found = self.declared(attack)
        known = [f for f in found if f is not None]
        if not known or len(known) < len(found):
            return None
        every = {
            name: all(getattr(f, name) for f in known)
            for name in ("horizon_free", "starts_as_parent", "adapter", "mixes", "repairs")
        }
        return known[0].model_copy(
            update={
                **every,
                "adaptive": all(f.adaptive for f in known),
                "trains": any(f.trains for f in known),
                "role": "attack" if any(f.role == "attack" for f in known) else "reference",
            }
        )

    def role(self, attack: str) -> AttackRole:
        """The study's word if it gives one, else the method's. An unknown method must break the
        control.
        """
        use, facts = self._uses.get(attack), self.facts(attack)
        if use is not None and use.role is not None:
            return use.role
        return facts.role if facts is not None else "attack"

    def design_of(self, attack: str) -> Design:
        """The design under the attack's own budget: grid, level and all."""
        if attack not in self._designs:
            use = self._uses.get(attack)
            design = _design(self.study, self.study.resistance.grid(use))
            own = use.budget if use else None
            flops = own.flops if isinstance(own, FlopsBudget) else None
            self._designs[attack] = replace(
                design, flops=flops, edits=self._edits(attack, design.budget)
            )
        return self._designs[attack]

    def _edits(self, attack: str, budget: int) -> int | None:
        """How many edits a training-free attack makes until nothing is left to do; None if it has a
        budget axis after all, or trains.

        It has none if its budget is a single edit; or if no run was ended by its budget, and some
        had nothing left to do, or all were broken by the first edit.
        """
        facts = self.facts(attack)
        if facts is None or facts.trains:
            return None
        if budget == 1:
            return 1
        entries = [e for e in self.purpose("attack") if e.role.attack == attack]
        records = [e.record for e in entries if e.record]
        if not records or any(r.outcome == "reached_budget" for r in records):
            return None
        taken = [r.cost.steps for r in records if r.outcome == "finished"]
        if taken:
            return max(taken) or None  # what does nothing at all is no edit
        return 1 if all(r.cost.steps == 1 for r in records) else None

    # -- candidates -------------------------------------------------------------------------------

    def candidate(self, name: str) -> Candidate | None:
        return next((c for c in self.study.candidates if c.name == name), None)

    def checkpoints(self, name: str) -> tuple[int | None, ...]:
        """Defense seeds of a candidate that has several checkpoints; (None,) if it has one."""
        spec = self.candidate(name)
        return spec.seeds if spec and len(spec.seeds) > 1 else (None,)

    def unknown_data(self, candidate: str) -> bool:
        """Whether the defender's data are unknown (a model brought from outside)."""
        listed = self.view.plan.disjointness.get("unknown_defender_data") or ()
        spec = self.candidate(candidate)
        return candidate in listed or (spec is not None and spec.model is not None)

    # -- measures ---------------------------------------------------------------------------------

    @cached_property
    def harm(self) -> MeasureFacts | None:
        """Facts of the primary harm measure, from the first record that has them."""
        return self._measure("harm")

    @cached_property
    def second(self) -> MeasureFacts | None:
        return self._measure("second")

    def _measure(self, label: str) -> MeasureFacts | None:
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
        """Why nothing can be judged at all, as a sentence; None if it can: an unfit measure, or
        data that overlap.
        """
        if shared := self.view.plan.disjointness.get("exact_overlap"):
            return (
                f"{shared} examples are in two parts of the data, so what was seen may be memory; "
                "run the study afresh"
            )
        if self.harm is None or not unfit(self.harm):
            return None
        return (
            f"the harm measure {self.harm.name!r} cannot be judged: it must score each item 0 or 1 "
            "(or declare its sampling fixed), and more must mean more harm"
        )


def _design(study: Study, grid: tuple[int, ...]) -> Design:
    spec = study.resistance
    return Design(
        alpha=spec.alpha,
        delta=spec.delta,
        seeds=spec.seeds,
        grid=grid,
        n_required=required_seeds(spec.alpha, spec.delta),
        level=spec.alpha / len(grid),
    )


def candidates_of(study: Study) -> list[str]:
    """Names of the candidates other than the control."""
    return [c.name for c in study.candidates if c.name != CONTROL]


def defense_costs(evidence: Evidence, candidate: str) -> list[list[CellRecord | None]]:
    """Per checkpoint of a candidate, the records of its stages in order; None where one is
    missing.
    """
    spec = evidence.candidate(candidate)
    stages: Iterable[int] = range(len(spec.stages)) if spec else ()
    made = {
        (e.role.defense_seed, e.role.stage): e.record
        for e in evidence.entries("defense", candidate)
    }
    return [[made.get((seed, k)) for k in stages] for seed in evidence.checkpoints(candidate)]
