"""What the tests of running share: a study of five cells, how its records are compared, and work
that fails.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from titer.errors import RunError
from titer.records.record import CellRecord
from titer.records.store import RunStore
from titer.runners.cell_runner import CellRunner
from titer.study.cell import Planned

Purpose = tuple[str, str, int]
"""(purpose, candidate, seed)"""

ALL: list[Purpose] = [
    ("defense", "refusal", 0),
    *(("attack", c, s) for c in ("none", "refusal") for s in (1, 2)),
]
"""The cells of the small study, in the order of its plan."""

OWN_ATTACKS = Path(__file__).with_name("own_attacks.py")
WHEN = {
    "seconds",
    "started",
    "finished",
    "environment",
    "peak_memory_bytes",
    "probe_seconds",
    "resumed",
}


def numbers(root: Path | str) -> dict[str, dict]:
    """All records of a run by digest, without what depends on when and where they were made."""
    return {d: numbers_of(r) for d, r in RunStore(root).view().records.items()}


def numbers_of(record: CellRecord) -> dict:
    """A record without what depends on when and where it was made."""

    def without(value):
        if isinstance(value, dict):
            return {k: without(v) for k, v in value.items() if k not in WHEN}
        return [without(v) for v in value] if isinstance(value, list) else value

    return without(record.model_dump(mode="json"))


def files(root: Path | str) -> dict[str, tuple[int, bytes]]:
    """Every record file with its time of change and its bytes."""
    return {
        p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in RunStore(root).cells.glob("*.json")
    }


def purpose_of(planned: Planned) -> Purpose:
    role = planned.roles[0]
    return role.purpose, role.candidate, role.seed


def done(root: Path | str) -> set[Purpose]:
    view = RunStore(root).view()
    return {purpose_of(p) for p in view.plan.cells if p.digest in view.records}


def watched(monkeypatch) -> list[Purpose]:
    """The cells that are worked on in this process, in order."""
    return failing(monkeypatch, lambda *_: False)


def failing(
    monkeypatch, which: Callable[[str, str, int], bool], error: Exception | None = None
) -> list[Purpose]:
    """Work on cells for which `which(purpose, candidate, seed)` holds fails, in this process. Gives
    the cells that are worked on, in order.
    """
    seen: list[Purpose] = []
    real = CellRunner.perform

    def perform(self, planned, progress=None):
        seen.append(purpose_of(planned))
        if which(*seen[-1]):
            raise error or RunError(
                "made to fail", field="cell", value=" ".join(map(str, seen[-1]))
            )
        return real(self, planned, progress)

    monkeypatch.setattr(CellRunner, "perform", perform)
    return seen
