"""The tables on resistance: per attack, per seed, shares over budget, factors, sensitivity. Numbers
are the verdict's.
"""

from __future__ import annotations

from titer.report import numbers as f
from titer.report.content import sentences
from titer.report.table import Cell, Row, Table, badge, table
from titer.verdicts.output.verdict import (
    AttackVerdict,
    CandidateVerdict,
    ProbeView,
    Resistance,
    StudyVerdict,
    Trajectory,
)

STATE_LETTERS = {"resisting": "r", "ambiguous": "a", "breached": "b", "unconfirmed": "u"}
SECOND_WORDS = {
    "resisting": "below φ",
    "ambiguous": "not clearly on either side of φ",
    "breached": "above φ",
    "unconfirmed": "above φ",
}
"""The second judge reads once, without a confirmation, so its reading is said to lie above or below
φ and no more.
"""
CONTROL_WORDS = {
    "broken": "yes",
    "not broken": "no",
    "missing": "not known yet",
    "exempt": "exempt",
}


def titer_text(resistance: Resistance) -> str:
    """The lower limit with what it is a limit of, or why there is none. It is never called more
    than that.
    """
    level, delta = f.percent(1 - resistance.alpha), f.percent(resistance.delta)
    if resistance.titer_lower is None:
        return "no lower limit can be given"
    if resistance.titer_lower == 0:
        return "≥ 0 steps (lower limit: no budget is shown to be withstood)"
    cost = (
        f", {f.flops(resistance.titer_lower_flops)}"
        if resistance.titer_lower_flops is not None
        else ""
    )
    return (
        f"≥ {f.counted(resistance.titer_lower, 'step')}{cost} (lower limit: at {level} confidence, "
        f"fewer than {delta} of new seeds breach by then, under the worst attack of this battery)"
    )


def titer_short(steps: int | None, cost: float | None) -> str:
    """`≥ 16 steps (1.2 × 10¹² FLOP)`; a dash if there is none."""
    if steps is None:
        return f.ABSENT
    return f"≥ {f.counted(steps, 'step')}" + (f" ({f.flops(cost)})" if cost is not None else "")


def attack_table(candidate: CandidateVerdict) -> Table:
    """One row per attack with a budget: does it break the candidate, is it evidence, how far does
    the limit reach, and why.
    """
    rows: list[Row] = []
    attacks = [a for a in candidate.resistance.attacks if not a.edit]
    for a in attacks:
        rows.append(
            [
                a.attack,
                a.role,
                badge(a.status),
                f"{a.n} of {a.n_required}",
                f"{a.breaches} of {max(a.n, a.breaches)}",
                f.percent(a.breach_upper),
                titer_short(a.titer_lower, a.titer_lower_flops),
                quantile_text(a),
                Cell(CONTROL_WORDS[a.control_status], a.control_status),
                a.reason,
            ]
        )
    r = candidate.resistance
    own = {a.budget_text for a in attacks}
    budget = sentences.budget(r) if len(own) > 1 or len(attacks) == len(r.attacks) else own.pop()
    return table(
        f"Attacks on {candidate.name}, budget T = {budget}, φ = {f.exact(r.phi)}",
        [
            "attack",
            "role",
            "status",
            "#seeds",
            "#breaches",
            "#breach risk ≤",
            "titer (lower limit)",
            "quantile of τ",
            "control broken?",
            "reason",
        ],
        rows,
        [
            "Seeds: complete runs of those needed for δ. Breach risk: one-sided upper bound "
            f"({f.percent(1 - r.alpha)}) of the probability that a new seed breaches by T.",
            "A non-breach counts as evidence only if the same attack breaks the undefended control "
            "in every seed.",
        ],
    )


def edit_table(candidate: CandidateVerdict) -> Table:
    """One row per training-free edit: it breaks the model, or it does not."""
    rows: list[Row] = []
    for a in candidate.resistance.attacks:
        if not a.edit:
            continue
        ends = [t.probes[-1] for t in a.trajectories if t.probes]
        harms = [p.harm for p in ends if p.harm is not None]
        rows.append(
            [
                a.attack,
                a.role,
                Cell(_breaks(a), a.status),
                f"{a.breaches} of {max(a.n, a.breaches)}",
                f"{a.n} of {a.n_required}",
                f.percent(a.breach_upper),
                f.fixed(max(harms) if harms else None),
                f.flops(max((p.flops for p in ends), default=None)),
                Cell(CONTROL_WORDS[a.control_status], a.control_status),
                a.reason,
            ]
        )
    return table(
        f"Training-free edits of {candidate.name}",
        [
            "edit",
            "role",
            "breaks the model?",
            "#breaches",
            "#seeds",
            "#breach risk ≤",
            "#f afterwards, largest",
            "#cost",
            "control broken?",
            "reason",
        ],
        rows,
        ["An edit has no budget axis: more of it is another attack."] if rows else [],
    )


def _breaks(a: AttackVerdict) -> str:
    """What was seen; the status says whether it is evidence."""
    if a.breaches:
        return "yes"
    if not a.trajectories:
        return "not run yet"
    return "not decided" if any(t.ambiguous for t in a.trajectories) else "no"


def quantile_text(a: AttackVerdict) -> str:
    """The verdict's own wording of the quantile of τ, else its interval."""
    if a.median_budget_text:
        return a.median_budget_text
    return f.interval(a.quantile_budget, 0)


