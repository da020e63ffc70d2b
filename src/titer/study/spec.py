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
from titer.study.cell import CONTROL_MODEL, PARENT
from titer.study.conditions import (
    AttackUse,
    Benchmark,
    Generalization,
    Resistance,
    Stability,
    Task,
    Trainability,
    geometric,
)
from titer.study.disjoint import refuse_shared_parts
from titer.study.reference import ModelRef
from titer.study.uses import (
    Align,
    DataUse,
    MeasureUse,
    MethodUse,
    Name,
    Pool,
    Seeds,
    Service,
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
CONTROL = "none"
"""Name of the undefended control M; every study has it."""

ThreatModel = Literal["open_weights", "fine_tuning_service"]


class Candidate(Strict):
    """A model whose immunity is judged: made from M by the defender's stages, one after the other,
    or a model that exists already; or M behind a fine-tuning service that defends itself.

    stages: each with method, steps and, unless the study's `defense_data` serve, data. In YAML a
    single stage may be written flat: `{name: X, defense: sft_refusal, steps: 200}`. seeds: seeds of
    the stages; several make a claim about the method instead of one checkpoint, and then attack
    seed i meets checkpoint i. model: a model from elsewhere. service: runs the attacker's training
    (threat model fine_tuning_service). The control `none` has none of these.
    """

    name: Name
    stages: tuple[Stage, ...] = ()
    seeds: Seeds = (0,)
    model: ModelRef | None = None
    service: Service | None = None

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        if value == CONTROL:
            return {"name": value}
        if not isinstance(value, dict) or not {"defense", "steps", "data", "seed"} & set(value):
            return value
        value, who = dict(value), f"candidate {value.get('name')!r}"
        flat = {k: value.pop(k) for k in ("defense", "steps", "data", "seed") if k in value}
        if "seed" in flat:
            if "seeds" in value:
                raise Contradiction(
                    f"{who} has both seed and seeds",
                    field="seed",
                    value=flat["seed"],
                    expected="one of the two",
                )
            value["seeds"] = [flat.pop("seed")]
        lost = [k for k, v in flat.items() if v is not None]
        if lost and value.get("stages"):
            raise Contradiction(
                f"{who} has both {lost[0]} and stages",
                field=lost[0],
                value=flat[lost[0]],
                expected="a single defense with its steps, or a list of stages",
            )
        if flat.get("defense") is None:
            if lost:
                raise Contradiction(
                    f"{who} has {lost[0]} but no defense",
                    field=lost[0],
                    value=flat[lost[0]],
                    expected="a defense, or stages, for it",
                )
            return value
        flat["method"] = flat.pop("defense")
        return {**value, "stages": [flat]}

    @model_validator(mode="after")
    def _one_of(self) -> Candidate:
        origins = [n for n in ("stages", "model") if getattr(self, n)]
        if self.name == CONTROL and (origins or self.service):
            raise Contradiction(
                "the candidate named 'none' is the undefended control",
                field="name",
                value=CONTROL,
                expected="no stages, model or service",
            )
        if self.name != CONTROL and not (origins or self.service):
            raise Contradiction(
                f"candidate {self.name!r} has neither a defense nor a model",
                field="stages",
                value=None,
                expected="a defense to be applied to M, a model that exists, or a service",
            )
        if len(origins) == 2:
            raise Contradiction(
                f"candidate {self.name!r} has both a defense and a model",
                field="model",
                value=str(self.model),
                expected="a defense to be applied to M, or a model that exists already",
            )
        if len(self.seeds) > 1 and not self.stages:
            raise Contradiction(
                f"candidate {self.name!r} is not trained, so that seeds change nothing",
                field="seeds",
                value=list(self.seeds),
                expected="one seed, or stages",
            )
        no_repeats(self.seeds, "seeds", "seeds of a candidate")
        return self

    @property
    def defenses(self) -> tuple[MethodUse, ...]:
        """Its stages' methods, then its service's."""
        own = tuple(stage.method for stage in self.stages)
        return (*own, self.service.method) if self.service else own


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
