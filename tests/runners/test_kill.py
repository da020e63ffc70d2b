"""`kill -9` in the middle of a run, and the same command again, with every executor."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

import titer
from helpers.running import files, numbers
from titer.cli.main import main
from titer.errors import BusyRunError
from titer.records.store import RunStore

SCRIPT = """
import json, pathlib, sys
import titer

if __name__ == "__main__":
    study = json.loads(pathlib.Path(sys.argv[1]).read_text())
    titer.run(study, sys.argv[2], workers=int(sys.argv[3]), checkpoint_every_s=0.0)
"""
PATIENCE_S = 300.0


def alive(group: int) -> list[int]:
    """Processes of a process group that still run (a zombie has stopped running)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, pgrp = stat.read_text().rpartition(") ")[2].split()[:3]
        except OSError:  # gone in the meantime
            continue
        if int(pgrp) == group and state not in "ZX":
            found.append(int(stat.parent.name))
    return found


def steps_in(checkpoint: Path) -> float:
    """How far a cell had come that has a checkpoint; infinitely far if the checkpoint is just being
    written or replaced.
    """
    try:
        return json.loads((checkpoint / "state.json").read_text())["state"]["engine"]["cost"][
            "steps"
        ]
    except (OSError, ValueError):
        return float("inf")


def wait_for(condition, process=None):
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert process is None or process.poll() is None, (
            f"the run ended by itself: {process.stderr.read()}"
        )
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)


@pytest.fixture
def study(small_study):
    """Four attacks of 64 steps that break nothing, so that all 64 are taken."""
    attack = {"attack": "full_sft", "settings": {"lr": 1e-6, "batch_size": 16}}
    return small_study(
        resistance=small_study().resistance.model_dump(mode="json")
        | {"budget": 64, "attacks": [attack]}
    )


@pytest.fixture
def study_file(study, tmp_path):
    path = tmp_path / "study.json"
    path.write_text(json.dumps(study.model_dump(mode="json")))
    return path


@pytest.fixture
def started(study_file, tmp_path):
    """A function that starts the run in a process group of its own, and ends whatever of it is
    left.
    """

    @contextmanager
    def start(root, workers):
        script = tmp_path / "run.py"
        script.write_text(SCRIPT)
        process = subprocess.Popen(
            [sys.executable, str(script), str(study_file), str(root), str(workers)],
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            yield process
        finally:
            for left in alive(process.pid):
                os.kill(left, signal.SIGKILL)
            process.wait()
            process.stderr.close()

    return start


_done: dict[str, Path] = {}


@pytest.fixture
def whole(study, tmp_path_factory):
    """The same study, run without an interruption; done once."""
    if "run" not in _done:
        _done["run"] = titer.run(study, tmp_path_factory.mktemp("whole") / "run").root
    return _done["run"]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_run_continues_where_it_was(
    study, study_file, started, whole, tmp_path, capsys, workers
):
    root = tmp_path / "run"
    store = RunStore(root)
    with started(root, workers) as process:
        wait_for((root / "plan.json").exists, process)
        # While it lives nobody else may write there.
        with pytest.raises(BusyRunError):
            titer.run(study, root)
        assert main(["run", str(study_file), "--run", str(root), "--quiet"]) == 1
        assert "another titer process" in capsys.readouterr().err

        def mid_way():
            return len(list(store.cells.glob("*.json"))) >= 2 and any(
                steps_in(p) < 12 for p in store.work.glob("*")
            )

        wait_for(mid_way, process)
        os.kill(process.pid, signal.SIGKILL)  # it alone: its workers must notice by themselves
        assert process.wait() == -signal.SIGKILL
        wait_for(lambda: not alive(process.pid))
    before = files(root)
    assert 2 <= len(before) < 5 and any(store.work.iterdir())
    unfinished = {p.name for p in store.work.iterdir() if len(p.name) == 16}

    titer.run(study, root)  # how many workers there are changes nothing

    after = files(root)
    assert len(after) == 5 and {name: after[name] for name in before} == before
    assert not store.work.exists() and not list(root.rglob("*.tmp"))
    resumed = {d for d, r in store.view().records.items() if r.resumed}
    assert resumed and resumed <= unfinished
    assert numbers(root) == numbers(whole)
    assert {f"{d}.json" for d in numbers(root)} == set(after)


def test_workers_of_a_run_killed_while_they_start_do_not_survive(started, tmp_path):
    with started(tmp_path / "run", 2) as process:
        # The run, the tracker of shared resources, and at least one worker that is still importing.
        wait_for(lambda: len(alive(process.pid)) >= 3, process)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        wait_for(lambda: not alive(process.pid))
    assert not files(tmp_path / "run")
