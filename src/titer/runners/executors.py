"""Where cells are run: in this process, or in worker processes. Both behind one interface."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from titer.data.pools import Pools
from titer.engine.checkpoint import EVERY_S
from titer.errors import RunError, TiterError
from titer.records.record import CellRecord
from titer.records.store import RunStore
from titer.runners.placement import Placement
from titer.study.cell import Planned
from titer.study.plugins import load_plugins
from titer.study.spec import Runtime

if TYPE_CHECKING:
    from titer.runners.cell_runner import CellRunner


@dataclass(frozen=True)
class Setup:
    """What a worker needs to run cells of a study; sent to it once."""

    root: Path
    pools: Pools
    runtime: Runtime
    placement: Placement
    plugins: tuple[str, ...] = ()
    keep_transcripts: bool = False
    checkpoint_every_s: float = EVERY_S

    def open(self, worker: int) -> CellRunner:
        """The cell runner of a worker. Imports torch."""
        import torch

        from titer.runners.cell_runner import CellRunner

        load_plugins(self.plugins)
        torch.set_num_threads(self.runtime.threads)
        return CellRunner(
            RunStore(self.root),
            self.pools,
            self.runtime,
            self.placement.device(worker),
            keep_transcripts=self.keep_transcripts,
            checkpoint_every_s=self.checkpoint_every_s,
        )


class Executor(Protocol):
    """Runs cells whose models are all made. slots: how many at a time.

    A future ends with the cell's record, which is then safe on disk, with the TiterError of the
    cell, or with BrokenExecutor if a worker died; nothing can be submitted then any more, and
    `submit` raises BrokenExecutor too. `execute` tells which cells were lost.
    """

    slots: int

    def submit(self, planned: Planned) -> Future[CellRecord]: ...


def executor(setup: Setup) -> AbstractContextManager[Executor]:
    """The executor for a study's runtime."""
    return _in_process(setup) if setup.runtime.workers == 1 else _pool(setup)


# -- in this process ------------------------------------------------------------------------------


class InProcess:
    """Runs a cell at once, while it is submitted."""

    slots = 1

    def __init__(self, runner: CellRunner) -> None:
        self.runner = runner

    def submit(self, planned: Planned) -> Future[CellRecord]:
        future: Future[CellRecord] = Future()
        try:
            future.set_result(self.runner.perform(planned))
        except TiterError as error:
            future.set_exception(error)
        return future


@contextmanager
def _in_process(setup: Setup) -> Iterator[Executor]:
    """Restore global state: titer may be called from a larger program."""
    import torch

    threads = torch.get_num_threads()
    try:
        yield InProcess(setup.open(0))
    finally:
        torch.set_num_threads(threads)


# -- in worker processes --------------------------------------------------------------------------


class Pool:
    """Worker processes, each with a cell runner of its own."""

    def __init__(self, setup: Setup) -> None:
        self.slots = setup.runtime.workers
        context = get_context("spawn")
        numbers: SimpleQueue[int] = context.SimpleQueue()
        for worker in range(self.slots):
            numbers.put(worker)
        self._pool = ProcessPoolExecutor(
            self.slots, mp_context=context, initializer=_open_worker, initargs=(setup, numbers)
        )

    def submit(self, planned: Planned) -> Future[CellRecord]:
        return self._pool.submit(_perform, planned)

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _pool(setup: Setup) -> Iterator[Executor]:
    pool = Pool(setup)
    try:
        yield pool
    finally:
        pool.close()


_runner: CellRunner | None = None
"""The cell runner of this worker process."""


def _open_worker(setup: Setup, numbers: SimpleQueue[int]) -> None:
    """A worker must not outlive its parent: after `kill -9` of the parent it would go on writing
    into the run.
    """
    global _runner
    parent = (
        parent_process()
    )  # waits on a pipe, so that a parent that is already dead is noticed too

    def watch() -> None:
        if parent:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    try:
        _runner = setup.open(numbers.get())
    except KeyboardInterrupt:  # the parent reports the error
        os._exit(130)


def _perform(planned: Planned) -> CellRecord:
    if _runner is None:
        raise RunError("a worker was not opened", field="cell", value=planned.digest)
    return _runner.perform(planned)
