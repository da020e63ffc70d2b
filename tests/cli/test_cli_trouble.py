"""What goes wrong while working: one message, status 1 (130 if interrupted), and what was finished
stays finished.
"""

import errno
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from helpers.cli_records import record_files
from titer.records.store import RunStore


def test_a_disk_that_fills_up(refused, titer, study_file, tmp_path, monkeypatch):
    file, run, real, calls = study_file(), tmp_path / "run", os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr("titer.records.files.os.fsync", full)
    message = refused("run", file, "--run", run, "--quiet", status=1)
    assert "disk is full" in message and str(run) in message
    before = record_files(run)
    assert before, "nothing was finished before the disk was full: the test shows nothing"
    assert not list(run.rglob(".*.tmp")), "half-written files stay on the full disk"
    monkeypatch.setattr("titer.records.files.os.fsync", real)
    assert titer("run", file, "--run", run, "--quiet").status == 0
    after = record_files(run)
    assert len(after) > len(before) and {k: after[k] for k in before} == before


@pytest.mark.parametrize("command", ["run", "report"])
def test_a_directory_that_cannot_be_written(refused, study_file, finished, tmp_path, command):
    (tmp_path / "file").write_text("in the way")
    inside = tmp_path / "file" / "run"
    arguments = (
        ("run", study_file(), "--run", inside)
        if command == "run"
        else ("report", finished, "--to", inside)
    )
    assert str(inside) in refused(*arguments, status=1)


def test_a_damaged_record_alone_is_done_again(titer, study_file, finished):
    before = record_files(finished)
    name = sorted(before)[1]
    record = finished / "cells" / name
    record.write_bytes(record.read_bytes().replace(b'"value":', b'"value":1', 1))
    judged = titer("judge", finished, "--json")
    assert judged.status == 0 and json.loads(judged.out)["status"] == "incomplete"
    assert name in judged.out, "the verdict does not say which record is damaged"
    assert titer("run", study_file(), "--run", finished, "--quiet").status == 0
    after = record_files(finished)
    assert {k for k in before if after[k] != before[k]} == {name}
    assert json.loads(titer("judge", finished, "--json").out)["status"] == "complete"


@pytest.mark.parametrize("name", ["study.json", "plan.json"])
def test_a_damaged_plan_or_study_is_told(refused, finished, name):
    (finished / name).write_text((finished / name).read_text()[:-20])
    assert name in refused("judge", finished, status=1)


def test_two_runs_in_one_directory_at_once(refused, titer, study_file, finished):
    before = record_files(finished)
    with RunStore(finished).locked():
        for arguments in (("run", study_file(), "--run", finished), ("clean", finished)):
            assert "another titer process" in refused(*arguments, status=1)
        assert titer("judge", finished).status == 0, "reading needs no lock"
    assert record_files(finished) == before


def test_a_cell_that_fails_leaves_the_others_finished(
    refused, titer, study_file, tmp_path, monkeypatch
):
    from titer.methods.attacks.full_sft import FullSFT

    def fail(self, given):
        raise RuntimeError("the card is on fire")

    file, run = study_file(), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(FullSFT, "start", fail)
        message = refused("run", file, "--run", run, "--quiet", status=1)
    assert "the card is on fire" in message and "finished cells are kept" in message
    before = record_files(run)
    assert before
    assert titer("run", file, "--run", run, "--quiet").status == 0
    assert {k: record_files(run)[k] for k in before} == before


def test_a_method_that_fails_in_a_single_attack(refused, monkeypatch):
    from titer.methods.attacks.full_sft import FullSFT

    def fail(self, given):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(FullSFT, "start", fail)
    assert "out of memory" in refused("attack", "tiny:aligned", status=1)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_interrupted_by_the_user(titer, study_file, tmp_path, workers):
    """Control-C reaches every process of the terminal's group, so the whole group gets the signal
    here too.
    """
    file, run = study_file(**{"resistance.seeds": list(range(60))}), tmp_path / "run"
    command = [
        sys.executable,
        "-c",
        "from titer.cli.main import main; main()",
        "run",
        file,
        "--run",
        run,
    ]
    process = subprocess.Popen(
        [*map(str, command), "--workers", str(workers), "--quiet"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while (
        len(list(run.glob("cells/*.json"))) < 3
        and time.monotonic() < deadline
        and process.poll() is None
    ):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == "" and "Traceback" not in err
    assert (
        err.strip().splitlines()[-1]
        == "titer: Interrupted. Finished cells are kept: the same command continues."
    )
    before = record_files(run)
    assert 3 <= len(before) < 120
    assert json.loads(titer("judge", run, "--json").out)["status"] == "incomplete"
    from titer.runners.execute import RunOptions
    from titer.runners.execute import run as execute
    from titer.study import load_study

    execute(load_study(file), run, RunOptions(workers=1, stop_after=2))
    after = record_files(run)
    assert len(after) == len(before) + 2 and {k: after[k] for k in before} == before