def control_table(control: CandidateVerdict) -> Table:
    """The positive control: does each attack break M by T in every seed?"""
    rows: list[Row] = []
    for a in control.resistance.attacks:
        every = a.n > 0 and a.breaches >= a.n
        word = "yes" if every else "no breach" if not a.breaches else "not in every seed"
        sign = "exempt" if a.role == "reference" else "broken" if every else "not broken"
        start = [
            t.probes[0].harm for t in a.trajectories if t.probes and t.probes[0].harm is not None
        ]
        rows.append(
            [
                a.attack,
                a.role,
                Cell(word, sign),
                f"{a.breaches} of {max(a.n, a.breaches)}",
                f.fixed(max(start) if start else None),
                quantile_text(a),
                a.reason,
            ]
        )
    return table(
        "Attacks on the undefended control M",
        [
            "attack",
            "role",
            "breaks M?",
            "#breaches",
            "#f(M[0]), largest",
            "quantile of τ",
            "finding",
        ],
        rows,
        ["Reference attacks are not meant to break the control and are exempt."],
    )


def settings_table(candidate: CandidateVerdict) -> Table:
    """Which settings every attack ran with, those chosen by search included."""
    rows: list[Row] = []
    for a in candidate.resistance.attacks:
        chosen = list(dict.fromkeys(f.settings(t.chosen) for t in a.trajectories if t.chosen))
        rows.append([a.attack, a.method, f.settings(a.settings), "; ".join(chosen) or f.ABSENT])
    return table("Attack settings", ["attack", "method", "settings", "chosen by search"], rows)


def seed_table(candidate: CandidateVerdict) -> Table:
    """τ of every seed of every attack, as an interval on the probe grid."""
    rows: list[Row] = []
    for a in candidate.resistance.attacks:
        for t in a.trajectories:
            last = t.probes[-1] if t.probes else None
            second = f.fixed(t.second_judge) + (
                f" ({SECOND_WORDS[t.second_judge_state]})" if t.second_judge_state else ""
            )
            rows.append(
                [
                    a.attack,
                    str(t.seed),
                    _edited(t) if a.edit else f.breach_interval(t),
                    f.ABSENT
                    if a.edit
                    else _flops_interval(t.last_resisting_flops, t.first_breached_flops),
                    f.fixed(last.harm if last else None),
                    f.words(t.outcome),
                    second,
                    t.digest,
                ]
            )
    return table(
        f"Breach budget τ per seed, {candidate.name}",
        [
            "attack",
            "#seed",
            "τ in steps",
            "τ in FLOP",
            "#f at last probe",
            "outcome",
            "second judge",
            "cell",
        ],
        rows,
    )


def _edited(run: Trajectory) -> str:
    """What an edit did to the model in one run."""
    if run.first_breached is not None:
        return "broken by the edit" if run.first_breached else "broken before it"
    notes = ["not decided"] if run.ambiguous else ["not broken"]
    notes += ["collapsed"] if run.collapsed_at is not None else []
    return "; ".join(notes)


def _flops_interval(low: float | None, high: float | None) -> str:
    if low is None and high is None:
        return f.ABSENT
    if high is None:
        return f"> {f.flops(low)}"
    return f"≤ {f.flops(high)}" if low is None else f"({f.engineering(low)}, {f.flops(high)}]"


def harm_table(attack: AttackVerdict, who: str) -> Table:
    """f at every probe of every seed, with the state of the reading: what the curves show."""
    grid = sorted({p.step for t in attack.trajectories for p in t.probes})
    rows: list[Row] = []
    for t in attack.trajectories:
        at = {p.step: p for p in t.probes}
        rows.append([str(t.seed), *(harm_text(at.get(s)) for s in grid)])
    return table(
        f"{who} under {attack.attack}: f by step", ["#seed", *(f"#{s}" for s in grid)], rows
    )


def harm_text(probe: ProbeView | None) -> str:
    """`0.12 r`: the reading and the first letter of its state."""
    return f.ABSENT if probe is None else f"{f.fixed(probe.harm)} {STATE_LETTERS[probe.state]}"


def share_table(attack: AttackVerdict, who: str) -> Table:
    """Share of seeds not breached at each probe with its exact simultaneous band: the numbers
    behind the curve.
    """
    rows: list[Row] = []
    for p in attack.curve:
        share = 1 - p.breached / p.n if p.n else None
        rows.append(
            [
                str(p.step),
                str(p.n),
                str(p.breached),
                f.fixed(share),
                f"[{f.fixed(1 - p.high)}, {f.fixed(1 - p.low)}]",
                str(p.collapsed),
            ]
        )
    return table(
        f"{who} under {attack.attack}: share of seeds not breached",
        ["#step", "#seeds", "#breached", "#not breached", "#exact band", "#collapsed"],
        rows,
    )


def factor_table(verdict: StudyVerdict) -> Table:
    """Resistance factors of all candidates."""
    rows: list[Row] = [
        [
            c.name,
            x.against,
            f.number(x.estimate),
            f.interval(x.interval, 2),
            f.exact(x.quantile),
            x.text or f.ABSENT,
        ]
        for c in verdict.candidates
        for x in c.resistance.factors
    ]
    return table(
        "Resistance factor: least budget that breaks the candidate over the least that breaks the "
        "reference, in FLOP",
        ["candidate", "against", "#estimate", "#interval", "#quantile of τ", "in words"],
        rows,
    )


def sensitivity_table(verdict: StudyVerdict) -> Table:
    """What resistance would be at other thresholds."""
    phis = list(dict.fromkeys(p for c in verdict.candidates for p in c.resistance.sensitivity))
    rows: list[Row] = [
        [
            c.name,
            *(
                badge(c.resistance.sensitivity[p]) if p in c.resistance.sensitivity else f.ABSENT
                for p in phis
            ),
        ]
        for c in verdict.candidates
    ]
    made = table(
        "Status of resistance, had φ been another", ["candidate", *(f"φ = {p}" for p in phis)], rows
    )
    return made if phis else table(made.caption, ["candidate"], [])
