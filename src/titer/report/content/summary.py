"""The answer in four lines, for the first screen: up to which budget, by which attack, how sure,
what limits it.

Every line is made of fields of the verdict; nothing is judged here.
"""

from __future__ import annotations

from titer.report import numbers as f
from titer.report.content import sentences
from titer.verdicts.output.verdict import AttackVerdict, CandidateVerdict

CONDITIONS = ("resistance", "stability", "generalization", "trainability")
SHOWN = 4
"""Attacks named on the first screen; the rest are counted."""


def answer(candidate: CandidateVerdict) -> list[tuple[str, str]]:
    """(label, text): what a reader must know before anything else."""
    lines = [
        ("Budget", _budget(candidate)),
        ("Attack", _attack(candidate)),
        ("How sure", _sure(candidate)),
    ]
    if (
        candidate.overall in ("fails", "invalid")
        and candidate.resistance.status != candidate.overall
    ):
        lines.insert(
            0,
            (
                "Because",
                f"Stability {candidate.stability.status}. {candidate.stability.claim}".strip(),
            ),
        )
    return [*lines, ("Limits", _limits(candidate))]


def _budget(candidate: CandidateVerdict) -> str:
    r = candidate.resistance
    budget = f"T = {sentences.budget(r)}"
    spent = r.titer_lower_flops if r.titer_lower == r.budget else None
    if r.status == "fails" and r.worst_breach_step is not None:
        if r.worst_breach_step == 0:
            return f"Broken before any fine-tuning (budget {budget})."
        cost = f" ({f.flops(r.worst_breach_flops)})" if r.worst_breach_flops is not None else ""
        worst = worst_attack(candidate)
        if worst is not None and worst.edit:
            return f"Broken by {worst.budget_text}{cost}, without training (budget {budget})."
        return f"Broken by {f.counted(r.worst_breach_step, 'step')}{cost} of the budget {budget}."
    if r.status == "holds":
        return f"No breach up to {budget}" + (f" ({f.flops(spent)})." if spent is not None else ".")
    if r.status == "invalid":
        return f"No claim up to {budget}: the evidence is unfit."
    return (
        f"Not decided up to {budget}."
        if r.status == "inconclusive"
        else f"Not tested (budget {budget})."
    )


def _attack(candidate: CandidateVerdict) -> str:
    r = candidate.resistance
    worst = worst_attack(candidate)
    if worst is not None and r.worst_breach_step is not None:
        seeds = f.counted(max(worst.n, worst.breaches), "seed")
        text = f"{worst.attack} breaks it at the least compute, in {worst.breaches} of {seeds}"
        others = [a.attack for a in r.attacks if a.breaches and a is not worst]
        return text + (
            f"; {listed(others)} also do."
            if len(others) > 1
            else f"; so does {others[0]}."
            if others
            else "."
        )
    tried = [a.attack for a in r.attacks if a.role == "attack"]
    if not any(a.trajectories for a in r.attacks) or not tried:
        return "No attack was run yet."
    if r.status == "holds":
        fit = all(a.control_status == "broken" for a in r.attacks if a.role == "attack")
        return f"None of {listed(tried)} breaks it" + (
            "; each breaks the undefended control M." if fit else "."
        )
    return f"No confirmed breach under {listed(tried)}."


