"""The run directory: records are written last and atomically, by one writer at a time; incomplete
files are rejected.

RUN/study.json            the study as it was run (written once)
RUN/plan.json             cells, roles, provenance, proof of disjointness
RUN/cells/<digest>.json   one record per finished cell, with its checksum
RUN/transcripts/          what models said (only if asked for; never committed)
RUN/judgements/           what judges said of replies: numbers by hashes, no text
RUN/models/<digest>/      weights made by a defender, needed by later cells
RUN/work/<digest>/        rolling checkpoints of running cells
RUN/verdict.json report.html report.md
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from titer.errors import BusyRunError, RecordError, UsageError
from titer.records.files import checksum, sealed, storage_error, write_atomically
from titer.records.plan_validation import disagreements
from titer.records.record import RECORD_FORMAT, CellRecord
from titer.records.record_validation import contradiction
from titer.records.required import lacking
from titer.records.view import RunView
from titer.study.cell import Plan
from titer.study.spec import STUDY_FORMAT, Study

Stored = TypeVar("Stored", bound=BaseModel)


def _format_in(path: Path) -> Any:
    """The `format` a JSON file states; None if it states none or is no JSON object."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return content.get("format") if isinstance(content, dict) else None


class RunStore:
    """One run directory. Reading needs no lock; writing happens inside `locked()`."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.cells, self.models, self.work = (
            self.root / "cells",
            self.root / "models",
            self.root / "work",
        )
        self.transcripts = self.root / "transcripts"
        self.judgements = self.root / "judgements"

    # -- one writer -------------------------------------------------------------------------------

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory for writing. Raises BusyRunError if another process does, StorageError
        if unwritable.

        The kernel releases the lock when the process dies, however it dies, so no stale lock can
        block a resume.
        """
        try:
            self.cells.mkdir(parents=True, exist_ok=True)
            handle = (self.root / "run.lock").open("a+")
        except OSError as error:
            raise storage_error(error, self.root) from error
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise BusyRunError(
                    "another titer process works in this run directory",
                    field="run directory",
                    value=str(self.root),
                    expected="one run at a time",
                    remedy="wait for it, end it, or choose another --run directory",
                ) from error
            except OSError as error:  # a file system without locks
                raise storage_error(error, self.root) from error
            yield

    # -- study and plan ---------------------------------------------------------------------------

    def refuse_other(self, study: Study) -> None:
        """Raise UsageError if the directory holds another study than this one.

        A damaged study.json is no obstacle: records are addressed by content, so those of another
        study would simply not be used. A study.json of another format is one: this titer would
        repeat and overwrite what another version did.
        """
        path = self.root / "study.json"
        if not path.exists():
            return
        try:
            found = self.study().digest
        except RecordError:
            version = _format_in(path)
            if version in (None, STUDY_FORMAT):
                return
            found = f"a study of format {version}"
        if found != study.digest:
            raise UsageError(
                "the run directory holds another study",
                field="run directory",
                value=str(self.root),
                expected=f"study digest {study.digest}, found {found}",
                remedy="choose another --run directory; `--reuse` takes over what fits",
            )

    def begin(self, study: Study) -> None:
        """Write the study down; call it once the study is known to be right. Raises UsageError as
        `refuse_other`.
        """
        self.refuse_other(study)
        text = json.dumps(study.model_dump(mode="json"), indent=1, ensure_ascii=False)
        write_atomically(self.root / "study.json", text)

    def study(self) -> Study:
        return self._load(self.root / "study.json", Study)

    def plan(self) -> Plan:
        """The plan as it is written; `view` says whether it was changed since."""
        return self._load(self.root / "plan.json", Plan)

    def _load(self, path: Path, cls: type[Stored]) -> Stored:
        try:
            content = json.loads(path.read_text("utf-8"))
            if cls is Plan and isinstance(content, dict):
                content.pop("seal", None)
            return cls.model_validate_json(json.dumps(content))
        except FileNotFoundError as error:
            raise UsageError(
                "this is not a run directory",
                field="run directory",
                value=str(self.root),
                expected=f"a directory with {path.name}, as `titer run` makes it",
                remedy="check the path, or start the run first",
            ) from error
        except (OSError, ValueError) as error:  # pydantic's ValidationError is a ValueError
            version = _format_in(path) if cls is Study else STUDY_FORMAT
            if version not in (None, STUDY_FORMAT):
                raise RecordError(
                    f"{path.name} has format {version}; this titer reads format {STUDY_FORMAT}",
                    field="run directory",
                    value=str(path),
                    expected="a run made by a titer of this format",
                    remedy="use the titer that made it, or run the study again elsewhere",
                ) from error
            raise RecordError(
                f"{path.name} is damaged or was not written by titer",
                field="run directory",
                value=str(path),
                expected=f"the {path.name} that `titer run` wrote",
                remedy="give the `titer run` command again; it rewrites it",
            ) from error

    def write_plan(self, plan: Plan) -> None:
        write_atomically(self.root / "plan.json", sealed(plan.model_dump_json()))

    # -- records ----------------------------------------------------------------------------------

    def write_record(self, record: CellRecord) -> None:
        body = record.model_dump_json()
        write_atomically(
            self.cells / f"{record.digest}.json",
            f'{{"checksum":"{checksum(body)}","record":{body}}}',
        )

    def take_over(self, other: RunStore, digest: str) -> None:
        """Copy a record of another run, validated by `other.record`, byte for byte. Raises
        StorageError.
        """
        write_atomically(self.cells / f"{digest}.json", other._text(digest) or "")

    def _text(self, digest: str) -> str | None:
        path = self.cells / f"{digest}.json"
        try:
            return path.read_text("utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise self._unbelievable(path, "cannot be read") from error

    def record(self, digest: str) -> CellRecord | None:
        """The record of a cell, None if there is none. Raises RecordError if the file is not
        valid.
        """
        path, text = self.cells / f"{digest}.json", self._text(digest)
        if text is None:
            return None
        opening, _, body = text.removesuffix("}").partition(',"record":')
        if text[-1:] != "}" or opening != f'{{"checksum":"{checksum(body)}"':
            raise self._unbelievable(path, "is damaged: its checksum does not match")
        try:
            content = json.loads(body)
            version = content.get("format") if isinstance(content, dict) else None
            if version != RECORD_FORMAT:
                raise self._unbelievable(
                    path, f"has format {version}; this titer reads format {RECORD_FORMAT}"
                )
            record = CellRecord.model_validate_json(body)
        except ValueError as error:
            raise self._unbelievable(path, "has fields this titer does not know") from error
        if record.digest != digest or record.cell.digest != digest:
            raise self._unbelievable(path, "is not the record its name says")
        if why := contradiction(record):
            raise self._unbelievable(path, why)
        return record

    @staticmethod
    def _unbelievable(path: Path, why: str) -> RecordError:
        return RecordError(
            f"the record {path.name} {why}",
            field="record",
            value=path.name,
            expected="an intact record of this format",
            remedy="give the `titer run` command again: only this cell is repeated",
        )

    def view(self) -> RunView:
        """Study, plan and every valid record; damaged records, and records that contradict the
        plan, are left out and named in `problems`.
        """
        study, plan, records, problems = self.study(), self.plan(), {}, []
        for planned in plan.cells:
            try:
                record = self.record(planned.digest)
            except RecordError as error:
                problems.append(error.problem)
                continue
            if record:
                records[planned.digest] = record
        if plan.study == study.digest:
            for digest, why in disagreements(study, plan, records).items():
                problems.append(f"the record {digest}.json {why}; plan.json was changed")
                del records[digest]
        return RunView(
            study=study,
            plan=plan,
            records=records,
            problems=tuple(problems),
            plan_problems=tuple(self._plan_problems(study, plan)),
        )

    def _plan_problems(self, study: Study, plan: Plan) -> Iterator[str]:
        """How the plan was changed since it was written, as far as can be told."""
        text = (self.root / "plan.json").read_text("utf-8")
        body, found, seal = text.rpartition(',"seal":"')
        if not found or seal != f'{checksum(body + "}")}"}}':
            yield "plan.json was changed after it was written"
        if plan.study == study.digest and (absent := lacking(study, plan)):
            yield (
                f"plan.json lacks {len(absent)} of the roles the study asks for, among them "
                f"{absent[0]}"
            )

    # -- leftovers --------------------------------------------------------------------------------

    def purge(self) -> int:
        """Delete rolling checkpoints of cells that are finished or no longer planned, and whatever
        is half-written.

        Returns how many were removed. Checkpoints of unfinished planned cells stay: they are what
        resume needs. Call it only while holding the lock and with no worker running.
        """
        try:
            wanted = {
                p.digest
                for p in self.plan().cells
                if not (self.cells / f"{p.digest}.json").exists()
            }
        except (UsageError, RecordError):
            wanted = set()
        removed = 0
        for path in self.work.glob("*") if self.work.exists() else ():
            if path.name not in wanted:
                shutil.rmtree(path, ignore_errors=True)
                removed += 1
        with contextlib.suppress(OSError):  # goes once it is empty
            self.work.rmdir()
        for folder in (self.root, self.cells, self.transcripts, self.models):
            for path in folder.glob(".*.tmp"):
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(
                    missing_ok=True
                )
                removed += 1
        return removed

    def write_transcripts(self, digest: str, rows: list[dict[str, Any]]) -> None:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_atomically(self.transcripts / f"{digest}.jsonl", text)

    def read_transcripts(self, digest: str) -> list[dict[str, Any]]:
        path = self.transcripts / f"{digest}.jsonl"
        if not path.exists():
            return []

        def damaged(cause: Exception | None = None) -> RecordError:
            error = RecordError(
                "a file of transcripts is damaged",
                field="transcripts",
                value=path.name,
                expected="one JSON object per line",
                remedy="delete the file; transcripts are optional, no verdict rests on them",
            )
            error.__cause__ = cause
            return error

        try:
            # Not splitlines(): models say U+2028 and other line ends that JSON leaves as they are.
            rows = [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]
        except (OSError, ValueError) as error:
            raise damaged(error) from error
        if not all(isinstance(row, dict) for row in rows):
            raise damaged()
        return rows
