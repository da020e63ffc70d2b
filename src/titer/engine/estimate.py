"""What a study will cost before any of it is done: cells, steps, judge calls, time and memory.

Counts are upper limits: a model that breaks is not attacked further. Times are rough: measured by a
preflight where there was one, otherwise computed from the number of parameters and the throughput
of the device.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from titer.data.pools import Pools
from titer.engine.planning import plan
from titer.measures.measure import Measure
from titer.measures.registry import resolve_measure
from titer.records.record import CellRecord, Environment, MeasureFacts
from titer.study.base import canonical
from titer.study.cell import Cell, CellMeasure, Plan, Planned
from titer.study.reference import ModelRef
from titer.study.spec import Study

STEP_OVERHEAD_S = 0.008
"""Seconds of a step that do not shrink with the model (Python, optimizer, kernel launches), one CPU
thread.
"""
CELL_OVERHEAD_S = 0.3
FILLED = 0.7
"""Share of a batch's tokens that are not padding."""
TOKENS_PER_ITEM = 48
"""Tokens of a prompt with its answer."""
DECODING = 4.0
"""How much slower generating a token is than reading one."""
PARTS_UNKNOWN = 100


@dataclass(frozen=True)
class Timed:
    """What a preflight measured of one method on one model, in seconds; flops: of a later step.

    later: None if nothing was left to do after the first step.
    """

    setup: float
    first: float
    later: float | None
    setup_flops: float = 0.0
    flops: float = 0.0


@dataclass(frozen=True)
class TimedReading:
    """Time to read a few items of a measure."""

    items: int
    seconds: float
    flops: float


@dataclass(frozen=True)
class Timings:
    """methods: (model, `method_key`) → what was measured. readings: (model, `measure_key`) → the
    same. judges: `measure_key` → seconds of one judgement.
    """

    methods: Mapping[tuple[str, str], Timed] = field(default_factory=dict)
    readings: Mapping[tuple[str, str], TimedReading] = field(default_factory=dict)
    judges: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Estimate:
    """cells, steps, judge_calls: upper limits over the whole study; search_cells: those of the
    cells that only choose settings. seconds: wall time with the study's workers; memory_bytes: of
    all workers together. Both None if the size of a model is not known.
    """

    cells: int
    search_cells: int
    steps: int
    judge_calls: int
    seconds: float | None
    memory_bytes: float | None


def complete_plan(study: Study, pools: Pools) -> Plan:
    """The plan with every search taken as finished, so that the confirmations behind it are there
    too. Which point a search will choose is not known; here it is the first declared."""
    return plan(study, pools, _assumed)


def _assumed(digest: str) -> CellRecord:
    facts = MeasureFacts(name="assumed", version=1, higher="capable", harm_construct="none")
    return CellRecord(
        digest=digest,
        cell=Cell(model="assumed"),
        outcome="reached_budget",
        probes=(),
        measures={"harm": facts, "task": facts},
        environment=Environment(titer=""),
        started="",
        finished="",
    )


def method_key(planned: Planned) -> str:
    """Key of a method for timing: all that affects whether it runs and how fast. Real-valued
    settings such as learning rates do not count."""
    cell = planned.cell
    host = cell.host
    return canonical(
        [
            [cell.method.kind, cell.method.name, _structure(cell.method.settings)]
            if cell.method
            else None,
            {slot: use.part for slot, use in cell.texts.items()},
            [host.method.name, _structure(host.method.settings)] if host else None,
            {slot: use.part for slot, use in host.texts.items()} if host else None,
            [cell.precision, cell.max_length],
        ]
    )


