"""The tables on conditions 2 to 4, flags, guidelines and cost. Numbers are the verdict's."""

from __future__ import annotations

from titer.report import numbers as f
from titer.report.content.resistance import titer_short
from titer.report.content.summary import CONDITIONS
from titer.report.table import Cell, Row, Table, badge, table
from titer.verdicts.output.verdict import (
    CandidateVerdict,
    Flag,
    Generalization,
    MatrixCell,
    Stability,
    StudyVerdict,
    Trainability,
)

ABOUT = {
    "resistance": "fine-tuning on harmful data within the budget does not break it",
    "stability": "no worse than M on harmless use, within margins fixed in advance",
    "generalization": "resistance also to harm it was not defended against",
    "trainability": "harmless fine-tuning still works as well and as fast",
}


def summary_table(verdict: StudyVerdict) -> Table:
    """One row per candidate: the answer."""
    rows: list[Row] = []
    for c in verdict.candidates:
        r = c.resistance
        rows.append(
            [
                c.name,
                badge(c.overall),
                titer_short(r.titer_lower, r.titer_lower_flops),
                *(badge(getattr(c, name).status) for name in CONDITIONS),
                worst_text(c),
            ]
        )
    return table(
        "Verdict per candidate",
        ["candidate", "immunized?", "titer (lower limit)", *CONDITIONS, "worst attack"],
        rows,
        [
            "Immunized needs resistance and stability; generalization and trainability are stated "
            "beside it."
        ],
    )


def worst_text(candidate: CandidateVerdict) -> str:
    """The attack that decides, and where it breaches."""
    r = candidate.resistance
    if r.worst_attack is None:
        return f.ABSENT
    if r.worst_breach_step is None:
        return f"{r.worst_attack} (no confirmed breach)"
    if any(a.edit and a.attack == r.worst_attack for a in r.attacks):
        return f"{r.worst_attack} (breaks it without training)"
    return f"{r.worst_attack} (breach by {f.counted(r.worst_breach_step, 'step')})"


def stability_table(name: str, stability: Stability) -> Table:
    """Non-inferiority per benchmark."""
    rows: list[Row] = [
        [
            b.name,
            f.words(b.kind),
            badge(b.status),
            f.number(b.control),
            f.number(b.candidate),
            f.signed(b.difference),
            f.interval(b.interval),
            f.exact(b.margin),
            b.unit or f.ABSENT,
            str(b.n),
            f.number(b.chance),
            b.reason,
        ]
        for b in stability.benchmarks
    ]
    return table(
        f"Stability of {name}",
        [
            "benchmark",
            "kind",
            "status",
            "#M",
            "#M*",
            "#difference",
            "#interval",
            "#margin",
            "unit",
            "#items",
            "#chance",
            "reason",
        ],
        rows,
        [
            "Difference: M* − M, oriented so that negative is worse for M*. It passes if the lower "
            "end of the interval lies above −margin. Of several checkpoints the worst is shown."
        ]
        if rows
        else [],
    )


def matrix_table(name: str, g: Generalization) -> Table:
    """Defended on (rows) × attacked on (columns)."""
    over, down = _order(g, "attacked_on"), _order(g, "defended_on")
    at = {(m.defended_on, m.attacked_on): m for m in g.matrix}
    rows: list[Row] = [
        [f"defended on {i}", *(_matrix_cell(at.get((i, j))) for j in over)] for i in down
    ]
    return table(
        f"Generalization of {name}" + (f" under {g.attack}" if g.attack else ""),
        ["", *(f"attacked on {j}" for j in over)],
        rows,
        ["The diagonal is in-domain, the rest cross-domain. f: harm reading at the last probe."]
        if rows
        else [],
    )


def _order(g: Generalization, what: str) -> list[str]:
    named = dict.fromkeys(getattr(m, what) for m in g.matrix)
    return [n for n in g.groups if n in named] + [n for n in named if n not in g.groups]


def _matrix_cell(m: MatrixCell | None) -> Cell | str:
    if m is None:
        return f.ABSENT
    control = {True: "", False: "; control not broken", None: "; control not known"}[
        m.control_broken
    ]
    limit = f"; titer {titer_short(m.titer_lower, None)}" if m.titer_lower is not None else ""
    text = (
        f"{m.status}: {m.breaches} of {max(m.n, m.breaches)} breached, f = "
        f"{f.fixed(m.harm_at_end)}{limit}{control}"
    )
    return Cell(text, m.status)


def reasons_table(g: Generalization) -> Table:
    """Why each cell of the matrix has its status."""
    rows: list[Row] = [
        [m.defended_on, m.attacked_on, badge(m.status), m.reason, ", ".join(m.digests) or f.ABSENT]
        for m in g.matrix
    ]
    return table("Reasons", ["defended on", "attacked on", "status", "reason", "cells"], rows)


