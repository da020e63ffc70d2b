"""The run directory: nothing damaged is believed, one writer at a time, a failing disk told
readably.
"""

import errno
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.stored import cell, plan_of, record
from titer.errors import BusyRunError, RecordError, StorageError, UsageError
from titer.records import store as module
from titer.records.files import write_atomically
from titer.records.record import CellRecord
from titer.records.store import RunStore

THREE = (0, 1, 2)


@pytest.fixture
def store(tmp_path, small_study):
    """A run directory with three planned cells, all finished."""
    made = RunStore(tmp_path / "run")
    study = small_study()
    with made.locked():
        made.begin(study)
        made.write_plan(plan_of(study, THREE))
        for seed in THREE:
            made.write_record(record(seed))
    return made


def path_of(store, seed=0) -> Path:
    return store.cells / f"{cell(seed).digest}.json"


def sealed(body: str) -> str:
    """A file around `body` with a right checksum: 16 hex digits of its sha256."""
    return f'{{"checksum":"{hashlib.sha256(body.encode()).hexdigest()[:16]}","record":{body}}}'


# -- what is written is what is read --------------------------------------------------------------


def test_a_record_comes_back_as_it_was(store):
    assert store.record(cell().digest) == record()
    assert store.record("0" * 16) is None
    view = store.view()
    assert (
        view.problems == ()
        and view.missing == 0
        and set(view.records) == {cell(s).digest for s in THREE}
    )
    assert [e.record.cell.seed for e in view.entries("stability")] == [0, 1, 2]
    assert [e.role.seed for e in view.entries("stability", seed=1)] == [1]
    assert not list(view.entries("search"))


def test_a_record_is_plain_json_with_a_checksum(store):
    whole = path_of(store).read_text("utf-8")
    content = json.loads(whole)
    assert whole == sealed(whole.partition(',"record":')[2][:-1])
    assert content["record"]["digest"] == cell().digest
    assert content["record"]["probes"][0]["readings"][0]["outcomes"] == "101"


outcomes = st.one_of(
    st.lists(st.sampled_from([0.0, 1.0]), max_size=9),
    st.lists(st.none() | st.floats(-1e6, 1e6).map(lambda x: float(f"{x:.6g}")), max_size=9),
)


@given(outcomes)
def test_outcomes_survive_in_both_notations(values):
    made = record().probes[0].readings[0].model_copy(update={"outcomes": tuple(values)})
    again = type(made).model_validate_json(made.model_dump_json())
    assert again.outcomes == tuple(values)


def test_a_string_of_outcomes_holds_only_zeros_and_ones():
    with pytest.raises(ValueError, match="only 0 and 1"):
        type(record().probes[0].readings[0])(label="x", value=0.5, n=2, se=None, outcomes="02")


def test_the_study_comes_back_as_it_was(store, small_study):
    assert store.study() == small_study()
    assert store.plan() == plan_of(small_study(), THREE)


# -- nothing damaged is believed ------------------------------------------------------------------


def assert_only_this_cell_is_lost(store, seed=0, match=None):
    digest = cell(seed).digest
    with pytest.raises(RecordError, match=match) as caught:
        store.record(digest)
    assert digest in str(caught.value) and "titer run" in caught.value.remedy
    view = store.view()
    assert len(view.problems) == 1 and digest in view.problems[0]
    assert set(view.records) == {cell(s).digest for s in THREE if s != seed} and view.missing == 1


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.floats(0, 1, exclude_max=True))
def test_a_truncated_record_is_not_believed(store, where):
    store.write_record(record())
    path = path_of(store)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(where * len(whole))])
    assert_only_this_cell_is_lost(store)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.floats(0, 1, exclude_max=True), st.integers(1, 255))
def test_a_garbled_record_is_not_believed(store, where, flipped):
    store.write_record(record())
    path = path_of(store)
    whole = bytearray(path.read_bytes())
    whole[int(where * len(whole))] ^= flipped
    path.write_bytes(bytes(whole))
    assert_only_this_cell_is_lost(store)


@pytest.mark.parametrize("position", [0, -1])
def test_the_outermost_bytes_count_too(store, position):
    whole = bytearray(path_of(store).read_bytes())
    whole[position] = ord(" ")
    path_of(store).write_bytes(bytes(whole))
    assert_only_this_cell_is_lost(store, match="damaged")


@pytest.mark.parametrize(
    "rubbish", [b"", b"{}", b"null", b"\xff\xfe", b'{"checksum":"","record":{}}', b"[1, 2]\n" * 99]
)
def test_what_is_no_record_is_not_believed(store, rubbish):
    path_of(store).write_bytes(rubbish)
    assert_only_this_cell_is_lost(store)


