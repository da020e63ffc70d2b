"""The models that are judged: the study's own alignment, then every candidate's stages in turn."""

from __future__ import annotations

from collections.abc import Iterable

from titer.engine.planning.pieces import Origin, Pieces, Service
from titer.study.candidate import Candidate
from titer.study.cell import CONTROL_MODEL, PARENT, CellHost, Role, Start
from titer.study.uses import DataUse, Stage


class Candidates:
    """name → what its cells start from, one entry per defense seed."""

    def __init__(self, pieces: Pieces) -> None:
        self.pieces = pieces
        study = pieces.study
        self.base = self.root = Origin(Start(ref=study.model))
        if study.align:
            role = Role(purpose="align", seed=study.align.seed)
            self.base = self._built(
                self.root, study.align, study.align.data, study.align.seed, role, "align"
            )
        self._made = {c.name: self._all(c) for c in study.candidates}

    def of(self, candidate: str, seed_index: int = 0) -> Origin:
        """The checkpoint that the seed of this index meets (modulo their number)."""
        made = self._made[candidate]
        return made[seed_index % len(made)]

    def every(self, candidate: str) -> tuple[Origin, ...]:
        """All checkpoints of a candidate, in the order of its seeds."""
        return self._made[candidate]

    def retrained(
        self, candidate: Candidate, domains: Iterable[str], group: str
    ) -> tuple[Origin, ...]:
        """The candidate's checkpoints, its defense trained on a group of domains alone."""
        return self._all(candidate, domains, group)

    def _all(
        self, candidate: Candidate, domains: Iterable[str] | None = None, group: str = ""
    ) -> tuple[Origin, ...]:
        several = len(candidate.seeds) > 1
        return tuple(
            self._one(candidate, seed, domains, group, seed if several else None)
            for seed in candidate.seeds
        )

    def _one(
        self,
        candidate: Candidate,
        seed: int,
        domains: Iterable[str] | None,
        group: str,
        defense_seed: int | None,
    ) -> Origin:
        field = f"candidates.{candidate.name}"
        origin = self._with_models(self.base)
        if candidate.model is not None:
            origin = self._with_models(Origin(Start(ref=candidate.model)))
        for k, stage in enumerate(candidate.stages):
            role = Role(
                purpose="defense",
                candidate=candidate.name,
                seed=seed,
                stage=k,
                defense_seed=defense_seed,
                defended_on=group,
            )
            data = stage.data or self.pieces.study.defense_data or DataUse()
            origin = self._built(origin, stage, data, seed, role, field, domains)
        service = None
        if candidate.service:
            data = candidate.service.data or self.pieces.study.defense_data or DataUse()
            use, where = candidate.service.method, f"{field}.service"
            bound = self.pieces.method("service", use, data, where, domains=domains)
            service = Service(bound.method, CellHost(method=bound.cell, texts=bound.texts))
        return Origin(origin.start, origin.models, service, defense_seed)

    def _with_models(self, origin: Origin) -> Origin:
        """With the further models that every cell can have. To the study's own alignment stage the
        control is the model it starts from."""
        named = {name: Start(ref=ref) for name, ref in self.pieces.study.models.items()}
        named |= {PARENT: origin.start, CONTROL_MODEL: self.base.start}
        return Origin(origin.start, named)

    def _built(
        self,
        origin: Origin,
        stage: Stage,
        data: DataUse,
        seed: int,
        role: Role,
        field: str,
        domains: Iterable[str] | None = None,
    ) -> Origin:
        """The model a defender's stage makes of `origin`."""
        method = self.pieces.method("defense", stage.method, data, field, domains=domains)
        made = self.pieces.add(
            self._with_models(origin), role, method=method, seed=seed, steps=stage.steps, keep=True
        )
        return self._with_models(Origin(Start(ref=origin.start.ref, parent=made)))
