"""The specification of a study: what is defended, what attacks it, within which budget, and what is
measured.

Nothing here imports torch or looks a method up: names and raw settings are resolved by a registry
later, still before any work (`titer.methods.registry`). Every class is frozen and refuses unknown
fields. `docs/studies.md` explains each field with an example.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Annotated, Any, Final, Literal

from pydantic import Field, field_validator, model_validator

from titer.study.base import Contradiction, Strict, digest
from titer.study.candidate import CONTROL, Candidate
from titer.study.cell import CONTROL_MODEL, PARENT
from titer.study.conditions import Benchmark, Generalization, Stability, Task, Trainability
from titer.study.disjoint import refuse_shared_parts
from titer.study.reference import ModelRef
from titer.study.resistance import AttackUse, Resistance, geometric
from titer.study.uses import (
    Align,
    DataUse,
    MeasureUse,
    MethodUse,
    Name,
    Pool,
    Stage,
    no_repeats,
)

__all__ = [
    "CONTROL",
    "STUDY_FORMAT",
    "AttackUse",
    "Benchmark",
    "Candidate",
    "DataUse",
    "Generalization",
    "MeasureUse",
    "MethodUse",
    "Pool",
    "Resistance",
    "Runtime",
    "Stability",
    "Stage",
    "Study",
    "Task",
    "ThreatModel",
    "Trainability",
    "geometric",
]

STUDY_FORMAT: Final = 2

ThreatModel = Literal["open_weights", "fine_tuning_service"]


class Runtime(Strict):
    """How the work is done. Only `precision` and `max_length` (tokens) determine results; the rest
    is convenience.
    """

    precision: Literal["fp32", "bf16_autocast"] = "fp32"
    max_length: Annotated[int, Field(ge=8)] = 128
    eval_batch: Annotated[int, Field(gt=0)] = 32
    workers: Annotated[int, Field(gt=0)] = 1
    threads: Annotated[int, Field(gt=0)] = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    price_per_hour: Annotated[float, Field(ge=0)] | None = None


class Study(Strict):
    """A whole study; see the module's docstring and docs/studies.md.

    models: further models that methods ask for by name (`parent` and `control` are always there).
    plugins: Python files that define methods, measures or judges.
    """

    format: Literal[2] = STUDY_FORMAT
    name: Name
    title: str = ""
    description: str = ""
    threat_model: ThreatModel
    theoretical_guarantee: str = "none"
    model: ModelRef
    align: Align | None = None
    models: dict[Name, ModelRef] = {}
    plugins: tuple[str, ...] = ()
    pools: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")], Pool] = Field(min_length=1)
    defense_data: DataUse | None = None
    candidates: tuple[Candidate, ...] = Field(min_length=1)
    resistance: Resistance
    stability: Stability | None = None
    generalization: Generalization | None = None
    trainability: Trainability | None = None
    runtime: Runtime = Runtime()

    @field_validator("candidates")
    @classmethod
    def _control(cls, value: tuple[Candidate, ...]) -> tuple[Candidate, ...]:
        no_repeats([c.name for c in value], "", "candidate names")
        return value if any(c.name == CONTROL for c in value) else (Candidate(name=CONTROL), *value)

    @model_validator(mode="after")
    def _references(self) -> Study:
        known = {f"{pool}/{part}" for pool, spec in self.pools.items() for part in spec.parts}
        for where, part in _parts_used(self):
            if part not in known:
                raise _no_such("part of a pool", where, part, known)
        for name, pool in self.pools.items():
            for other in pool.drop_near:
                if other not in self.pools:
                    raise _no_such("pool", f"pools.{name}.drop_near", other, self.pools)
        for candidate in self.candidates:
            given = [stage.data for stage in candidate.stages]
            if self.defense_data is None and any(data is None for data in given):
                raise Contradiction(
                    f"candidate {candidate.name!r} has a defense but no data to train it on",
                    field="defense_data",
                    value=None,
                    expected="parts of pools for the defender",
                    remedy="add defense_data to the study, or data to the candidate",
                )
            wanted = len(self.resistance.seeds)
            if len(candidate.seeds) not in (1, wanted):
                raise Contradiction(
                    f"candidate {candidate.name!r} has {len(candidate.seeds)} seeds",
                    field=f"candidates.{candidate.name}.seeds",
                    value=list(candidate.seeds),
                    expected=f"one, or as many as resistance.seeds ({wanted}): a fresh checkpoint "
                    "for every attack seed",
                )
        for gone in self.resistance.left_out:
            others = [c.name for c in self.candidates if c.name != CONTROL]
            if gone.candidate not in (None, *others):
                raise _no_such("candidate", "resistance.left_out", str(gone.candidate), others)
        for name in self.models:
            if name in (PARENT, CONTROL_MODEL):
                raise Contradiction(
                    "every cell has a model with this name already",
                    field="models",
                    value=name,
                    expected=f"a name other than {PARENT} and {CONTROL_MODEL}",
                )
        if self.generalization:
            labels = [str(a.name) for a in self.resistance.expanded()]
            if self.generalization.attack not in labels:
                raise _no_such(
                    "attack of resistance",
                    "generalization.attack",
                    self.generalization.attack,
                    labels,
                )
            for name in self.generalization.candidates or ():
                if name not in (names := [c.name for c in self.candidates]):
                    raise _no_such("candidate", "generalization.candidates", name, names)
        refuse_shared_parts(self)
        return self

    @property
    def digest(self) -> str:
        """16 hex digits naming the study's content; `runtime` fields that cannot change results are
        left out.
        """
        body = self.model_dump(mode="json")
        body["runtime"] = {k: body["runtime"][k] for k in ("precision", "max_length")}
        del body["plugins"]  # a path says where code is; cells say which code it was
        return digest(body)


def _no_such(kind: str, field: str, name: str, known: Iterable[str]) -> Contradiction:
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return Contradiction(
        f"no {kind} has this name",
        field=field,
        value=name,
        expected=f"one of {', '.join(known)}",
        remedy=f"did you mean {near[0]}?" if near else None,
    )


def _parts_used(study: Study) -> list[tuple[str, str]]:
    """(where, pool/part) for every reference to text in the study."""
    found: list[tuple[str, str]] = []

    def walk(value: Any, where: str) -> None:
        if isinstance(value, DataUse):
            found.extend((f"{where}.{slot}", use.part) for slot, use in value.slots.items())
        elif isinstance(value, MeasureUse):
            if value.part:
                found.append((f"{where}.part", value.part))
        elif isinstance(value, Strict):
            for name in type(value).model_fields:
                child = getattr(value, name)
                if name in ("confirm", "search_part") and child:
                    found.append((f"{where}.{name}", child))
                else:
                    walk(child, f"{where}.{name}")
        elif isinstance(value, tuple):
            for i, item in enumerate(value):
                walk(item, f"{where}[{getattr(item, 'name', None) or i}]")

    for name in type(study).model_fields:
        walk(getattr(study, name), name)
    return found