def _sure(candidate: CandidateVerdict) -> str:
    r = candidate.resistance
    if not any(a.trajectories for a in r.attacks):
        return "No reading yet."
    level, delta = f.percent(1 - r.alpha), f.percent(r.delta)
    parts = []
    worst = worst_attack(candidate)
    if worst is not None and r.worst_breach_step is not None:
        quickest = min(
            (t for t in worst.trajectories if t.first_breached is not None),
            key=lambda t: (t.first_breached, -1 if t.last_resisting is None else t.last_resisting),
            default=None,
        )
        where = ""
        if quickest and not worst.edit:
            tau = f.steps_interval(quickest.last_resisting, quickest.first_breached)
            where = f"; in the quickest seed τ is {tau}"
        parts.append(f"The breach is confirmed on disjoint prompts{where}.")
    else:
        fit = [
            a
            for a in r.attacks
            if a.role == "attack" and a.control_status == "broken" and a.breach_upper is not None
        ]
        unfit = [a.attack for a in r.attacks if a.role == "attack" and a not in fit]
        risks, seeds = (
            [a.breach_upper for a in fit if a.breach_upper is not None],
            [a.n for a in fit],
        )
        if unfit:
            parts.append(f"No evidence from {listed(unfit)}.")
        if risks:
            parts.append(
                f"{f.counted(min(seeds), 'seed')} per attack: at {level} confidence each, a new "
                f"seed breaches by T with probability at most {f.percent(max(risks))}."
            )
    if r.titer_lower == 0:
        parts.append("The titer's lower limit is 0 steps: no budget is shown to be withstood.")
    elif r.titer_lower is not None:
        parts.append(
            f"Titer ≥ {f.counted(r.titer_lower, 'step')}: at {level} confidence fewer than {delta} "
            "of new seeds breach by then."
        )
    else:
        parts.append("No lower limit of the titer can be given.")
    return " ".join(parts)


def _limits(candidate: CandidateVerdict) -> str:
    r = candidate.resistance
    battery = sentences.battery_word(candidate).capitalize()
    text = (
        f"{battery} battery; {sentences.construct(candidate)}; about {sentences.about(candidate)}."
    )
    return text + (
        " Holds by collapse: some runs lost their capability instead of breaching."
        if r.by_collapse
        else ""
    )


def worst_attack(candidate: CandidateVerdict) -> AttackVerdict | None:
    """The attack the verdict names as the worst, if it names one."""
    return next(
        (a for a in candidate.resistance.attacks if a.attack == candidate.resistance.worst_attack),
        None,
    )


def listed(names: list[str]) -> str:
    """`a, b and c`; beyond a handful `a, b, c, d and 3 more`."""
    shown = names[:SHOWN] if len(names) > SHOWN + 1 else names
    rest = len(names) - len(shown)
    if rest:
        return f"{', '.join(shown)} and {rest} more"
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def changes(candidate: CandidateVerdict) -> list[tuple[str, str]]:
    """(label, sentence): what would change the verdict: the gaps it lists, then what its own
    numbers say it hangs on.
    """
    r = candidate.resistance
    out = [
        (name, text)
        for name in CONDITIONS
        for text in dict.fromkeys(getattr(candidate, name).missing)
    ]
    if not out:
        out.append(("gaps", sentences.no_gap(candidate)))
    lost = [b.name for b in candidate.stability.benchmarks if b.status == "fails"]
    if lost:
        worse = "surely worse than M by more than the margin; only another model could change this."
        out.append(("stability", f"{listed(lost)}: {worse}"))
    if r.status == "fails" and r.worst_breach_step is not None:
        shown = (
            f" The titer shows up to where: ≥ {f.counted(r.titer_lower, 'step')}."
            if r.titer_lower
            else ""
        )
        out.append(
            (
                "budget",
                "More runs cannot undo a confirmed breach; only a claim to a smaller budget, made "
                f"before a new study, could hold.{shown}",
            )
        )
    if r.status == "holds":
        out.append(
            (
                "attacks",
                f"One confirmed breach by T = {sentences.budget(r)}, under any attack, would turn "
                "it into `fails`."
                + (
                    ""
                    if r.adaptive
                    else " No attack was adapted to this defense; that is the first to try."
                ),
            )
        )
        risks = [
            a.breach_upper for a in r.attacks if a.role == "attack" and a.breach_upper is not None
        ]
        if risks:
            out.append(
                (
                    "seeds",
                    f"Breach risks up to {f.percent(max(risks))} per seed are not excluded; more "
                    "seeds lower this.",
                )
            )
    other = {phi: status for phi, status in r.sensitivity.items() if status != r.status}
    if other:
        out.append(
            (
                "threshold",
                "Another φ gives another status of resistance: "
                + ", ".join(f"{s} at φ = {p}" for p, s in other.items())
                + ".",
            )
        )
    elif r.sensitivity:
        out.append(
            (
                "threshold",
                f"None of the other thresholds looked at ({', '.join(r.sensitivity)}) changes the "
                "status of resistance.",
            )
        )
    return out
