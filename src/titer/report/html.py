"""The report as one self-contained HTML file: no scripts, no requests, every foreign string
escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from titer.records.view import RunView
from titer.report import numbers as f
from titer.report.content import conditions, provenance, resistance, risk, sentences, summary
from titer.report.content import models as starts
from titer.report.content.plain import in_short
from titer.report.drawing import figures
from titer.report.table import SIGNS, tone
from titer.study.escaping import visible
from titer.verdicts.output.verdict import StudyVerdict

MAX_TRANSCRIPTS = 2000
"""More rows than anybody reads; the rest stay in the run directory."""


def render_html(
    view: RunView, verdict: StudyVerdict, *, transcripts: Sequence[Mapping[str, Any]] | None = None
) -> str:
    """The whole report. transcripts: model outputs to include; none are shown unless given.

    Pure: the same arguments always give the same text.
    """
    verdict = f.shared(verdict)
    environment = Environment(
        loader=PackageLoader("titer.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: visible(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["words"] = f.words
    environment.globals.update(tone=tone, sign=lambda status: SIGNS.get(status, "–"))
    return environment.get_template("report.html.j2").render(
        view=view,
        verdict=verdict,
        sections=_sections(verdict, transcripts is not None),
        summary=summary,
        risk=risk,
        f=f,
        resistance=resistance,
        conditions=conditions,
        provenance=provenance,
        figures=figures,
        starts=starts,
        sentences=sentences,
        in_short=in_short,
        transcripts=_transcripts(transcripts),
        transcripts_cut=max(0, len(transcripts or ()) - MAX_TRANSCRIPTS),
    )


def _sections(verdict: StudyVerdict, transcripts: bool) -> list[tuple[str, list[tuple[str, str]]]]:
    """The navigation: the sections this report has."""
    absent = {"guidelines"} if not verdict.guidelines else set()
    absent |= set() if transcripts else {"transcripts"}
    return [
        (group, [x for x in entries if x[0] not in absent]) for group, entries in sentences.SECTIONS
    ]


def _transcripts(
    rows: Sequence[Mapping[str, Any]] | None,
) -> list[tuple[str, list[list[tuple[str, str]]]]] | None:
    """(heading, items) per cell, step and reading, each item its fields as text; None if none were
    asked for.
    """
    if rows is None:
        return None
    groups: dict[str, list[list[tuple[str, str]]]] = {}
    for row in rows[:MAX_TRANSCRIPTS]:
        keys = [k for k in ("cell", "step", "label") if k in row]
        heading = ", ".join(f"{k} {row[k]}" for k in keys) or "transcripts"
        groups.setdefault(heading, []).append(
            [(str(k), _text(v)) for k, v in row.items() if k not in keys]
        )
    return list(groups.items())


def _text(value: Any) -> str:
    """Model output whole, anything else as one line."""
    return value if isinstance(value, str) else f.plain(value)
