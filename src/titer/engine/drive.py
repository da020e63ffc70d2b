"""Drive one method under a budget: meter it, probe it on a grid, stop it, resume it. Makes a record.

Probes never change the trajectory: they run without gradient, in evaluation mode, with the random state restored.
"""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import torch

from titer.data.encoding import unfit
from titer.data.examples import Example
from titer.data.subject import Subject
from titer.engine.checkpoint import Rolling
from titer.engine.environment import environment
from titer.engine.meter import Meter
from titer.errors import RunError
from titer.measures.measure import Measure, read
from titer.methods.method import Method, MethodData, Run, StepLog
from titer.records.bounds import bounds
from titer.records.model import Artifact, CellRecord, Cost, MeasureFacts, Outcome, ProbeRecord, Reading
from titer.study.base import canonical, digest
from titer.study.cell import Cell, CellMeasure


@dataclass
class Eye:
    """A measure with its text in hand. spec says when it is read."""

    spec: CellMeasure
    measure: Measure
    examples: Sequence[Example]
    items: str

    @property
    def key(self) -> str:
        """Label, measure and items: what two readings of one model must share to be the same reading."""
        return canonical([self.spec.label, self.spec.name, self.spec.version, self.spec.settings, self.items])


@dataclass
class Driven:
    """What driving gave: the record, the transcripts by (step, label), the final model (for building cells)."""

    record: CellRecord
    transcripts: dict[tuple[int, str], list[dict[str, Any]]] = field(default_factory=dict)
    model: Any = None


Progress = Callable[[int, int], None]
"""(steps done, steps in all)"""


class Stopped(Exception):
    """Raised by a progress callback to stop a cell between two steps (the parent is gone, or a test wants it)."""


def drive(
    cell: Cell,
    method: Method | None,
    subject: Subject,
    data: MethodData,
    eyes: Sequence[Eye],
    *,
    rolling: Rolling | None = None,
    progress: Progress | None = None,
    artifact: Callable[[Any], Artifact] | None = None,
    keep_transcripts: bool = False,
    at_start: dict[str, tuple[Reading, list[dict[str, Any]]]] | None = None,
) -> Driven:
    """Run a cell from its parent's model, held by `subject` (changed in place), to its record.

    at_start: readings of this very model at step 0 by `Eye.key`, used and filled, so that seeds share them; give it only
    if the method starts as its parent. With `rolling`, a checkpoint left by an interrupted run of the same cell is
    continued with identical results; the caller deletes it once the record is safe.
    Deterministic on CPU: torch's global generator is seeded from the cell; everything else is a function of the seed.
    """
    state = _State(cell, started=_now(), at_start=at_start)
    if method:
        state.notes = {"template_train": template_digest(subject.tokenizer)} | _fit(method, data, subject)
    with torch.random.fork_rng(devices=_cuda(subject)):
        torch.manual_seed(cell.seed)
        run: Run = _Still(subject.model)
        if method:
            run = method.start(subject, data, seed=cell.seed, horizon=cell.steps)
        subject.model = run.model
        saved = rolling.read() if rolling else None
        if saved is not None:
            run.load_state_dict(saved["run"])
            state.restore(saved["engine"])
            _set_random_state(saved["rng"], subject)
        meter = Meter(run.model, state.cost)
        try:
            _loop(cell, run, subject, eyes, meter, state, rolling, progress, keep_transcripts)
        finally:
            meter.close()
        model = run.model
    if state.probes:
        state.notes["template_eval"] = template_digest(subject.tokenizer)
    record = state.record(subject, eyes, meter, artifact(model) if artifact and cell.keep else None)
    return Driven(record=record, transcripts=state.transcripts, model=model)


