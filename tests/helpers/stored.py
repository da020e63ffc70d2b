"""Records and plans small enough to be written by hand."""

from __future__ import annotations

from titer.records.record import CellRecord, Cost, Environment, MeasureFacts, ProbeRecord, Reading
from titer.study.cell import BEFORE_ALIGNMENT, Cell, Plan, Planned, Role, Start
from titer.study.reference import ModelRef


def reading(label="harm", outcomes=(1.0, 0.0, 1.0)) -> Reading:
    finite = all(o is not None for o in outcomes)
    value = sum(outcomes) / len(outcomes) if finite else None
    return Reading(
        label=label,
        value=value,
        n=len(outcomes),
        se=0.1 if finite else None,
        outcomes=tuple(outcomes),
    )


def cell(seed: int = 0) -> Cell:
    return Cell(model="tiny", seed=seed, steps=2, probes=(0, 2))


def record(seed: int = 0, **changes) -> CellRecord:
    fields = {
        "digest": cell(seed).digest,
        "cell": cell(seed),
        "outcome": "reached_budget",
        "probes": (ProbeRecord(step=0, cost=Cost(), readings=(reading(),)),),
        "measures": {
            "harm": MeasureFacts(name="m", version=1, higher="harmful", harm_construct="exact")
        },
        "loss": (0.5, None),
        "environment": Environment(titer="test"),
        "started": "then",
        "finished": "now",
    }
    return CellRecord(**fields | changes)


def plan_of(study, seeds=(0, 1, 2)) -> Plan:
    cells = tuple(
        Planned(
            digest=cell(s).digest,
            cell=cell(s),
            roles=(Role(purpose="stability", candidate=BEFORE_ALIGNMENT, seed=s),),
            start=Start(ref=ModelRef(source="tiny", name="aligned")),
        )
        for s in seeds
    )
    return Plan(study=study.digest, cells=cells, complete=True)
