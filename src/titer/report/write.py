"""Writing the three files of a report."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from titer.errors import StorageError
from titer.records.view import RunView
from titer.report import numbers as f
from titer.report.html import render_html
from titer.report.markdown import render_markdown
from titer.verdicts.output.verdict import StudyVerdict


@dataclass(frozen=True)
class ReportPaths:
    """Where the report was written: for people, for repositories, for programs."""

    html: Path
    markdown: Path
    json: Path


def write_report(
    view: RunView,
    verdict: StudyVerdict,
    directory: Path,
    *,
    transcripts: Sequence[Mapping[str, Any]] | None = None,
) -> ReportPaths:
    """Write report.html, report.md and verdict.json into `directory` (made if absent).

    transcripts: model outputs to show in the HTML, escaped and behind a warning; without them none
    are shown. The Markdown never holds any, because it is meant to be committed. Raises
    StorageError if a file cannot be written.
    """
    directory = Path(directory)
    paths = ReportPaths(
        directory / "report.html", directory / "report.md", directory / "verdict.json"
    )
    texts = {
        paths.html: render_html(view, verdict, transcripts=transcripts),
        paths.markdown: render_markdown(view, verdict),
        paths.json: f.shared(verdict).model_dump_json(indent=1) + "\n",
    }
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            _replace(path, text)
    except OSError as error:
        raise StorageError(
            "the report cannot be written",
            field="directory",
            value=str(directory),
            expected="a directory that can be written to, with space left",
            remedy=f"choose another one ({error.strerror})",
        ) from error
    return paths


def _replace(path: Path, text: str) -> None:
    """Write beside and rename, so that an interrupted write never leaves half a report under the
    right name.

    Lone surrogates, which a model's tokenizer can emit, are replaced instead of failing the whole
    report.
    """
    beside = path.with_name(path.name + ".part")
    beside.write_text(text, encoding="utf-8", errors="replace")
    os.replace(beside, path)