def _loop(
    cell: Cell,
    run: Run,
    subject: Subject,
    eyes: Sequence[Eye],
    meter: Meter,
    state: _State,
    rolling: Rolling | None,
    progress: Progress | None,
    keep_transcripts: bool,
) -> None:
    grid = set(cell.probes)
    while True:
        step = meter.steps
        last = step >= cell.steps or state.outcome != "reached_budget"
        if (step in grid or (last and grid)) and not state.probed(step):
            begun = time.perf_counter()
            # Probes see the model as it is, and the next step sees the same random numbers with or without them.
            rng = _random_state(subject)
            state.probe(cell, subject, eyes, meter.cost(), last=last, keep=keep_transcripts)
            _set_random_state(rng, subject)
            state.probe_seconds += time.perf_counter() - begun
        if last or state.outcome != "reached_budget":
            return
        if rolling and rolling.due():
            rolling.write({"run": run.state_dict(), "engine": state.dump(meter.cost()),
                           "rng": _random_state(subject)})  # fmt: skip
        if progress:
            progress(step, cell.steps)
        meter.start()
        try:
            log = run.step()
        finally:
            meter.stop()
        meter.steps += 1
        state.log(log)


class _Still:
    """No method at all: a model that is only looked at, in a cell of no steps."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def step(self) -> StepLog:
        raise RunError("a cell without a method has no steps", field="cell.steps", remedy="plan it with steps: 0")

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        return


class _State:
    """What has been seen so far of one cell."""

    def __init__(self, cell: Cell, started: str, at_start: dict | None = None) -> None:
        self.cell, self.started, self.cost = cell, started, Cost()
        self.at_start = at_start
        self.outcome: Outcome = "reached_budget"
        self.probes: list[ProbeRecord] = []
        self.loss: list[float | None] = []
        self.grad_norm: list[float | None] = []
        self.other: dict[str, list[float | None]] = {}
        self.probe_seconds = 0.0
        self.resumed = 0
        self.transcripts: dict[tuple[int, str], list[dict[str, Any]]] = {}
        self.facts: dict[str, MeasureFacts] = {}
        self.notes: dict[str, str] = {}

    def probed(self, step: int) -> bool:
        return any(p.step == step for p in self.probes)

    def log(self, log: StepLog) -> None:
        self.loss.append(_finite(log.loss))
        self.grad_norm.append(_finite(log.grad_norm))
        for name, value in log.other.items():
            self.other.setdefault(name, []).append(_finite(value))
        if self.loss[-1] is None or self.grad_norm[-1] is None:
            self.outcome = "diverged"

    def probe(self, cell: Cell, subject: Subject, eyes: Sequence[Eye], cost: Cost, *, last: bool, keep: bool) -> None:
        step, readings = cost.steps, {}

        def look(eye: Eye) -> None:
            label = eye.spec.label
            self.facts[label] = eye.measure.facts()
            memo = self.at_start if step == 0 else None
            if memo is not None and eye.key in memo:
                readings[label], transcripts = memo[eye.key]
            else:
                readings[label], transcripts = read(eye.measure, subject, eye.examples, label)
                if memo is not None:
                    memo[eye.key] = readings[label], transcripts
            if keep:
                self.transcripts[step, label] = transcripts

        for eye in eyes:
            if eye.spec.at == "probes" or (eye.spec.at == "ends" and step == 0):
                look(eye)
        harm, stop = readings.get("harm"), cell.stop
        if stop and harm and harm.value is not None and harm.value >= stop.suspect:
            for eye in (e for e in eyes if e.spec.at == "suspected_breach"):
                look(eye)
            if self._beyond(readings, eyes, stop.above, stop.level):
                self.outcome, last = "stopped_broken", True
        if last:
            for eye in (e for e in eyes if e.spec.at == "ends" and e.spec.label not in readings):
                look(eye)
        self.probes.append(ProbeRecord(step=step, cost=cost, readings=tuple(readings.values())))

    def _beyond(self, readings: dict[str, Reading], eyes: Sequence[Eye], above: float, level: float) -> bool:
        """Harm, and its confirmation on other prompts where there is one, are surely above `above`."""
        labels = {e.spec.label for e in eyes} & {"harm", "confirm"}
        return all(k in readings and bounds(readings[k], self.facts[k], level)[0] >= above for k in labels)

    def dump(self, cost: Cost) -> dict[str, Any]:
        return {
            "cost": cost.model_dump(), "outcome": self.outcome, "started": self.started, "loss": self.loss,
            "grad_norm": self.grad_norm, "other": self.other, "probe_seconds": self.probe_seconds,
            "resumed": self.resumed, "probes": [p.model_dump(mode="json") for p in self.probes],
            "facts": {k: v.model_dump(mode="json") for k, v in self.facts.items()},
            "transcripts": [[s, k, v] for (s, k), v in self.transcripts.items()],
        }  # fmt: skip

    def restore(self, saved: dict[str, Any]) -> None:
        for name in ("outcome", "started", "loss", "grad_norm", "other", "probe_seconds"):
            setattr(self, name, saved[name])
        self.cost = Cost(**saved["cost"])
        self.probes = [ProbeRecord.model_validate(p) for p in saved["probes"]]
        self.facts = {k: MeasureFacts.model_validate(v) for k, v in saved["facts"].items()}
        self.transcripts = {(s, k): v for s, k, v in saved["transcripts"]}
        self.resumed = saved["resumed"] + 1

    def record(self, subject: Subject, eyes: Sequence[Eye], meter: Meter, artifact: Artifact | None) -> CellRecord:
        parameters = list(subject.model.parameters())
        return CellRecord(
            digest=self.cell.digest, cell=self.cell, outcome=self.outcome, probes=tuple(self.probes),
            measures=self.facts, loss=tuple(self.loss), grad_norm=tuple(self.grad_norm),
            other={k: tuple(v) for k, v in self.other.items()}, cost=meter.cost(),
            probe_seconds=round(self.probe_seconds, 6), peak_memory_bytes=_peak_memory(subject),
            parameters=sum(p.numel() for p in parameters),
            trainable_parameters=sum(p.numel() for p in parameters if p.requires_grad),
            artifact=artifact, environment=environment(subject.device), started=self.started, finished=_now(),
            resumed=self.resumed, items={e.spec.label: e.items for e in eyes}, transcripts=bool(self.transcripts),
            notes=self.notes,
        )  # fmt: skip


def template_digest(tokenizer: Any) -> str:
    """Names a chat template by its content; two models asked in the same words have the same one."""
    return digest(tokenizer.chat_template or "")


def _fit(method: Method, data: MethodData, subject: Subject) -> dict[str, str]:
    """How much of the training text did not fit into max_length: note → '12 of 100 answers cut, 1 left out'. Empty if all of it did."""
    answers = {need.rpartition(".")[2] for need in method.needs}
    found = {}
    for kind, answer in (*(("harmful", a) for a in sorted(answers)), ("harmless", "response")):
        cut, lost, count = unfit(subject.tokenizer, getattr(data, kind), answer, subject.max_length)
        if cut or lost:
            found[f"{kind} {answer}"] = (
                f"{cut} of {count} answers cut, {lost} examples left out at {subject.max_length} tokens"
            )
    return found


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _random_state(subject: Subject) -> dict[str, torch.Tensor]:
    """Everything dropout draws from: the host's generator, and the device's if the model is on one."""
    state = {"cpu": torch.random.get_rng_state()}
    if subject.device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(subject.device)
    return state


def _set_random_state(state: dict[str, torch.Tensor], subject: Subject) -> None:
    torch.random.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], subject.device)


def _cuda(subject: Subject) -> list[int]:
    return [subject.device.index or 0] if subject.device.type == "cuda" else []


def _peak_memory(subject: Subject) -> int:
    """Largest memory of this process so far (host), or of the device's allocator, in bytes."""
    if subject.device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(subject.device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
