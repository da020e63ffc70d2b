"""A section for a model card. It will be read alone and quoted, so it carries its own limits and
how to check it.
"""

from __future__ import annotations

from titer.errors import UsageError
from titer.records.view import RunView
from titer.report import numbers as f
from titer.report.content import conditions, resistance, sentences
from titer.report.content import models as starts
from titer.report.content.plain import in_short
from titer.report.content.summary import CONDITIONS, answer
from titer.report.markdown import markdown_table, md, pairs_table
from titer.report.table import SIGNS, Cell, Row, Table, badge, table
from titer.verdicts.output.verdict import CandidateVerdict, Flag, StudyVerdict

TITLE = "## Safety: fine-tuning resistance"


def model_card_section(
    verdict: StudyVerdict, candidate: str, *, view: RunView | None = None
) -> str:
    """Markdown 'Safety: fine-tuning resistance' about one candidate.

    view: the run, to name which weights were tested. Raises UsageError if the verdict has no
    candidate of this name.
    """
    verdict = f.shared(verdict)
    c = next((c for c in verdict.candidates if c.name == candidate), None)
    if c is None:
        raise UsageError(
            "the verdict has no such candidate",
            field="candidate",
            value=candidate,
            expected=", ".join(x.name for x in verdict.candidates) or "a study with candidates",
        )
    flags = [
        f"- {x.severity} ({md(x.where or 'whole study')}): {md(x.explanation)}"
        for x in _flags(verdict, c)
    ]
    parts = [
        TITLE,
        f"**{SIGNS[c.overall]} {c.overall}** — {md(c.headline)}",
        *_warnings(verdict),
        md(in_short(c, verdict.grade)),
        "\n".join(f"- {label}: {md(text)}" for label, text in answer(c)),
        f"Titer: {md(resistance.titer_text(c.resistance))}.",
        "**The four conditions**",
        markdown_table(_conditions(c)),
        "**Attacks tried**",
        markdown_table(_attacks(c)) if c.resistance.attacks else "None.",
        "**Under which conditions**",
        pairs_table(_design(verdict, c, view)),
        "**Flags**",
        "\n".join(flags) or "No flag was raised.",
        "**Not claimed**",
        _not_claimed(c),
        "**How to check**",
        "The records of the run are the evidence; from them, without a model or a GPU, `titer "
        "judge RUN` gives this verdict and `titer report RUN` the full report. The study's digest "
        "must be the one above.",
    ]
    return "\n\n".join(parts) + "\n"


def _warnings(verdict: StudyVerdict) -> list[str]:
    """What has to be known before the verdict is believed."""
    out = []
    if verdict.status != "complete":
        reason = f": {md(verdict.status_reason)}" if verdict.status_reason else ""
        out.append(f"The study is **{verdict.status}**{reason}.")
    if verdict.grade == "demonstration":
        out.append(
            "Demonstration grade: it can refute a defense; it does not support a release claim."
        )
    return out


def _conditions(c: CandidateVerdict) -> Table:
    rows: list[Row] = []
    for name in CONDITIONS:
        condition = getattr(c, name)
        claim = condition.claim or f"not claimed; it would mean: {conditions.ABOUT[name]}"
        rows.append(
            [
                Cell(name),
                badge(condition.status),
                Cell("see above" if claim in c.headline else claim),
            ]
        )
    return table("Conditions", ["condition", "status", "claim"], rows)


def _attacks(c: CandidateVerdict) -> Table:
    rows: list[Row] = []
    for a in c.resistance.attacks:
        rows.append(
            [
                f"{a.attack} (training-free edit)" if a.edit else a.attack,
                a.role,
                badge(a.status),
                f"{a.breaches} of {max(a.n, a.breaches)}",
                f.percent(a.breach_upper),
                Cell(resistance.CONTROL_WORDS[a.control_status], a.control_status),
            ]
        )
    titles = [
        "attack",
        "role",
        "status",
        "#seeds breached",
        "#risk of a new seed ≤",
        "breaks the undefended model?",
    ]
    return table("Attacks", titles, rows)


def _design(
    verdict: StudyVerdict, c: CandidateVerdict, view: RunView | None
) -> list[tuple[str, str]]:
    r = c.resistance
    seeds = sorted({len(a.trajectories) for a in r.attacks if a.role == "attack"})
    return [
        ("Threat model", f.words(verdict.threat_model)),
        ("Budget T", r.budget_text or f.counted(r.budget, "optimizer step")),
        ("What the harm reading f means", f.words(r.harm_construct)),
        (
            "Threshold, level, quantile",
            f"φ = {f.exact(r.phi)}, α = {f.exact(r.alpha)}, δ = {f.exact(r.delta)}",
        ),
        (
            "Seeds per attack",
            "–".join(str(n) for n in dict.fromkeys((seeds[0], seeds[-1]))) if seeds else "none yet",
        ),
        ("Battery", f"{sentences.battery_word(c)}{sentences.searched(c)}"),
        ("The claim is about", sentences.about(c)),
        (
            "Defense",
            f"{f.plain(c.defense)} ({f.settings(c.settings)})"
            if c.settings
            else f.plain(c.defense),
        ),
        ("Grade", verdict.grade),
        *(starts.tested(view, c.name) if view else []),
        ("Study", f"{verdict.study}, digest {verdict.study_digest}"),
        ("Judged with", f"titer {verdict.titer_version or f.ABSENT}"),
    ]


def _not_claimed(c: CandidateVerdict) -> str:
    r = c.resistance
    lines = [
        f"resistance {'beyond' if r.status == 'holds' else 'up to or beyond'} T = "
        f"{sentences.budget(r)}, to attacks outside this battery, or under another threat model",
        *(
            []
            if r.adaptive
            else [
                "resistance to an attacker who adapts to the defense: no attack here was adapted "
                "to it"
            ]
        ),
        *(
            ["anything about the method that made this checkpoint"]
            if c.claim_about == "checkpoint"
            else []
        ),
        *(
            ["harmlessness: refusal removal is not harmfulness"]
            if r.harm_construct == "refusal removal"
            else []
        ),
        *(
            [
                "anything about real harmful content: f counts exactly right answers of a made-up "
                "world"
            ]
            if r.harm_construct == "exact"
            else []
        ),
        "strong resistance, which no experiment can show",
    ]
    return "\n".join(f"- {md(line)}" for line in lines)


def _flags(verdict: StudyVerdict, c: CandidateVerdict) -> list[Flag]:
    """Flags of the study, the control and this candidate; not those of its neighbours."""
    others = {x.name for x in verdict.candidates} - {c.name}
    found = conditions.all_flags(verdict.model_copy(update={"candidates": (c,)}))
    return [x for x in found if x.where.split("/")[0].strip() not in others]
