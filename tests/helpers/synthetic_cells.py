"""The pieces of synthetic runs: readings, declarations, cells with their roles and records."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from titer.records.record import (
    CellRecord,
    Cost,
    Environment,
    MeasureFacts,
    Reading,
)
from titer.records.view import RunView
from titer.study.candidate import Candidate
from titer.study.cell import (
    Cell,
    CellHost,
    CellMethod,
    PartUse,
    Plan,
    Planned,
    Role,
    Start,
)
from titer.study.facts import MethodFacts
from titer.study.reference import ModelRef
from titer.study.resistance import AttackUse
from titer.study.spec import Study
from titer.study.uses import DataUse, MethodUse

GRID = (0, 1, 2, 4, 8, 16)
BREAKS = (0.0, 0.02, 0.3, 0.8, 0.95, 1.0)
RESISTS = (0.0, 0.0, 0.01, 0.02, 0.02, 0.03)
FLOPS_PER_STEP = 1e9
PROMPTS = 200
NAN = math.nan
Curve = Sequence[float | None]


def facts(
    name: str,
    higher: str,
    construct: str,
    *,
    scale: str = "proportion",
    sampling: str = "population",
    chance: float | None = None,
    unit: str = "share",
) -> MeasureFacts:
    return MeasureFacts(
        name=name,
        version=1,
        higher=higher,
        harm_construct=construct,
        scale=scale,
        sampling=sampling,
        chance=chance,
        unit=unit,
    )


def reading(
    label: str,
    value: float | None,
    n: int,
    *,
    outcomes: Sequence[float] | None = None,
    aspects: Mapping[str, float] | None = None,
) -> Reading:
    """A reading of a share (value · n ones), or of given outcomes. None: one outcome is not
    finite.
    """
    if outcomes is None:
        k = 0 if value is None else round(value * n)
        outcomes = (1.0,) * k + (0.0,) * (n - k)
        value = None if value is None else k / n
    else:
        value = float(np.mean(outcomes))
    return Reading(
        label=label,
        value=value,
        n=n,
        se=None,
        outcomes=tuple(map(float, outcomes)),
        aspects=dict(aspects or {}),
    )


def cost(step: int, flops: float = FLOPS_PER_STEP) -> Cost:
    return Cost(
        steps=step, examples=8 * step, tokens=512 * step, flops=flops * step, seconds=0.1 * step
    )


def per_seed(curve: Any, n: int) -> list[list[float | None]]:
    """One curve for every seed, from one curve or from one per seed."""
    if curve and isinstance(curve[0], (list, tuple, np.ndarray)):
        return [list(c) for c in curve]
    return [list(curve)] * n


def logged(values: Sequence[float | None]) -> tuple[float | None, ...]:
    """As a record keeps them: None where there is none or it was not finite."""
    return tuple(v if v is not None and math.isfinite(v) else None for v in values)


class Cells:
    """Collects cells and records. Every `Study` field can be overridden through `resistance` and
    `study`.

    attacks: label → fields of AttackUse besides `attack` and `name`. methods: method → what it
    declares about itself where that differs from a plain attack; None declares nothing.
    """

    def __init__(
        self,
        *,
        seeds: int = 5,
        attacks: Mapping[str, Mapping[str, Any]] | None = None,
        candidates: Sequence[Any] = ("defended",),
        grid: Sequence[int] = GRID,
        harm: MeasureFacts | None = None,
        prompts: int = PROMPTS,
        resistance: Mapping[str, Any] | None = None,
        methods: Mapping[str, Mapping[str, Any] | None] | None = None,
        **study: Any,
    ) -> None:
        attacks = attacks if attacks is not None else {"full_sft": {}}
        self.seeds, self.grid, self.prompts = tuple(range(seeds)), tuple(grid), prompts
        self.harm = harm or facts("keywords", "harmful", "refusal removal")
        self.methods = dict(methods or {})
        battery = [{"attack": label, "name": label, **more} for label, more in attacks.items()]
        harmful = {"attack": 500, "defense": 500, "search": 100}
        pools = {
            "harm": {
                "source": "made_up",
                "parts": {**harmful, "eval": prompts, "confirm": prompts},
            },
            "other": {"source": "made_up_elsewhere", "parts": {"attack": 500}},
            "harmless": {"source": "made_up_harmless", "parts": {"train": 500, "eval": 400}},
        }
        built = [
            {"name": c, "defense": "adversarial_loss", "steps": 100} if isinstance(c, str) else c
            for c in candidates
        ]
        self.study = Study.model_validate(
            {
                "name": "synthetic",
                "title": "A synthetic study",
                "threat_model": "open_weights",
                "model": "tiny:aligned",
                "defense_data": {"harmful": "harm/defense"},
                "pools": pools,
                "candidates": ["none", *built],
                "resistance": {
                    "attacks": battery,
                    "data": {"harmful": "harm/attack"},
                    "budget": grid[-1],
                    "probes": list(grid),
                    "harm": {"measure": self.harm.name, "part": "harm/eval"},
                    "confirm": "harm/confirm",
                    "seeds": list(self.seeds),
                    **(resistance or {}),
                },
                **study,
            }
        )
        self.cells: dict[str, tuple[Cell, list[Role]]] = {}
        self.facts: dict[str, MethodFacts | None] = {}
        self.records: dict[str, CellRecord] = {}
        self.built: dict[tuple[str, str, int | None], str] = {}
        self.problems: tuple[str, ...] = ()
        self.complete = True
        self.disjointness: dict[str, Any] = {
            "sizes": {"harm/eval": prompts},
            "exact_overlap": 0,
            "near_duplicates": {},
        }

    # -- cells ------------------------------------------------------------------------------------

    def add(
        self, cell: Cell, role: Role, *, facts: MethodFacts | None = None, **record: Any
    ) -> CellRecord | None:
        """A planned cell; with `probes`, also its record."""
        digest = cell.digest
        self.cells.setdefault(digest, (cell, []))[1].append(role)
        self.facts[digest] = facts
        if "probes" not in record:
            return None
        fields = {
            "outcome": "reached_budget",
            "environment": Environment(titer="0.1.0", git="abc", packages={"numpy": "2"}),
            "started": "2025-01-01T00:00:00+00:00",
            "finished": "2025-01-01T00:01:00+00:00",
            "facts": facts,
        }
        last = record["probes"][-1].cost if record["probes"] else Cost()
        self.records[digest] = CellRecord(
            digest=digest, cell=cell, **{**fields, "cost": last, **record}
        )
        return self.records[digest]

    def declared(self, method: str, settings: Mapping[str, Any]) -> MethodFacts | None:
        """What a method says about itself: with a schedule that is not constant, that it depends on
        its horizon."""
        own = self.methods.get(method, {})
        if own is None:
            return None
        fields = {
            "kind": "attack",
            "name": method,
            "version": 1,
            "reference": "made up",
            "cost": "1F+1B",
            "horizon_free": settings.get("schedule", "constant") == "constant",
            "starts_as_parent": True,
        }
        return MethodFacts(**{**fields, **own})

    def use(self, attack: str) -> AttackUse:
        return next(a for a in self.study.resistance.expanded() if a.label == attack)

    def candidate(self, name: str) -> Candidate:
        return next(c for c in self.study.candidates if c.name == name)

    def checkpoint(self, candidate: str, index: int) -> int | None:
        """The defense seed that the seed of this index meets; None if there is one checkpoint."""
        seeds = self.candidate(candidate).seeds
        return seeds[index % len(seeds)] if len(seeds) > 1 else None

    def texts(self, data: DataUse | None, group: str = "") -> dict[str, PartUse]:
        groups = self.study.generalization.groups if self.study.generalization else {}
        return {
            slot: PartUse(
                part=use.part,
                content=f"content of {use.part}",
                domains=groups.get(group, use.domains) if slot == "harmful" else use.domains,
                examples=use.examples,
            )
            for slot, use in (data.slots if data else {}).items()
        }

    def _host(self, candidate: str, group: str) -> CellHost | None:
        service = self.candidate(candidate).service
        if service is None:
            return None
        method = resolved("service", service.method)
        data = service.data or self.study.defense_data
        return CellHost(method=method, texts=self.texts(data, group))

    def _cell(
        self,
        role: Role,
        method: CellMethod,
        data: DataUse | None,
        *,
        steps: int,
        **more: Any,
    ) -> Cell:
        """A run of a method on a candidate. The root model is a name of its own for every kind of
        run, so that runs are different cells though nothing was built."""
        key = "/".join(
            (role.candidate, role.attack or role.task, role.defended_on, role.attacked_on)
        )
        made = (role.candidate, role.defended_on, role.defense_seed)
        return Cell(
            model=f"{role.purpose}:{key}",
            parent=self.built.get(made),
            method=method,
            texts=self.texts(data, role.attacked_on),
            host=self._host(role.candidate, role.defended_on),
            seed=role.seed,
            steps=steps,
            **more,
        )

    # -- the run ----------------------------------------------------------------------------------

    def view(self) -> RunView:
        root = ModelRef(source="tiny", name="aligned")
        cells = tuple(
            Planned(
                digest=d,
                cell=c,
                roles=tuple(r),
                start=Start(ref=root, parent=c.parent),
                facts=self.facts.get(d),
            )
            for d, (c, r) in self.cells.items()
        )
        plan = Plan(
            study=self.study.digest,
            cells=cells,
            complete=self.complete,
            disjointness=self.disjointness,
            sources={"harm": {"version": "1", "sha256": "0" * 64}},
        )
        return RunView(study=self.study, plan=plan, records=self.records, problems=self.problems)


def resolved(kind: str, use: MethodUse) -> CellMethod:
    return CellMethod(kind=kind, name=use.name, version=1, settings=dict(use.settings))
