"""titer from Python: the same few verbs as the command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from titer.records.store import RunStore
    from titer.report import ReportPaths
    from titer.verdicts.output.verdict import StudyVerdict


def run(study: Any, directory: str | Path, *, report: Any = None, **options: Any) -> RunStore:
    """Bring a study (name, YAML path, dict or Study) to its end in `directory`; finished cells are
    not done again.

    options: reuse (run directories), workers, threads, keep_transcripts, checkpoint_every_s,
    stop_after. Raises UsageError before any work, RunError while working.
    """
    from titer.runners.execute import RunOptions
    from titer.runners.execute import run as execute
    from titer.study import load_study

    return execute(load_study(study), directory, RunOptions(**options), report)


def judge(directory: str | Path) -> StudyVerdict:
    """The verdict on a run directory, from its records alone: no model, no torch. Raises
    UsageError, RecordError.
    """
    from titer.records.store import RunStore
    from titer.verdicts import judge as judge_view

    return judge_view(RunStore(directory).view())


def write_report(
    directory: str | Path, *, to: str | Path | None = None, show_transcripts: bool = False
) -> ReportPaths:
    """Write report.html, report.md, verdict.json, into the run directory unless `to` is given."""
    from titer.records.store import RunStore
    from titer.report import write_report as write
    from titer.verdicts import judge as judge_view

    store = RunStore(directory)
    view = store.view()
    transcripts = None
    if show_transcripts:
        transcripts = [
            {"cell": d, **row} for d in view.records for row in store.read_transcripts(d)
        ]
    return write(view, judge_view(view), Path(to or directory), transcripts=transcripts)