def test_a_changed_number_is_noticed(store):
    path = path_of(store)
    path.write_text(path.read_text().replace('"loss":[0.5,', '"loss":[0.4,'))
    assert_only_this_cell_is_lost(store, match="checksum does not match")


def test_a_record_under_another_name_is_not_believed(store):
    path_of(store, 0).write_bytes(path_of(store, 1).read_bytes())
    assert_only_this_cell_is_lost(store, match="not the record its name says")


def test_a_record_whose_cell_is_another_is_not_believed(store):
    body = record(0, cell=cell(1)).model_dump_json()
    path_of(store).write_text(sealed(body))
    assert_only_this_cell_is_lost(store, match="not the record its name says")


@pytest.mark.parametrize("version", [0, 1, 17])
def test_another_format_is_refused_with_its_version(store, version):
    body = json.loads(record().model_dump_json()) | {"format": version, "some_new_field": 1}
    path_of(store).write_text(sealed(json.dumps(body)))
    assert_only_this_cell_is_lost(store, match=f"has format {version}; this titer reads format 2")


@pytest.mark.parametrize("body", ["3", "[]", '{"format":2}', "not JSON"])
def test_a_checksum_alone_is_not_enough(store, body):
    path_of(store).write_text(sealed(body))
    assert_only_this_cell_is_lost(store)


def test_a_record_with_fields_unknown_is_not_believed(store):
    body = json.loads(record().model_dump_json()) | {"surprise": 1}
    path_of(store).write_text(sealed(json.dumps(body)))
    assert_only_this_cell_is_lost(store, match="fields this titer does not know")


def test_a_directory_in_place_of_a_record_is_not_believed(store):
    path_of(store).unlink()
    path_of(store).mkdir()
    assert_only_this_cell_is_lost(store, match="cannot be read")


def test_half_written_files_are_no_records(store):
    """What a killed process leaves: a temporary file beside the records."""
    (store.cells / f".{cell(7).digest}.json.123.tmp").write_text("{")
    assert store.view().problems == () and store.record(cell(7).digest) is None


# -- the study and the plan -----------------------------------------------------------------------


def test_a_directory_with_another_study_is_refused(store, small_study):
    for refuse in (store.begin, store.refuse_other):
        with pytest.raises(UsageError, match="holds another study") as caught:
            refuse(small_study(name="another"))
        assert "--reuse" in caught.value.remedy and small_study().digest in caught.value.expected
    assert store.study() == small_study()


def test_the_same_study_may_be_run_otherwise(store, small_study):
    store.begin(small_study(runtime={"max_length": 32, "workers": 5}))


def test_a_damaged_study_is_written_anew(store, small_study):
    """As its message says: the same command mends it."""
    (store.root / "study.json").write_text('{"format": 2, "na')
    with pytest.raises(RecordError, match=r"study\.json is damaged"):
        store.study()
    store.begin(small_study())
    assert store.study() == small_study()


def test_a_study_of_another_format_is_refused_and_kept(store, small_study):
    for version in (1, 3):
        other = json.dumps({"format": version, "name": "small"})
        (store.root / "study.json").write_text(other)
        with pytest.raises(UsageError, match=f"format {version}"):
            store.begin(small_study())
        assert (store.root / "study.json").read_text() == other
        with pytest.raises(RecordError, match=f"has format {version}; this titer reads format 2"):
            store.study()


@pytest.mark.parametrize("name", ["study", "plan"])
def test_what_is_no_run_directory_is_refused(tmp_path, name):
    with pytest.raises(UsageError, match="not a run directory"):
        getattr(RunStore(tmp_path), name)()


def test_a_damaged_plan_is_told_readably(store):
    (store.root / "plan.json").write_text("{")
    with pytest.raises(RecordError, match=r"plan\.json is damaged"):
        store.view()


# -- one writer -----------------------------------------------------------------------------------


def test_a_second_writer_is_refused(store):
    with (
        store.locked(),
        pytest.raises(BusyRunError, match="another titer process") as caught,
        RunStore(store.root).locked(),
    ):
        pass
    assert caught.value.exit_status == 1
    with RunStore(store.root).locked():  # and afterwards it is free again
        pass


