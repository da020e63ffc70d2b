"""What the tests of running share: a study of five cells, and bad things that can happen in a
worker.
"""

from __future__ import annotations

import os
from pathlib import Path

from titer.records.model import CellRecord
from titer.records.store import RunStore
from titer.runners import execute
from titer.study.cell import Planned

WHEN = {
    "seconds",
    "started",
    "finished",
    "environment",
    "peak_memory_bytes",
    "probe_seconds",
    "resumed",
}
real_perform = execute._perform


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


def purpose_of(planned: Planned) -> tuple[str, str, int]:
    role = planned.roles[0]
    return role.purpose, role.candidate, role.seed


def die(planned: Planned):
    """What the kernel does to a worker when memory runs out."""
    if purpose_of(planned)[0] == "attack":
        os._exit(9)
    return real_perform(planned)
