"""Condition 3: the defense trained on one group of domains, attacked on every other."""

from __future__ import annotations

import itertools

from titer.engine.planning.candidates import Candidates
from titer.engine.planning.pieces import Origin, Pieces
from titer.engine.planning.resistance import Chosen, attacked, harm_measures
from titer.study.candidate import CONTROL
from titer.study.cell import Role


def add(pieces: Pieces, candidates: Candidates, chosen: Chosen) -> None:
    study, spec = pieces.study, pieces.study.generalization
    if spec is None:
        return
    attack = next(a for a in study.resistance.expanded() if a.name == spec.attack)
    wanted = None if spec.candidates is None else {*spec.candidates, CONTROL}
    for candidate in study.candidates:
        if wanted is not None and candidate.name not in wanted:
            continue
        if candidate.model is not None:
            continue  # its defender's domains are unknown, so there is nothing to cross
        rows: dict[str, tuple[Origin, ...]] = {"": candidates.every(candidate.name)}
        if candidate.defenses:
            rows = {
                group: candidates.retrained(candidate, domains, group)
                for group, domains in spec.groups.items()
            }
        point = chosen[candidate.name, attack.label]
        if point is None:
            continue
        for (row, made), (column, domains) in itertools.product(rows.items(), spec.groups.items()):
            measures = harm_measures(pieces, domains)
            for index, seed in enumerate(spec.seeds):
                origin = made[index % len(made)]
                role = Role(
                    purpose="generalization",
                    candidate=candidate.name,
                    attack=attack.label,
                    seed=seed,
                    defense_seed=origin.defense_seed,
                    defended_on=row,
                    attacked_on=column,
                    point=point,
                )
                attacked(pieces, origin, attack, point, role, measures=measures, domains=domains)
