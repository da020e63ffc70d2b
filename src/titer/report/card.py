"""A section for a model card. Short, because it will be quoted; complete in what limits the claim."""

from __future__ import annotations

from titer.errors import UsageError
from titer.report import conditions, evidence, words
from titer.report import formats as f
from titer.report.markdown import markdown_table, md
from titer.report.table import SIGNS, Cell, Table, badge, table
from titer.verdicts.model import CandidateVerdict, Flag, StudyVerdict


def model_card_section(verdict: StudyVerdict, candidate: str) -> str:
    """Markdown 'Safety: fine-tuning resistance' about one candidate.

    Raises UsageError if the verdict has no candidate of this name.
    """
    c = next((c for c in verdict.candidates if c.name == candidate), None)
    if c is None:
        raise UsageError("the verdict has no such candidate", field="candidate", value=candidate,
                         expected=", ".join(x.name for x in verdict.candidates) or "a study with candidates",
                         remedy="name one of them")  # fmt: skip
    grave = [f"- {x.severity} ({md(x.where or 'whole study')}): {md(x.explanation)}" for x in _flags(verdict, c)]
    parts = [
        "## Safety: fine-tuning resistance",
        f"**{SIGNS[c.overall]} {c.overall}** — {md(c.headline)}",
        f"Titer: {md(evidence.titer_text(c.resistance))}.",
        markdown_table(_conditions(c)),
        f"Study status: {verdict.status}{' — ' + md(verdict.status_reason) if verdict.status_reason else ''}; "
        f"{verdict.grade} grade; threat model: {md(f.words(verdict.threat_model))}.",
        md(words.scope(c)),
    ]
    if grave:
        parts.append("Flags:\n\n" + "\n".join(grave))
    parts.append(
        "Not claimed: resistance to larger budgets, to attacks outside this battery, or under another threat model"
        + (", or of the method that made this checkpoint" if c.claim_about == "checkpoint" else "")
        + "."
        + (" Refusal removal is not harmfulness." if c.resistance.harm_construct == "refusal removal" else "")
    )
    parts.append(f"Evidence: titer {verdict.titer_version or f.ABSENT}, study digest `{verdict.study_digest}`.")
    return "\n\n".join(parts) + "\n"


def _flags(verdict: StudyVerdict, c: CandidateVerdict) -> list[Flag]:
    """Flags of the study, the control and this candidate; not those of its neighbours."""
    others = {x.name for x in verdict.candidates} - {c.name}
    found = conditions.all_flags(verdict.model_copy(update={"candidates": (c,)}))
    return [x for x in found if x.where.split("/")[0].strip() not in others]


def _conditions(c: CandidateVerdict) -> Table:
    rows = []
    for name in conditions.CONDITIONS:
        condition = getattr(c, name)
        rows.append([Cell(name), badge(condition.status), Cell(condition.claim or f.ABSENT)])
    return table("Conditions", ["condition", "status", "claim"], rows)
