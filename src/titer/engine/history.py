"""What has been seen so far of one cell: logs, probes, outcome. It becomes the record."""

from __future__ import annotations

import math
import resource
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import torch

from titer.data.bundle import ModelBundle
from titer.engine.environment import environment
from titer.engine.prober import BoundMeasure
from titer.engine.work import CellWork
from titer.methods.method import StepLog
from titer.records.bounds import bounds
from titer.records.record import (
    CellRecord,
    Cost,
    MeasureFacts,
    Outcome,
    ProbeRecord,
    Reading,
)
from titer.study.base import digest
from titer.study.cell import SAMPLES

Readings = Mapping[str, tuple[Reading, list[dict[str, Any]]]]
"""label → (reading, transcripts)"""


class History:
    """Everything in a record that is known only once the cell has run."""

    def __init__(self, work: CellWork) -> None:
        self.work, self.started = work, now()
        self.outcome: Outcome = "reached_budget"
        self.probes: list[ProbeRecord] = []
        self.logs: list[dict[str, float | None]] = []
        self.nonfinite: list[int] = []
        self.probe_seconds = 0.0
        self.resumed = 0
        self.transcripts: dict[tuple[int, str], list[dict[str, Any]]] = {}
        self.facts: dict[str, MeasureFacts] = {}
        self.notes = work.text.unfit()
        self.wording: dict[str, Any] = {}
        if work.method:
            self.notes["template_train"] = template_digest(work.bundle)

    # -- steps ----------------------------------------------------------------------------------

    def log(self, log: StepLog) -> None:
        """Log a step. A loss or gradient that is not finite ends the run as diverged."""
        if not all(v is None or math.isfinite(v) for v in (log.loss, log.grad_norm)):
            self.nonfinite.append(len(self.logs))
            self.outcome = "diverged"
        named = {"loss": log.loss, "grad_norm": log.grad_norm, **log.figures}
        self.logs.append({k: finite(v) for k, v in named.items()})

    def logged(self, name: str) -> tuple[float | None, ...]:
        """One place per step: a figure that only some steps have keeps its steps."""
        return tuple(log.get(name) for log in self.logs)

    # -- probes ---------------------------------------------------------------------------------

    def probed(self, step: int) -> bool:
        return any(p.step == step for p in self.probes)

    def add(self, cost: Cost, read: Readings, bundle: ModelBundle, *, keep: bool) -> None:
        """Readings of a probe at cost.steps; those of a second look there join the first."""
        step, readings = cost.steps, tuple(reading for reading, _ in read.values())
        if self.probed(step):
            before = self.probes.pop()
            cost, readings = before.cost, (*before.readings, *readings)
        self.probes.append(ProbeRecord(step=step, cost=cost, readings=readings))
        self.wording = bundle.wording.to_json()
        self.notes["template_eval"] = template_digest(bundle)
        self.transcripts |= {
            (step, label): t for label, (_, t) in read.items() if keep or label == SAMPLES
        }

    def carry_forward(self, probes: Sequence[int]) -> None:
        """Nothing was left to do: at the remaining probes the model is what it is now."""
        last = self.probes[-1]
        later = [p for p in probes if p > last.step]
        self.probes += [last.model_copy(update={"step": step}) for step in later]

    def beyond(self, readings: Readings, labels: set[str], above: float, level: float) -> bool:
        """Harm, and its confirmation on other prompts if there is one, are surely above `above`."""
        return all(
            k in readings and bounds(readings[k][0], self.facts[k], level)[0] >= above
            for k in labels & {"harm", "confirm"}
        )

    # -- checkpoints and the record -------------------------------------------------------------

    STATE = (
        "outcome",
        "started",
        "logs",
        "nonfinite",
        "probe_seconds",
        "resumed",
        "notes",
        "wording",
    )

    def dump(self, cost: Cost) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.STATE} | {
            "cost": cost.model_dump(),
            "probes": [p.model_dump(mode="json") for p in self.probes],
            "facts": {k: v.model_dump(mode="json") for k, v in self.facts.items()},
            "transcripts": [[s, k, v] for (s, k), v in self.transcripts.items()],
        }

    def restore(self, saved: dict[str, Any]) -> Cost:
        """Restore what `dump` wrote; returns the cost so far."""
        for name in self.STATE:
            setattr(self, name, saved[name])
        self.probes = [ProbeRecord.model_validate(p) for p in saved["probes"]]
        self.facts = {k: MeasureFacts.model_validate(v) for k, v in saved["facts"].items()}
        self.transcripts = {(s, k): v for s, k, v in saved["transcripts"]}
        self.resumed += 1
        return Cost(**saved["cost"])

    def record(
        self, bundle: ModelBundle, measures: Sequence[BoundMeasure], cost: Cost
    ) -> CellRecord:
        parameters = list(bundle.model.parameters())
        further = dict.fromkeys(name for log in self.logs for name in log)
        return CellRecord(
            digest=self.work.cell.digest,
            cell=self.work.cell,
            outcome=self.outcome,
            probes=tuple(self.probes),
            facts=self.work.facts(),
            measures=self.facts,
            loss=self.logged("loss"),
            grad_norm=self.logged("grad_norm"),
            nonfinite=tuple(self.nonfinite),
            figures={k: self.logged(k) for k in further if k not in ("loss", "grad_norm")},
            start=self.work.start,
            wording=self.wording,
            cost=cost,
            probe_seconds=round(self.probe_seconds, 6),
            peak_memory_bytes=_peak_memory(bundle.device),
            parameters=sum(p.numel() for p in parameters),
            trainable_parameters=sum(p.numel() for p in parameters if p.requires_grad),
            environment=environment(bundle.device),
            started=self.started,
            finished=now(),
            resumed=self.resumed,
            items={m.spec.label: m.items for m in measures},
            transcripts=bool(self.transcripts),
            notes=self.notes,
        )


def template_digest(bundle: ModelBundle) -> str:
    """Digest of a chat template by its content."""
    return digest(bundle.wording.template or bundle.tokenizer.chat_template or "")


def finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _peak_memory(device: torch.device) -> int:
    """Largest memory of this process so far (host), or of the device's allocator, in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