def test_a_dead_process_holds_nothing(store):
    program = f"""
import os
from titer.records.store import RunStore
with RunStore({str(store.root)!r}).locked():
    print("holding", flush=True)
    os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "holding\n" and done.returncode == -9
    with store.locked():
        pass


def test_a_file_system_without_locks_is_no_other_process(store, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(module.fcntl, "flock", refuse)
    with pytest.raises(StorageError, match="No locks available"), store.locked():
        pass


# -- a failing disk -------------------------------------------------------------------------------


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_told_readably_and_costs_no_finished_record(store, monkeypatch):
    before = {p.name: p.read_bytes() for p in store.root.rglob("*") if p.is_file()}
    monkeypatch.setattr(os, "fsync", full)
    for write in (
        lambda: store.write_record(record(7)),
        lambda: store.write_record(record(0, outcome="diverged")),  # over a finished one
        lambda: store.write_plan(plan_of(store.study(), ())),
        lambda: store.write_transcripts("x", [{"key": "k"}]),
    ):
        with pytest.raises(StorageError, match="the disk is full") as caught:
            write()
        assert "finished cells are kept" in caught.value.remedy and caught.value.exit_status == 1
    assert {p.name: p.read_bytes() for p in store.root.rglob("*") if p.is_file()} == before


def test_a_write_that_fails_half_way_leaves_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "file.json"
    write_atomically(target, "old")
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(StorageError):
        write_atomically(target, "new")
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]


def test_a_file_in_place_of_the_directory_is_told_readably(tmp_path):
    (tmp_path / "run").write_text("a file")
    with (
        pytest.raises(StorageError, match="cannot be written") as caught,
        RunStore(tmp_path / "run").locked(),
    ):
        pass
    assert "--run" in caught.value.remedy
    with pytest.raises(StorageError), RunStore(tmp_path / "run" / "below").locked():
        pass


def test_a_directory_without_permission_is_told_readably(tmp_path, monkeypatch):
    def forbidden(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", forbidden)
    with (
        pytest.raises(StorageError, match="Permission denied"),
        RunStore(tmp_path / "run").locked(),
    ):
        pass


# -- leftovers ------------------------------------------------------------------------------------


def test_orphans_are_purged_and_what_resume_needs_is_kept(store):
    unfinished, finished, unknown = cell(2).digest, cell(0).digest, "f" * 16
    path_of(store, 2).unlink()
    leftovers = [
        store.work / finished / "state.json",
        store.work / unknown / "state.json",
        store.work / f"{unfinished}.old" / "x",
        store.work / f"{unfinished}.99.new" / "x",
        store.cells / ".a.json.9.tmp",
        store.root / ".plan.json.9.tmp",
        store.transcripts / ".a.jsonl.9.tmp",
        store.models / ".a.xyz.tmp" / "new" / "model.safetensors",
    ]
    kept = [store.work / unfinished / "state.json", store.models / finished / "model.safetensors"]
    for path in [*leftovers, *kept]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    assert store.purge() == len(leftovers)
    assert all(p.exists() for p in kept) and not any(p.exists() for p in leftovers)
    assert {p.name for p in store.work.iterdir()} == {unfinished}
    assert store.view().missing == 1 and store.purge() == 0


def test_an_empty_work_directory_goes_too(store):
    store.work.mkdir()
    store.purge()
    assert not store.work.exists()


def test_without_a_plan_no_checkpoint_is_wanted(tmp_path):
    store = RunStore(tmp_path)
    (store.work / cell().digest).mkdir(parents=True)
    assert store.purge() == 1 and not store.work.exists()


def test_transcripts_come_back_as_they_were(store):
    rows = [{"key": "k", "reply": "line\nbreak, “quotes”, \u2028"}, {"key": "l", "reply": ""}]
    store.write_transcripts("x", rows)
    assert store.read_transcripts("x") == rows and store.read_transcripts("y") == []


def test_the_shape_of_a_record_is_the_one_that_was_committed():
    """Records of this format lie in docs/results/records; a field renamed or dropped would lose
    them.
    """
    folder = Path(__file__).parents[2] / "docs" / "results" / "records"
    runs = sorted(p.parent for p in folder.glob("*/study.json"))
    assert runs
    for run in runs:
        view = RunStore(run).view()
        assert view.problems == () and view.missing == 0 and len(view.records) > 50
        assert all(isinstance(r, CellRecord) for r in view.records.values())


@pytest.mark.parametrize("text", ["not json\n", "[1]\n", '{"a": 1}\n"text"\n', "\xff"])
def test_damaged_transcripts_are_told_and_are_optional(store, text):
    store.transcripts.mkdir(parents=True)
    (store.transcripts / "abc.jsonl").write_bytes(text.encode("latin-1"))
    with pytest.raises(RecordError, match="transcripts is damaged"):
        store.read_transcripts("abc")
