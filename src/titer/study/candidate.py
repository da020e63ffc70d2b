"""What is judged: a model made from M by the defender, a model that exists already, or M behind a
service.
"""

from __future__ import annotations

from typing import Any

from pydantic import model_validator

from titer.study.base import Contradiction, Strict
from titer.study.reference import ModelRef
from titer.study.uses import (
    MethodUse,
    Name,
    Seeds,
    Service,
    Stage,
    no_repeats,
)

CONTROL = "none"
"""Name of the undefended control M; every study has it."""


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