def _structure(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _structure(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_structure(v) for v in value]
    return "a number" if isinstance(value, float) else value


def measure_key(measure: CellMeasure) -> str:
    """Key of a measure for timing: its name and settings, regardless of the text it reads."""
    return canonical([measure.name, measure.version, measure.settings])


def estimate(
    study: Study,
    complete: Plan,
    parameters: Mapping[ModelRef, int | None],
    *,
    throughput: float,
    timings: Timings | None = None,
) -> Estimate:
    """Estimate a whole study.

    complete: its plan, as `complete_plan` makes it. parameters: of each starting model.
    throughput: FLOP/s of one worker (`matmul_throughput`).
    """
    runtime, sizes = study.runtime, complete.disjointness.get("sizes", {})
    work = _Work(parameters, throughput, timings or Timings(), sizes)
    cells = complete.cells
    sized = [parameters.get(ref) for p in cells for ref in (p.start.ref, *_further(p))]
    seconds = memory = None
    if None not in sized:
        seconds = math.fsum(work.seconds(p) for p in cells) / runtime.workers
        memory = runtime.workers * max(_memory(p, parameters) for p in cells)
    searching = {"search", "trainability_search"}
    return Estimate(
        cells=len(cells),
        search_cells=sum({r.purpose for r in p.roles} <= searching for p in cells),
        steps=sum(p.cell.steps for p in cells),
        judge_calls=sum(work.judge_calls(p.cell, m) for p in cells for m in p.cell.measures),
        seconds=seconds,
        memory_bytes=memory,
    )


def _further(planned: Planned) -> list[ModelRef]:
    return [start.ref for start in planned.models.values()]


def _memory(planned: Planned, parameters: Mapping[ModelRef, int | None]) -> float:
    """Bytes of a worker: weights, gradient and two moments in fp32, the copy of a small starting
    model, further models, and the activations of one batch."""
    cell = planned.cell
    size = parameters[planned.start.ref] or 0
    others = {start.ref for start in planned.models.values()} - {planned.start.ref}
    further = sum(4.0 * (parameters[ref] or 0) for ref in others)
    training = 16.0 if cell.method else 4.0
    activations = 64.0 * math.sqrt(size) * cell.max_length * 32
    return training * size + min(8.0 * size, 5e8) + further + activations + 3e8


class _Work:
    """Seconds of cells, from measurements where there are any."""

    def __init__(
        self,
        parameters: Mapping[ModelRef, int | None],
        throughput: float,
        timings: Timings,
        sizes: Mapping[str, int],
    ) -> None:
        self.parameters, self.rate, self.timings, self.sizes = (
            parameters,
            throughput,
            timings,
            sizes,
        )
        self._measures: dict[str, Measure] = {}

    def seconds(self, planned: Planned) -> float:
        size = self.parameters[planned.start.ref] or 0
        total = CELL_OVERHEAD_S + (self._steps(planned, size) if planned.cell.method else 0.0)
        return total + math.fsum(self._readings(planned, m, size) for m in planned.cell.measures)

    # -- steps ----------------------------------------------------------------------------------

    def _steps(self, planned: Planned, size: int) -> float:
        cell, model = planned.cell, str(planned.start.ref)
        timed = self.timings.methods.get((model, method_key(planned)))
        if timed is None:
            flops = _flops_per_step(planned, size)
            steps = _within(cell, flops, 0.0)
            extra = _alignment_steps(cell, steps) * _flops_of(
                cell.host.method.settings if cell.host else {}, cell.max_length, 1, 1, size
            )
            return (steps * flops + extra) / self.rate + steps * STEP_OVERHEAD_S
        if timed.later is None or cell.steps <= 1:
            return timed.setup + timed.first * min(1, cell.steps)
        steps = _within(cell, timed.flops, timed.setup_flops)
        phases = max(1, _phases(cell, steps))
        return timed.setup + phases * timed.first + max(0, steps - phases) * timed.later

    # -- readings -------------------------------------------------------------------------------

    def _readings(self, planned: Planned, measure: CellMeasure, size: int) -> float:
        key, items = measure_key(measure), self._items(measure)
        timed = self.timings.readings.get((str(planned.start.ref), key))
        if timed is not None and timed.items:
            more = max(0, items - timed.items) * timed.flops / timed.items / self.rate
            once = timed.seconds + more
        else:
            options = measure.settings.get("options", 1)
            tokens = TOKENS_PER_ITEM * (options if isinstance(options, int) else 1)
            tokens += DECODING * measure.settings.get("max_new_tokens", 0)
            once = items * tokens * 2.0 * size / self.rate
        judged = self.judge_calls(planned.cell, measure) * self.timings.judges.get(key, 0.0)
        return _times_read(planned.cell, measure) * once + judged

    def judge_calls(self, cell: Cell, measure: CellMeasure) -> int:
        """How often a measure's judge is asked in a cell at most."""
        if self._measure(measure).judge() is None:
            return 0
        return math.ceil(_times_read(cell, measure, at_most=True)) * self._items(measure)

    def _items(self, measure: CellMeasure) -> int:
        if measure.text is None:
            return len(self._measure(measure).own_items() or ())
        return measure.text.examples or self.sizes.get(measure.text.part, PARTS_UNKNOWN)

    def _measure(self, measure: CellMeasure) -> Measure:
        key = measure_key(measure)
        if key not in self._measures:
            self._measures[key] = resolve_measure(measure.name, measure.settings)
        return self._measures[key]


def _times_read(cell: Cell, measure: CellMeasure, *, at_most: bool = False) -> float:
    """How often a cell reads a measure. A confirmation is read where a breach is suspected: taken
    as half of the probes, at most all of them."""
    probes = max(1, len(cell.probes))
    match measure.at:
        case "ends":
            return min(2, probes)
        case "suspected_breach":
            return probes if at_most else probes / 2
        case _:
            return probes


def _within(cell: Cell, flops: float, setup: float) -> float:
    """Steps a cell takes: its budget, or what its FLOPs suffice for."""
    if cell.flops is None or not flops:
        return cell.steps
    return min(cell.steps, max(0.0, cell.flops - setup) / flops)


def _flops_per_step(planned: Planned, size: int) -> float:
    """From what the method says of its cost in forward (F) and backward (B) passes."""
    cell, facts = planned.cell, planned.facts
    if cell.method is None or (facts is not None and not facts.trains):
        return 0.0
    told = facts.cost if facts else ""
    forward = sum(map(int, re.findall(r"(\d+)F", told))) or 1
    backward = sum(map(int, re.findall(r"(\d+)B", told))) or 1
    return _flops_of(cell.method.settings, cell.max_length, forward, backward, size)


def _flops_of(
    settings: Mapping[str, Any], max_length: int, forward: int, backward: int, size: int
) -> float:
    tokens = _batch(settings) * max_length * FILLED
    return tokens * (2.0 * forward + 4.0 * backward) * size


def _batch(settings: Mapping[str, Any]) -> int:
    """Rows of a step, of the largest part where a method has several."""
    own = settings.get("batch_size")
    if isinstance(own, int):
        return own
    parts = settings.get("parts")
    inner = [p.get("settings", {}) for p in parts if isinstance(p, dict)] if parts else []
    return max((_batch(s) for s in inner), default=8)


def _phases(cell: Cell, steps: float) -> int:
    """How often a service does work of its own between the customer's steps."""
    every = cell.host.method.settings.get("user_steps") if cell.host else None
    return math.ceil(steps / every) if isinstance(every, int) and every > 0 else 0


def _alignment_steps(cell: Cell, steps: float) -> int:
    own = cell.host.method.settings.get("alignment_steps") if cell.host else None
    return own * _phases(cell, steps) if isinstance(own, int) else 0