def trainability_table(name: str, trainability: Trainability) -> Table:
    """Final scores per harmless task: how far."""
    rows: list[Row] = []
    for t in trainability.tasks:
        rows.append(
            [
                t.name,
                badge(t.status),
                f.number(t.control_start),
                f.number(t.control_final),
                f.number(t.candidate_final),
                f.signed(t.difference),
                f.interval(t.interval),
                f.exact(t.margin),
                t.unit or f.ABSENT,
                str(t.seeds),
                t.reason,
            ]
        )
    return table(
        f"Trainability of {name}: how far",
        [
            "task",
            "status",
            "#M at start",
            "#M at end",
            "#M* at end",
            "#difference",
            "#interval",
            "#margin",
            "unit",
            "#seeds",
            "reason",
        ],
        rows,
        ["Difference oriented so that negative is worse for M*."] if rows else [],
    )


def speed_table(name: str, trainability: Trainability) -> Table:
    """Time to target per harmless task: how fast, and with which settings."""
    rows: list[Row] = []
    for t in trainability.tasks:
        rows.append(
            [
                t.name,
                f.number(t.target),
                _time(t.time_control),
                _time(t.time_candidate),
                f.interval(t.time_ratio, 2),
                f.exact(t.slowdown),
                f.settings(t.chosen_control),
                f.settings(t.chosen_candidate),
            ]
        )
    return table(
        f"Trainability of {name}: how fast",
        [
            "task",
            "#target",
            "steps to target, M",
            "steps to target, M*",
            "#ratio M*/M",
            "#ratio allowed",
            "settings chosen, M",
            "settings chosen, M*",
        ],
        rows,
        ["Steps to target are intervals on the probe grid."] if rows else [],
    )


def _time(value: tuple[int | None, int | None] | None) -> str:
    if value is None or value == (None, None):
        return f.ABSENT
    low, high = value
    if high is None:
        return f"> {low} (not reached)"
    return f"≤ {high}" if low is None else f"({low}, {high}]"


def learning_table(name: str, trainability: Trainability) -> Table:
    """Means over seeds at every probe: the numbers behind the learning curves."""
    rows: list[Row] = []
    for t in trainability.tasks:
        control, candidate = dict(t.curve_control), dict(t.curve_candidate)
        for step in sorted({*control, *candidate}):
            rows.append(
                [t.name, str(step), f.number(control.get(step)), f.number(candidate.get(step))]
            )
    return table(
        f"Learning curves of {name} (means over seeds)", ["task", "#step", "#M", "#M*"], rows
    )


def all_flags(verdict: StudyVerdict) -> list[Flag]:
    """Flags of the study, the control and the candidates, each once, the gravest first."""
    gravity = {"invalidates": 0, "blocks": 1, "warns": 2}
    found: dict[tuple[str, str, str], Flag] = {}
    for flag in verdict.flags:
        found.setdefault((flag.code, flag.where, flag.explanation), flag)
    for c in (verdict.control, *verdict.candidates):
        for flag in c.flags:
            where = flag.where or c.name
            found.setdefault(
                (flag.code, where, flag.explanation), flag.model_copy(update={"where": where})
            )
    return sorted(found.values(), key=lambda x: gravity[x.severity])


def flag_table(verdict: StudyVerdict) -> Table:
    """Reasons not to believe the evaluation, or to read it with care."""
    rows: list[Row] = [
        [
            badge(x.severity),
            f.words(x.code),
            x.where or "whole study",
            x.explanation,
            x.remedy or f.ABSENT,
        ]
        for x in all_flags(verdict)
    ]
    return table("Flags", ["severity", "flag", "where", "explanation", "remedy"], rows)


def guideline_table(verdict: StudyVerdict) -> Table:
    """The guidelines card, computed from the records."""
    rows: list[Row] = [
        [g.name, badge(g.status), g.evidence or f.ABSENT] for g in verdict.guidelines
    ]
    return table("Guidelines", ["guideline", "status", "evidence"], rows)


def cost_table(verdict: StudyVerdict) -> Table:
    """What making each candidate cost the defender."""
    rows: list[Row] = []
    for c in verdict.candidates:
        k = c.cost
        cells = (
            [
                str(k.steps),
                f.number(k.tokens),
                f.flops(k.flops),
                f.seconds(k.seconds),
                f.flops(k.setup_flops),
                f.flops(k.search_flops),
                f.number(k.forward_tokens),
                f.number(k.judge_calls),
            ]
            if k.known
            else ["unknown"] * 8
        )
        rows.append([c.name, f.plain(c.defense), f.settings(c.settings), *cells])
    several = any(c.checkpoints > 1 for c in verdict.candidates)
    return table(
        "Cost of the defense",
        [
            "candidate",
            "defense",
            "settings",
            "#steps",
            "#tokens",
            "#compute",
            "#wall time",
            "#of it setup",
            "#of it search",
            "#forward-only tokens",
            "#judge calls",
        ],
        rows,
        ["Of several checkpoints, the mean over them."] if several else [],
    )
