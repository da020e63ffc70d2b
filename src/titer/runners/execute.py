"""Runs a study: plan, run missing cells, plan again until nothing is left. In this process or in
worker processes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from titer.data.pools import Pools
from titer.engine.checkpoint import EVERY_S
from titer.engine.planning import plan
from titer.errors import RecordError, RunError, StorageError, TiterError, UsageError
from titer.records.files import storage_error
from titer.records.record import CellRecord
from titer.records.store import RunStore
from titer.runners.broker import is_whole
from titer.runners.executors import Executor, Setup, executor
from titer.runners.placement import place
from titer.study.cell import Plan, Planned
from titer.study.plugins import load_plugins, refuse_out_of_reach
from titer.study.spec import Runtime, Study


@dataclass(frozen=True)
class RunOptions:
    """How to run, as opposed to what: nothing here changes a result.

    reuse: run directories whose finished records are taken over. workers/threads: override the
    study's runtime.
    """

    reuse: tuple[Path, ...] = ()
    workers: int | None = None
    threads: int | None = None
    keep_transcripts: bool = False
    checkpoint_every_s: float = EVERY_S
    stop_after: int | None = None
    """Finish at most so many cells in this call (the rest stay for the next one)."""


Report = Callable[[str, int, float, int, float], None]
"""(what just happened, cells done, work done, cells known, work known); work in training-step
units.
"""


def run(
    study: Study, root: Path | str, options: RunOptions | None = None, report: Report | None = None
) -> RunStore:
    """Bring a study to its end in the run directory `root`; what is finished already is not done
    again.

    Raises UsageError before any work if the study is wrong, BusyRunError, StorageError, RunError
    (first failed cell; all others that do not depend on it are finished first).
    """
    options = options or RunOptions()
    store = RunStore(root)
    for other in map(Path, options.reuse):
        if not RunStore(other).cells.is_dir():
            raise UsageError(
                "there are no records to take over",
                field="reuse",
                value=str(other),
                expected="a run directory with cells/, as `titer run` makes it",
                remedy="check the path, or leave it out",
            )
    with store.locked():
        store.refuse_other(study)
        load_plugins(study.plugins)
        pools = Pools(study)
        runtime = study.runtime.model_copy(
            update={k: v for k in ("workers", "threads") if (v := getattr(options, k)) is not None}
        )
        refuse_out_of_reach(study.model_dump_json(), runtime.workers)
        _Session(study, store, pools, runtime, options, report or (lambda *_: None)).work()
    return store


class _Session:
    def __init__(
        self,
        study: Study,
        store: RunStore,
        pools: Pools,
        runtime: Runtime,
        options: RunOptions,
        report: Report,
    ) -> None:
        self.study, self.store, self.pools, self.runtime = study, store, pools, runtime
        self.options, self.report = options, report
        self.records: dict[str, CellRecord] = {}
        self.finished_here = 0
        self.begun = False

    def work(self) -> None:
        failures: list[TiterError] = []
        current = self._plan()
        self.store.purge()
        with self._executor() as executor:
            while True:
                todo = self._todo(current)
                failed = self._finish(current, todo, executor, failures)
                if failed or self._enough() or current.complete:
                    break
                current = self._plan()
        if failures:
            raise failures[0]
        if current.complete and not self._enough():
            self.store.purge()

    def _enough(self) -> bool:
        return self.options.stop_after is not None and self.finished_here >= self.options.stop_after

    def _plan(self) -> Plan:
        current = plan(self.study, self.pools, self._known)
        if not self.begun:
            # Only now: a rejected study must not occupy the directory of its corrected version.
            self.store.begin(self.study)
            self.begun = True
        self.store.write_plan(current)
        return current

    def _known(self, digest: str) -> CellRecord | None:
        """A record of this run, or one taken over from another run (its weights too, if it made
        any).
        """
        if digest not in self.records:
            with suppress(RecordError):  # a cell with a damaged record is run again
                if record := self.store.record(digest):
                    self.records[digest] = record
        for other in () if digest in self.records else map(RunStore, self.options.reuse):
            with suppress(RecordError):
                if record := other.record(digest):
                    if record.artifact and (other.models / digest).exists():
                        self._copy_weights(other.models / digest, self.store.models / digest)
                    self.store.take_over(other, digest)
                    self.records[digest] = record
                    break
        return self.records.get(digest)

    @staticmethod
    def _copy_weights(source: Path, target: Path) -> None:
        fresh = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            shutil.rmtree(fresh, ignore_errors=True)
            shutil.copytree(source, fresh)
            shutil.rmtree(target, ignore_errors=True)
            fresh.rename(target)
        except OSError as error:
            shutil.rmtree(fresh, ignore_errors=True)
            raise storage_error(error, target) from error

    def _todo(self, current: Plan) -> dict[str, Planned]:
        """Cells without a record, and the building cells that they need and whose model is gone or
        changed.
        """
        cells = {p.digest: p for p in current.cells}
        todo = {d: p for d, p in cells.items() if self._known(d) is None}
        wanted = list(todo.values())
        while wanted:
            for maker in made_by(wanted.pop()):
                if maker not in todo and not self._kept(maker):
                    todo[maker] = cells[maker]
                    wanted.append(cells[maker])
        return {d: p for d, p in cells.items() if d in todo}

    def _kept(self, maker: str) -> bool:
        """Whether the model a building cell made is there as it was kept."""
        record = self.records.get(maker)
        artifact = record.artifact if record else None
        return artifact is not None and is_whole(self.store.models / maker, artifact)

    def _finish(
        self,
        current: Plan,
        todo: dict[str, Planned],
        executor: Executor,
        failures: list[TiterError],
    ) -> bool:
        """Run all cells that can be run. Returns whether something failed."""
        work = {p.digest: _work(p) for p in current.cells}
        total = sum(work.values())
        done = len(work) - len(todo)
        spent = total - sum(work[d] for d in todo)
        self.report("planned", done, spent, len(work), total)
        waiting, lost = dict(todo), set[str]()
        running: dict[str, Future[CellRecord]] = {}
        limit = executor.slots
        while waiting or running:
            while hopeless := [d for d, p in waiting.items() if made_by(p) & lost]:
                lost.update(hopeless)  # cells that start from these fail too
                waiting = {d: p for d, p in waiting.items() if d not in lost}
            while (
                len(running) < limit
                and not self._enough_with(running)
                and (ready := _ready(waiting, running))
            ):
                try:
                    running[ready.digest] = executor.submit(waiting.pop(ready.digest))
                except BrokenExecutor as error:
                    raise _died({**running, ready.digest: None}) from error
            if not running:
                break
            finished, _ = wait(running.values(), return_when=FIRST_COMPLETED)
            for digest in [d for d, f in running.items() if f in finished]:
                future = running[digest]
                try:
                    self.records[digest] = future.result()
                except BrokenExecutor as error:
                    raise _died(running) from error
                except TiterError as error:
                    failures.append(error)
                    lost.add(digest)
                    if isinstance(error, StorageError):
                        waiting.clear()  # nothing more can be written; let running cells end
                    continue
                finally:
                    running.pop(digest)
                self.finished_here += 1
                done, spent = done + 1, spent + work[digest]
                role = todo[digest].roles[0]
                what = (role.purpose, role.candidate, role.attack or role.task, str(role.seed))
                self.report(" ".join(filter(None, what)), done, spent, len(work), total)
        return bool(lost)

    def _executor(self) -> AbstractContextManager[Executor]:
        """Where cells are run. A device that does not exist is refused here, not by a worker."""
        return executor(
            Setup(
                root=self.store.root,
                pools=self.pools,
                runtime=self.runtime,
                placement=place(self.runtime.device),
                plugins=self.study.plugins,
                keep_transcripts=self.options.keep_transcripts,
                checkpoint_every_s=self.options.checkpoint_every_s,
            )
        )

    def _enough_with(self, running: Mapping[Any, Any]) -> bool:
        limit = self.options.stop_after
        return limit is not None and self.finished_here + len(running) >= limit


def _work(planned: Planned) -> float:
    """Rough work of a cell in training steps, for the progress bar: a probe reading counts as two
    steps.
    """
    cell = planned.cell
    return cell.steps + 2.0 * len(cell.probes or (0,)) * len(cell.measures) + 1.0


def made_by(planned: Planned) -> set[str]:
    """Digests of the building cells whose models a cell needs."""
    starts = (planned.start, *planned.models.values())
    return {start.parent for start in starts if start.parent}


def _died(running: Iterable[str]) -> RunError:
    return RunError(
        "a worker process died",
        field="cell",
        value=" or ".join(running),
        expected="to finish",
        remedy="often memory ran out: use fewer --workers; then give the same command again, "
        "finished cells are kept",
    )


def _ready(waiting: dict[str, Planned], running: dict[str, Future[CellRecord]]) -> Planned | None:
    """The first cell whose models are all made."""
    unmade = waiting.keys() | running.keys()
    return next((p for p in waiting.values() if not made_by(p) & unmade), None)
