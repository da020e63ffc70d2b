"""Records made by hand for planned cells: what a search would have found, without running it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from titer.records.model import CellRecord, Cost, Environment, MeasureFacts, ProbeRecord, Reading
from titer.study.cell import Cell


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


def knowing(records: dict[str, CellRecord]) -> Callable[[str], CellRecord | None]:
    return records.get
