"""The report as Markdown for repositories: the same tables as the HTML, no figures, no time of
writing, no transcripts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from titer.records.view import RunView
from titer.report import numbers as f
from titer.report.content import conditions, provenance, resistance, risk, sentences, summary
from titer.report.content import models as starts
from titer.report.content.plain import in_short
from titer.report.table import SIGNS, Table
from titer.study.escaping import visible
from titer.verdicts.output.verdict import CandidateVerdict, StudyVerdict


def md(text: str) -> str:
    """Foreign text as inert Markdown on one line: no HTML, links, emphasis, code or table cells of
    its own.
    """
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    text = re.sub(r"([\\`*|])", r"\\\1", text)
    text = re.sub(
        r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text
    )  # inside a word it is not emphasis
    return text.replace("](", "]\\(").replace("~~", "\\~\\~")


def paragraph(text: str) -> str:
    """As `md`, and not a heading, list or quotation either."""
    return re.sub(r"^([#>+=-]|\d+(?=[.)]))", r"\\\1", md(text))


def markdown_table(table: Table) -> str:
    """A GitHub-flavoured table; numeric columns right-aligned; a status keeps its sign."""
    head = "| " + " | ".join(md(c.title) or " " for c in table.columns) + " |"
    rule = "| " + " | ".join("---:" if c.numeric else "---" for c in table.columns) + " |"
    rows = [
        "| "
        + " | ".join(
            (f"{SIGNS.get(c.status, '')} " if c.status else "") + (md(c.text) or " ") for c in row
        )
        + " |"
        for row in table.rows
    ]
    return "\n".join([head, rule, *rows])


def pairs_table(rows: Iterable[tuple[str, str]]) -> str:
    """(label, value) rows as a table of two columns."""
    lines = [f"| {md(label)} | {md(value) or ' '} |" for label, value in rows]
    return "\n".join(["| | |", "| --- | --- |", *lines])


def render_markdown(view: RunView, verdict: StudyVerdict) -> str:
    """The whole report. Pure: the same arguments always give the same text; no absolute local path
    is in it.
    """
    blocks = [b for b in _blocks(view, f.shared(verdict)) if b]
    return visible("\n\n".join(blocks) + "\n")


def _blocks(view: RunView, verdict: StudyVerdict) -> Iterator[str]:
    yield f"# {md(verdict.title or verdict.study)}"
    yield (
        f"Study `{verdict.study}`, digest `{verdict.study_digest}`; threat model: "
        f"{md(f.words(verdict.threat_model))}; {verdict.grade} grade; {verdict.status}."
    )
    for kind, text in sentences.notices(view, verdict):
        yield f"> {SIGNS[kind]} **{kind}** {md(text)}"
    yield "## Verdict"
    yield from _table(conditions.summary_table(verdict), caption=False)
    if not verdict.candidates:
        yield "No candidate besides the control."
    for c in verdict.candidates:
        yield f"**{md(c.name)}: {SIGNS[c.overall]} {c.overall}**"
        yield md(in_short(c, verdict.grade))
        yield "\n".join(f"- {label}: {md(text)}" for label, text in summary.answer(c))
    yield "## Why"
    yield from _table(provenance.alignment(view), empty="")
    yield from _table(resistance.control_table(verdict.control))
    for c in verdict.candidates:
        yield f"### {md(c.name)}"
        yield from _claims(c)
        yield from _table(resistance.attack_table(c))
        yield from _table(resistance.edit_table(c), empty="")
        for table in (resistance.settings_table(c), resistance.seed_table(c)):
            yield from _table(table)
    yield "### Breach budgets of the control"
    yield from _table(resistance.seed_table(verdict.control), caption=False)
    yield "## How sure: survival and risk"
    for c in verdict.candidates:
        for a in c.resistance.attacks:
            if not a.edit:
                yield from _table(resistance.share_table(a, c.name))
        yield from _table(risk.risk_table(c), empty="")
        yield from _table(risk.fit_table(c), empty="")
    yield "## Resistance factor"
    yield from _table(resistance.factor_table(verdict), caption=False)
    yield "## Sensitivity to φ"
    yield from _table(resistance.sensitivity_table(verdict), caption=False)
    yield "## Flags"
    yield from _table(conditions.flag_table(verdict), caption=False, empty="No flag was raised.")
    yield "## What would change the verdict"
    yield _changes(verdict)
    yield from _conditions(verdict)
    if verdict.guidelines:
        yield "## Guidelines"
        yield from _table(conditions.guideline_table(verdict), caption=False)
    yield "## Cost"
    yield from _table(conditions.cost_table(verdict))
    for c in verdict.candidates:
        yield from _table(_named(provenance.attack_cost(view, c), c.name))
    yield from _provenance(view, verdict)
    yield "## What this does not claim"
    yield "\n".join(f"- **{md(term)}.** {md(text)}" for term, text in sentences.GLOSSARY)


def _claims(c: CandidateVerdict) -> Iterator[str]:
    """The headline, and the claims it does not repeat."""
    yield md(c.headline)
    yield f"Titer {md(resistance.titer_text(c.resistance))}. {md(sentences.scope(c))}"
    lines = []
    for name in summary.CONDITIONS:
        condition = getattr(c, name)
        claim = "" if condition.claim in c.headline else md(condition.claim)
        lines.append(
            f"- {name.capitalize()}: {SIGNS[condition.status]} {condition.status}. {claim}".rstrip()
        )
    yield "\n".join(lines)


def _conditions(verdict: StudyVerdict) -> Iterator[str]:
    yield "## Generalization"
    for c in verdict.candidates:
        g = c.generalization
        yield (
            f"**{md(c.name)}**: {g.status}; in-domain {g.in_domain}, cross-domain "
            f"{g.cross_domain}, cross-source {g.cross_source}. {md(g.claim)}"
        ).rstrip()
        yield from _table(conditions.matrix_table(c.name, g), empty="")
        yield from _table(conditions.reasons_table(g), empty="")
    yield "## Stability"
    for c in verdict.candidates:
        yield f"**{md(c.name)}**: {c.stability.status}. {md(c.stability.claim)}".rstrip()
        yield from _table(conditions.stability_table(c.name, c.stability), empty="")
    yield "## Trainability"
    for c in verdict.candidates:
        yield f"**{md(c.name)}**: {c.trainability.status}. {md(c.trainability.claim)}".rstrip()
        yield from _table(conditions.trainability_table(c.name, c.trainability), empty="")
        yield from _table(conditions.speed_table(c.name, c.trainability), empty="")
        yield from _table(conditions.learning_table(c.name, c.trainability), empty="")


def _changes(verdict: StudyVerdict) -> str:
    lines = [
        f"- {md(c.name)}, {label}: {md(text)}"
        for c in verdict.candidates
        for label, text in summary.changes(c)
    ]
    if verdict.attainable:
        lines.append(f"- Best verdict this design could have reached: {md(verdict.attainable)}")
    return "\n".join(lines) or "Nothing is missing."


def _provenance(view: RunView, verdict: StudyVerdict) -> Iterator[str]:
    yield "## Provenance"
    digests = [
        ("titer (judged with)", verdict.titer_version or f.ABSENT),
        ("Study digest", verdict.study_digest),
    ]
    yield pairs_table([*digests, *provenance.design(view, verdict)])
    yield "### Machine and work"
    yield pairs_table([*provenance.machine(view), *provenance.work(view)])
    for table in (
        provenance.work_by_purpose(view),
        starts.models(view),
        starts.loaded_table(view),
        starts.wording_table(view),
        provenance.sources(view),
        provenance.measures(view),
    ):
        yield from _table(table, empty="")
    yield "### Disjointness of the data"
    proof = provenance.disjointness(view)
    yield pairs_table(proof) if proof else "No proof is recorded in the plan."
    yield "### How to reproduce"
    commands = "\n".join(command for command, _ in sentences.commands(view))
    yield (
        "RUN is the run directory, which keeps the study as it was run in study.json; NEW is a "
        "directory that does not exist yet."
    )
    yield f"```\n{commands}\n```"
    body = _fenced(provenance.study_yaml(view))
    yield f"<details><summary>The whole study</summary>\n\n{body}\n\n</details>"


def _fenced(text: str) -> str:
    """A code block whose fence is longer than any run of backticks inside."""
    longest = max((len(m) for m in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}yaml\n{text.rstrip()}\n{fence}"


def _named(table: Table, name: str) -> Table:
    return Table(f"{table.caption}: {name}", table.columns, table.rows, table.notes)


def _table(table: Table, *, caption: bool = True, empty: str = "Not available.") -> Sequence[str]:
    if not table:
        return (
            [empty]
            if not caption
            else [f"{md(table.caption)}: {empty[0].lower()}{empty[1:]}"]
            if empty
            else []
        )
    parts = [f"*{md(table.caption)}*"] if caption else []
    return [*parts, markdown_table(table), *(paragraph(n) for n in table.notes)]
