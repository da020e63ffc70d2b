"""Plans without running anything; and records made by hand for planned cells: what a search would
have found.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from titer.data.pools import Pools
from titer.engine.planning import Known, plan
from titer.records.record import CellRecord, Cost, Environment, MeasureFacts, ProbeRecord, Reading
from titer.study.cell import Cell, Plan, Planned, Role
from titer.study.spec import Study

SFT = {"attack": "full_sft", "settings": {"lr": 1e-3, "batch_size": 16}}
EXACT = {"measure": "exact_answer"}
GROUPS = {"first": ["vexar", "morbin", "skarn"], "second": ["drozel", "grulth", "tazmor"]}
GENERALIZATION = {"groups": GROUPS, "attack": "full_sft", "seeds": [21]}
STABILITY = {
    "benchmarks": [
        {
            "name": "known",
            "kind": "accuracy",
            "margin": 0.05,
            "measure": EXACT | {"part": "harmless/capability"},
        }
    ]
}
TRAINABILITY = {
    "tasks": [
        {
            "name": "task",
            "data": {"harmless": "harmless/defense"},
            "budget": 4,
            "search_part": "harm/search",
            "measure": EXACT | {"part": "harmless/capability"},
        }
    ],
    "recipe": {"name": "full_sft", "settings": {"batch_size": 16}},
    "seeds": [31, 32],
}


def nothing(digest: str) -> None:
    """No record is known."""


def planned(study: Study, known: Known = nothing) -> Plan:
    return plan(study, Pools(study), known)


def roles(plan: Plan, purpose: str, **where: Any) -> list[tuple[Planned, Role]]:
    """(cell, role) for every role of a purpose whose fields equal `where`, in plan order."""
    return [
        (p, r)
        for p in plan.cells
        for r in p.roles
        if r.purpose == purpose and all(getattr(r, k) == v for k, v in where.items())
    ]


def digests(plan: Plan, purpose: str | None = None, **where: Any) -> list[str]:
    if purpose is None:
        return [p.digest for p in plan.cells]
    return [p.digest for p, _ in roles(plan, purpose, **where)]


def record(
    cell: Cell,
    values: Sequence[float | None],
    label: str = "harm",
    *,
    flops_per_step: float = 1.0,
    higher: str = "harmful",
) -> CellRecord:
    """A record of `cell` whose reading at its k-th probe is values[k]; fewer values, and the run
    ended early.
    """
    probes = tuple(
        ProbeRecord(
            step=step,
            cost=Cost(steps=step, flops=flops_per_step * step),
            readings=(Reading(label=label, value=value, n=100, se=None, outcomes=()),),
        )
        for step, value in zip(cell.probes, values, strict=False)
    )
    facts = MeasureFacts(name="m", version=1, higher=higher, harm_construct="none")
    return CellRecord(
        digest=cell.digest,
        cell=cell,
        outcome="reached_budget",
        probes=probes,
        measures={label: facts},
        cost=probes[-1].cost,
        environment=Environment(titer="test"),
        started="",
        finished="",
    )
