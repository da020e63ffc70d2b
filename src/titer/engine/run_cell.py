"""Run one cell: take steps under a budget, meter them, probe on a grid, stop, resume.

Probes never change the trajectory: they run without gradient, in evaluation mode, with the random
state restored.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from titer.data.bundle import ModelBundle
from titer.engine.checkpoint import Rolling
from titer.engine.fingerprint import model_fingerprint
from titer.engine.history import History
from titer.engine.meter import Meter
from titer.engine.prober import BoundMeasure, Prober
from titer.engine.randomness import random_state, seeded, set_random_state, untouched
from titer.engine.work import CellWork
from titer.errors import RunError
from titer.judges.cache import JudgementCache
from titer.records.record import Artifact, CellRecord, Reading
from titer.study.cell import Cell


@dataclass
class CellResult:
    """The record, the transcripts by (step, label), and the final model (for building cells)."""

    record: CellRecord
    transcripts: dict[tuple[int, str], list[dict[str, Any]]] = field(default_factory=dict)
    bundle: ModelBundle | None = None


Progress = Callable[[int, int], None]
"""(steps done, steps in all)"""

StartReadings = dict[str, tuple[Reading, list[dict[str, Any]]]]
"""`BoundMeasure.key` → what was read of one model at step 0."""


class Stopped(Exception):
    """Raised by a progress callback to stop a cell between two steps (the parent is gone, or a test
    wants it).
    """


def run_cell(
    work: CellWork,
    *,
    rolling: Rolling | None = None,
    progress: Progress | None = None,
    artifact: Callable[[ModelBundle], Artifact] | None = None,
    keep_transcripts: bool = False,
    at_start: StartReadings | None = None,
    judgements: JudgementCache | None = None,
) -> CellResult:
    """Run a cell to its record.

    at_start: readings of this very model at step 0, used and filled, so that seeds share them;
    taken only if the cell's first probe reads the model it starts from
    (`CellWork.starts_as_parent`). With `rolling`, a checkpoint left by an interrupted run of the
    same cell is continued with identical results; the caller deletes it once the record is safe.
    Deterministic on CPU: torch's global generator is seeded from the cell; everything else is a
    function of the seed.
    """
    cell, device = work.cell, work.bundle.device
    history = History(work)
    shared = at_start if work.starts_as_parent else None
    prober = _Probes(work, history, shared, keep_transcripts, judgements)
    saved = rolling.read() if rolling else None
    meter = Meter(history.restore(saved["engine"]) if saved else None, exact=work.exact_flops)
    with seeded(cell.seed, device):
        # The setup of an interrupted run is already part of its cost.
        with nullcontext() if saved else meter.charging("setup"):
            run = work.begin()
        if saved:
            run.load_state_dict(saved["run"])
            set_random_state(saved["rng"], device)
        while True:
            over = _over(cell, meter) or history.outcome != "reached_budget"
            looked = prober.look(run.model, meter, last=over)
            if over or history.outcome != "reached_budget":
                break
            if rolling and rolling.due():
                state = {"engine": history.dump(meter.cost()), "rng": random_state(device)}
                rolling.write(state | {"run": run.state_dict()})
            if progress:
                progress(meter.steps, cell.steps)
            with meter.charging("step"):
                log = run.step()
            if log is None:
                history.outcome = "finished"
            else:
                meter.steps += 1
                history.log(log)
        bundle = looked or prober.asked(run.model)  # the last probe was of this very model
    if history.outcome == "finished" and history.probes:
        history.carry_forward(cell.probes)
    record = history.record(bundle, work.measures, meter.cost())
    if artifact and cell.keep:  # last, because keeping a model may merge its adapters
        record = record.model_copy(update={"artifact": artifact(bundle)})
    return CellResult(record=record, transcripts=history.transcripts, bundle=bundle)


def _over(cell: Cell, meter: Meter) -> bool:
    """The budget is spent: in steps, or in FLOPs where the cell names them and one step more would
    exceed them.
    """
    return meter.steps >= cell.steps or (cell.flops is not None and meter.cost().spends(cell.flops))


class _Probes:
    """Decides which measures are read at which step."""

    def __init__(
        self,
        work: CellWork,
        history: History,
        at_start: StartReadings | None,
        keep: bool,
        judgements: JudgementCache | None,
    ) -> None:
        self.cell, self.measures, self.history = work.cell, list(work.measures), history
        self.at_start, self.keep, self.device = at_start, keep, work.bundle.device
        self.grid = set(work.cell.probes)
        self.prober = Prober(self.measures, judgements)
        self.hosted = work.host is not None
        self._seen = ""

    def look(
        self, model: Callable[[], ModelBundle], meter: Meter, *, last: bool
    ) -> ModelBundle | None:
        """Read what is to be read at this step; what was read, or None if nothing is to be. The
        model is asked for only then: it may have been replaced since, or may have to be made."""
        step = meter.steps
        again = self.history.probed(step)
        if not self.grid or not (step in self.grid or last) or (again and not last):
            return None
        begun = time.perf_counter()
        with untouched(self.device):
            bundle = self.asked(model)
            if again:
                self._refuse_late_change(bundle)
            self._read(bundle, meter, last=last, again=again)
            self._seen = model_fingerprint(bundle.model) if self.cell.steps else ""
        self.history.probe_seconds += time.perf_counter() - begun
        return bundle

    def asked(self, model: Callable[[], ModelBundle]) -> ModelBundle:
        """The run's model. Raises RunError if the method computes in handing it out: that is asked
        for at every probe, and is not charged. What a service does to release a model is the
        defender's expense.
        """
        watch = Meter()
        with watch.charging("step"):
            bundle = model()
        if watch.cost().flops and not self.hosted:
            raise RunError(
                "the method runs a model when its own is asked for, which is not charged",
                field="Run.model",
                value=f"{watch.cost().flops:.3g} FLOPs",
                expected="work in `start` or `step`",
            )
        return bundle

    def _refuse_late_change(self, bundle: ModelBundle) -> None:
        """Raises RunError if the model changed since it was read at this very step."""
        if self._seen and self._seen != model_fingerprint(bundle.model):
            raise RunError(
                "the method changed its model in the call of `step` that returned None",
                field="Run.step",
                value=None,
                expected="a StepLog for every change; None says that nothing was left to do",
            )

    def _read(self, bundle: ModelBundle, meter: Meter, *, last: bool, again: bool) -> None:
        step, stop, history = meter.steps, self.cell.stop, self.history
        found: StartReadings = {}
        self.prober.begin()

        def read(which: list[BoundMeasure]) -> None:
            new = [m for m in which if m.spec.label not in found]
            found.update(self._readings(bundle, new, step))

        if not again:
            read([m for m in self.measures if m.spec.at == "probes"])
            if step == 0:
                read([m for m in self.measures if m.spec.at == "ends"])
            harm = found.get("harm")
            if stop and harm and harm[0].value is not None and harm[0].value >= stop.suspect:
                read([m for m in self.measures if m.spec.at == "suspected_breach"])
                labels = {m.spec.label for m in self.measures}
                if history.beyond(found, labels, stop.above, stop.level):
                    history.outcome, last = "stopped_broken", True
        if last and step > 0:
            read([m for m in self.measures if m.spec.at == "ends"])
        if found or not again:
            history.add(meter.cost(), found, bundle, keep=self.keep)

    def _readings(self, bundle: ModelBundle, which: list[BoundMeasure], step: int) -> StartReadings:
        """label → reading and transcripts, those at the start shared between cells of one model."""
        self.history.facts |= {m.spec.label: m.measure.facts() for m in which}
        memo = self.at_start if step == 0 else None
        if memo is None:
            return self.prober.read(bundle, which)
        missing = [m for m in which if m.key not in memo]
        read = self.prober.read(bundle, missing)
        memo.update({m.key: read[m.spec.label] for m in missing})
        return {m.spec.label: memo[m.key] for m in which}
