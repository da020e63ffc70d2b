"""From a study to cells. Nothing is run here, but everything is validated: names, settings, data, threat model.

Planning is repeated as results come in: cells that wait for a search are planned once its cells have records. It is a
pure function of (study, text, records), so an interrupted run plans the same again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any, Literal

from titer.assets.identity import identify
from titer.data.pools import Pools
from titer.engine.selection import best_attack_point, best_training_point
from titer.errors import StudyError
from titer.measures.registry import resolve_measure
from titer.methods.method import Method
from titer.methods.registry import resolve
from titer.records.model import CellRecord
from titer.study.cell import BEFORE_ALIGNMENT, Cell, CellMeasure, CellMethod, PartUse, Plan, Planned, Role, StopRule
from titer.study.reference import ModelRef
from titer.study.spec import (
    CONTROL,
    AttackUse,
    Candidate,
    DataUse,
    MeasureUse,
    Stage,
    Study,
    Task,
    Trainability,
    geometric,
)

Known = Callable[[str], CellRecord | None]
"""digest → record, or None while there is none."""

Start = tuple[ModelRef, str | None]
"""What a cell starts from: how the study names the root model, and the digest of the building cell, if any."""


def plan(study: Study, pools: Pools, known: Known) -> Plan:
    """All cells that can be planned now. Raises StudyError, UnknownNameError, ThreatModelError, AssetError."""
    return _Planner(study, pools, known).build()


class _Planner:
    def __init__(self, study: Study, pools: Pools, known: Known) -> None:
        self.study, self.pools, self.known = study, pools, known
        self.cells: dict[str, Cell] = {}
        self.roles: dict[str, list[Role]] = {}
        self.models: dict[str, str] = {}
        self.complete = True
        self.facts: dict[str, dict[str, Any]] = {}

    def build(self) -> Plan:
        study = self.study
        root: Start = (study.model, None)
        base = root
        if study.align:
            stability = self._looks_at_start(with_harm=True)
            if stability:
                self._add(
                    self._cell(root, probes=(0,), measures=stability),
                    Role(purpose="stability", candidate=BEFORE_ALIGNMENT),
                )
            base = self._building(root, study.align, Role(purpose="align", seed=study.align.seed), "align")
        # Breadth first over purposes, so that a killed run leaves whole conditions rather than half of everything.
        subjects = {c.name: self._candidate(c, base) for c in study.candidates}
        for candidate in study.candidates:
            looks = self._looks_at_start(with_harm=False)
            if looks:
                self._add(self._cell(subjects[candidate.name], probes=(0,), measures=looks),
                          Role(purpose="stability", candidate=candidate.name))  # fmt: skip
        chosen: dict[tuple[str, str], dict[str, Any] | None] = {}
        for candidate, attack in itertools.product(study.candidates, study.resistance.expanded()):
            chosen[candidate.name, attack.label] = self._search(candidate, attack, subjects[candidate.name])
        for attack, candidate in itertools.product(study.resistance.expanded(), study.candidates):
            point = chosen[candidate.name, attack.label]
            if point is not None:
                self._attack(candidate, attack, point, subjects[candidate.name])
        self._generalization(subjects, chosen, base)
        self._trainability(subjects)
        cells = tuple(
            Planned(digest=d, cell=c, roles=tuple(self.roles[d]), model_name=self.models[d])
            for d, c in self.cells.items()
        )
        return Plan(study=study.digest, cells=cells, complete=self.complete, disjointness=self._disjointness(),
                    sources=self.pools.provenance, methods=self.facts)  # fmt: skip

    def _disjointness(self) -> dict[str, Any]:
        outside = [c.name for c in self.study.candidates if c.model is not None]
        return self.pools.disjointness() | {"unknown_defender_data": outside}

    # -- the pieces a cell is made of -----------------------------------------------------------------------------

    def _add(self, cell: Cell, role: Role) -> str:
        address = cell.digest
        if address not in self.cells:
            self.cells[address], self.roles[address] = cell, []
            self.models[address] = self._model_name
        self.roles[address].append(role)
        return address

    def _cell(self, start: Start, /, **fields: Any) -> Cell:
        ref, parent = start
        self._model_name = ref.model_dump_json()
        runtime = self.study.runtime
        return Cell(model=identify(ref), parent=parent, precision=runtime.precision, max_length=runtime.max_length,
                    **fields)  # fmt: skip

    def _part(self, address: str, domains: Iterable[str] | None = None, examples: int | None = None) -> PartUse:
        names = tuple(domains) if domains is not None else None
        size = len(self.pools.part(address, names))
        if examples is not None and examples > size:
            raise StudyError("a part is smaller than what every seed draws from it", field=f"examples of {address}",
                             value=examples, expected=f"at most {size}", remedy="draw fewer, or enlarge the part")  # fmt: skip
        return PartUse(part=address, content=self.pools.digest(address, names), domains=names, examples=examples)

    def _data(self, use: DataUse, domains: Iterable[str] | None = None) -> dict[str, PartUse | None]:
        wanted = domains if domains is not None else use.domains
        harmful = None
        if use.harmful:
            examples = use.examples
            if domains is not None and examples is not None:  # a group may hold fewer than the whole part
                examples = min(examples, len(self.pools.part(use.harmful, tuple(domains))))
            harmful = self._part(use.harmful, wanted, examples)
        return {"harmful": harmful, "harmless": self._part(use.harmless, None, use.examples) if use.harmless else None}

    def _measure(
        self,
        use: MeasureUse,
        label: str,
        at: Literal["probes", "ends", "suspected_breach"] = "probes",
        part: str | None = None,
        domains: Iterable[str] | None = None,
    ) -> CellMeasure:
        measure = resolve_measure(use.measure, use.settings, field=label)
        address, names = part or use.part, tuple(domains) if domains is not None else use.domains
        limit = use.limit and min(use.limit, len(self.pools.part(address, names)))
        text = self._part(address, names, limit)
        for need in measure.needed():
            if any(getattr(e, need) in (None, "", ()) for e in self.pools.part(address, names)):
                raise StudyError(f"{use.measure} needs a {need} in every example it reads", field=label, value=address,
                                 expected=f"a part whose examples have a {need}", remedy="name another part or another measure")  # fmt: skip
        return CellMeasure(label=label, name=use.measure, version=measure.version,
                           settings=measure.model_dump(mode="json"), text=text, at=at)  # fmt: skip

    def _method(
        self, kind: Literal["attack", "defense"], name: str, settings: dict[str, Any], field: str
    ) -> tuple[Method, CellMethod]:
        method = resolve(kind, name, settings, field=field, threat_model=self.study.threat_model)
        self.facts[name] = method.facts()
        use = CellMethod(kind=kind, name=name, version=method.version, settings=method.model_dump(mode="json"))
        return method, use

    def _needs(self, method: Method, data: dict[str, PartUse | None], field: str) -> None:
        """Refuse data that lack the answers a method needs, before any work."""
        for need in method.needs:
            kinds, _, answer = need.rpartition(".")
            for kind in (kinds,) if kinds else ("harmful", "harmless"):
                use = data.get(kind)
                if use is None and kinds:
                    raise StudyError(f"{method.name} needs {kind} data", field=field, value=None,
                                     expected=f"a part of a pool under '{kind}'", remedy="name one")  # fmt: skip
                if use and any(getattr(e, answer) is None for e in self.pools.part(use.part, use.domains)):
                    raise StudyError(f"{method.name} needs a {answer} for every {kind} example", field=f"{field}.{kind}",
                                     value=use.part, expected=f"examples with a {answer}",
                                     remedy="set `respond: content_free` or `refuse: standard` on the pool")  # fmt: skip
        if not any(data.values()) and method.needs:
            raise StudyError(f"{method.name} was given no data", field=field, value=None,
                             expected="harmful and/or harmless parts", remedy="name them")  # fmt: skip

    def _building(
        self, start: Start, stage: Stage, role: Role, field: str, domains: Iterable[str] | None = None
    ) -> Start:
        """The model a defender's stage makes of `start`."""
        method, use = self._method("defense", stage.method.name, stage.method.settings, field)
        data = self._data(stage.data, domains)
        self._needs(method, data, f"{field}.data")
        cell = self._cell(start, method=use, seed=stage.seed, steps=stage.steps, keep=True, **data)
        return start[0], self._add(cell, role)

    # -- condition by condition -----------------------------------------------------------------------------------

    def _candidate(
        self, candidate: Candidate, base: Start, domains: Iterable[str] | None = None, group: str = ""
    ) -> Start:
        """A candidate's model; base: the study's own, after its alignment stage."""
        if candidate.model is not None:
            return candidate.model, None
        if candidate.defense is None:
            return base
        data = candidate.data or self.study.defense_data or DataUse()  # a study without any is refused before
        stage = Stage(method=candidate.defense, data=data, steps=candidate.steps, seed=candidate.seed)
        role = Role(purpose="defense", candidate=candidate.name, seed=candidate.seed, defended_on=group)
        return self._building(base, stage, role, f"candidates.{candidate.name}", domains)

    def _looks_at_start(self, *, with_harm: bool) -> tuple[CellMeasure, ...]:
        benchmarks = self.study.stability.benchmarks if self.study.stability else ()
        looks = [self._measure(b.measure, b.name) for b in benchmarks]
        if with_harm:
            looks.append(self._measure(self.study.resistance.harm, "harm"))
        return tuple(looks)

    def _trajectory(
        self,
        subject: Start,
        attack: AttackUse,
        point: dict[str, Any],
        *,
        seed: int,
        budget: int,
        probes: tuple[int, ...],
        eyes: tuple[CellMeasure, ...],
        domains: Iterable[str] | None = None,
    ) -> Cell:
        method, use = self._method("attack", attack.attack, {**attack.settings, **point}, f"attacks.{attack.name}")
        data = self._data(attack.data or self.study.resistance.data, domains)
        self._needs(method, data, f"attacks.{attack.name}.data")
        spec = self.study.resistance
        stop = StopRule(above=max((spec.phi, *spec.sensitivity)), suspect=min((spec.phi, *spec.sensitivity)),
                        level=spec.alpha / len(spec.grid()))  # fmt: skip
        return self._cell(subject, method=use, seed=seed, steps=budget, probes=probes, measures=eyes, stop=stop, **data)

    def _eyes(self, domains: Iterable[str] | None = None) -> tuple[CellMeasure, ...]:
        spec = self.study.resistance
        eyes = [
            self._measure(spec.harm, "harm", domains=domains),
            self._measure(spec.harm, "confirm", "suspected_breach", part=spec.confirm, domains=domains),
        ]
        if spec.capability:
            eyes.append(self._measure(spec.capability, "capability"))
        if spec.second and domains is None:
            eyes.append(self._measure(spec.second, "second", "ends"))
        return tuple(eyes)

    def _search(self, candidate: Candidate, attack: AttackUse, subject: Start) -> dict[str, Any] | None:
        """The searched settings to confirm; {} if nothing is searched; None while search cells are missing."""
        if not attack.search:
            return {}
        spec = self.study.resistance
        eyes = (self._measure(spec.harm, "harm", part=spec.search_part),)
        results: list[tuple[dict[str, Any], list[CellRecord]]] = []
        waiting = False
        for point in _points(attack.search):
            records = []
            for seed in spec.search_seeds:
                cell = self._trajectory(
                    subject, attack, point, seed=seed, budget=spec.budget, probes=spec.grid(), eyes=eyes
                )
                address = self._add(cell, Role(purpose="search", candidate=candidate.name, attack=attack.label,
                                               seed=seed, point=point))  # fmt: skip
                record = self.known(address)
                waiting |= record is None
                records += [record] if record else []
            results.append((point, records))
        if waiting:
            self.complete = False
            return None
        return best_attack_point(results, spec.phi)

    def _attack(self, candidate: Candidate, attack: AttackUse, point: dict[str, Any], subject: Start) -> None:
        spec = self.study.resistance
        method, _ = self._method("attack", attack.attack, {**attack.settings, **point}, f"attacks.{attack.name}")
        grid = spec.grid()
        # A horizon-dependent schedule shares no prefix: every budget of the grid is trained on its own.
        budgets = [(spec.budget, grid)] if method.horizon_free() else [(b, (0, b)) for b in grid[1:]]
        for seed, (budget, probes) in itertools.product(spec.seeds, budgets):
            cell = self._trajectory(subject, attack, point, seed=seed, budget=budget, probes=probes, eyes=self._eyes())
            self._add(cell, Role(purpose="attack", candidate=candidate.name, attack=attack.label, seed=seed, point=point,
                                 prefix_budget=None if method.horizon_free() else budget))  # fmt: skip

    def _generalization(
        self, subjects: dict[str, Start], chosen: dict[tuple[str, str], dict[str, Any] | None], base: Start
    ) -> None:
        spec, resistance = self.study.generalization, self.study.resistance
        if spec is None:
            return
        attack = next(a for a in resistance.expanded() if a.name == spec.attack)
        wanted = set(spec.candidates) if spec.candidates is not None else None
        for candidate in self.study.candidates:
            if wanted is not None and candidate.name not in wanted | {CONTROL}:
                continue
            if candidate.model is not None:
                continue  # its defender's domains are unknown, so there is nothing to cross
            point = chosen[candidate.name, attack.label]
            rows: list[tuple[str, tuple[str, ...] | None]] = [("", None)]
            if candidate.defense is not None:
                rows = list(spec.groups.items())
            made = {
                row: subjects[candidate.name] if trained is None else self._candidate(candidate, base, trained, row)
                for row, trained in rows
            }
            if point is None:
                continue
            for (row, subject), (column, domains) in itertools.product(made.items(), spec.groups.items()):
                for seed in spec.seeds:
                    cell = self._trajectory(subject, attack, point, seed=seed, budget=resistance.budget,
                                            probes=resistance.grid(), eyes=self._eyes(domains), domains=domains)  # fmt: skip
                    self._add(cell, Role(purpose="generalization", candidate=candidate.name, attack=attack.label, seed=seed,
                                         defended_on=row, attacked_on=column, point=point))  # fmt: skip

    def _trainability(self, subjects: dict[str, Start]) -> None:
        spec = self.study.trainability
        if spec is None:
            return
        for task, candidate in itertools.product(spec.tasks, self.study.candidates):
            point: dict[str, Any] | None = {}
            if spec.search:
                results, waiting = [], False
                for searched in _points(spec.search):
                    records = []
                    for seed in spec.search_seeds:
                        cell = self._training(spec, subjects[candidate.name], task, searched, seed, task.search_part)
                        address = self._add(cell, Role(purpose="trainability_search", candidate=candidate.name,
                                                       task=task.name, seed=seed, point=searched))  # fmt: skip
                        record = self.known(address)
                        waiting |= record is None
                        records += [record] if record else []
                    results.append((searched, records))
                point = None if waiting else best_training_point(results)
                self.complete &= not waiting
            for seed in spec.seeds if point is not None else ():
                cell = self._training(spec, subjects[candidate.name], task, point or {}, seed, None)
                self._add(cell, Role(purpose="trainability", candidate=candidate.name, task=task.name, seed=seed,
                                     point=point or {}))  # fmt: skip

    def _training(
        self, spec: Trainability, subject: Start, task: Task, point: dict[str, Any], seed: int, part: str | None
    ) -> Cell:
        method, use = self._method("attack", spec.recipe.name, {**spec.recipe.settings, **point}, "trainability.recipe")
        data = self._data(task.data)
        self._needs(method, data, f"trainability.{task.name}.data")
        eye = self._measure(task.measure, "task", part=part)
        probes = geometric(task.budget)
        return self._cell(subject, method=use, seed=seed, steps=task.budget, probes=probes, measures=(eye,), **data)


def _points(search: dict[str, tuple[Any, ...]]) -> list[dict[str, Any]]:
    """Every combination of the searched values, in declared order."""
    return [dict(zip(search, values, strict=True)) for values in itertools.product(*search.values())]
