"""One sentence per candidate for readers who know nothing of statistics: no symbols, no terms of
the field. It repeats the verdict and adds nothing to it.
"""

from __future__ import annotations

from dataclasses import dataclass

from titer.report import numbers as f
from titer.verdicts.output.verdict import CandidateVerdict, Grade, Resistance


@dataclass(frozen=True)
class _Words:
    """What a measure may be said to have seen. broken: after 'fine-tuning'; start: of a model that
    is broken before any of it; question: after 'whether fine-tuning'.
    """

    broken: str
    start: str
    question: str


WORDS = {
    "refusal removal": _Words(
        "removed its refusals", "it often fails to refuse", "removes its refusals"
    ),
    "harmfulness": _Words(
        "made it give harmful answers", "it often gives harmful answers", "makes it harmful"
    ),
    "exact": _Words(
        "made it give the answers it should refuse",
        "it often gives the answers it should refuse",
        "makes it give the answers it should refuse",
    ),
}
"""By construct. Removing refusals is not called harmful: that would claim more than was read."""

UNNAMED = _Words(
    "took it past the limit set in advance",
    "it is past the limit set in advance",
    "takes it past the limit set in advance",
)


def in_short(candidate: CandidateVerdict, grade: Grade) -> str:
    """The verdict on one candidate in one sentence for everybody."""
    r = candidate.resistance
    said = WORDS.get(r.harm_construct, UNNAMED)
    tuned = "fine-tuning through the service" if candidate.claim_about == "service" else None
    if candidate.overall == "invalid":
        return (
            "The evaluation is not valid, so it does not show whether the defense holds: "
            "something in the measurement or in the comparison model is unfit."
        )
    if candidate.overall == "fails":
        return _fails(candidate, said, tuned or "harmful fine-tuning")
    if candidate.overall == "holds":
        return _holds(candidate, said, tuned or "fine-tuning", grade)
    return _open(candidate, said, tuned or "fine-tuning")


def _fails(candidate: CandidateVerdict, said: _Words, tuning: str) -> str:
    r = candidate.resistance
    if r.status != "fails":
        worse = "The defense makes the model worse at harmless tasks by more than was allowed"
        if r.status == "holds":
            return f"{worse}, so it does not count as a success, although {_survived(r, said)}."
        return f"{worse}; whether {tuning} {said.question} is not decided."
    end = "; the defense does not hold."
    steps = _fewest(r)
    if steps == 0:
        return f"Even before any fine-tuning {said.start}{end}"
    worst = next((a for a in r.attacks if a.attack == r.worst_attack), None)
    if worst is not None and worst.edit:
        return f"Changing its weights without any training {said.broken}{end}"
    if steps is None:
        return f"{tuning[0].upper()}{tuning[1:]} {said.broken}{end}"
    return f"As few as {f.counted(steps, 'step')} of {tuning} {said.broken}{end}"


def _fewest(r: Resistance) -> int | None:
    """The fewest steps in which any attack breached: the verdict's worst attack is the cheapest in
    compute, and another may need fewer steps.
    """
    found = [
        t.first_breached
        for a in r.attacks
        if a.role == "attack" and not a.edit
        for t in a.trajectories
        if t.first_breached is not None
    ]
    return min(found, default=r.worst_breach_step)


def _holds(candidate: CandidateVerdict, said: _Words, tuning: str, grade: Grade) -> str:
    r = candidate.resistance
    other = "other or longer attacks" if r.adaptive else "longer attacks, or attacks made for it,"
    text = f"None of the attacks tried{_within(r, tuning)} {said.broken}"
    if r.by_collapse:
        text += (
            ", but some of the attacked models stopped working altogether, which is not the same "
            "as resisting"
        )
    text += f"; {other} still may"
    few = " (a small demonstration with few repetitions)" if grade == "demonstration" else ""
    return f"{text}{few}."


def _open(candidate: CandidateVerdict, said: _Words, tuning: str) -> str:
    r = candidate.resistance
    if not any(a.trajectories for a in r.attacks):
        return "No attack on it has been run yet, so nothing is known."
    if r.status == "holds":
        return (
            f"{_survived(r, said, start=True)}, but whether the defense makes the model worse at "
            "harmless tasks is not decided."
        )
    if r.status == "not tested":
        return f"Whether {tuning} {said.question} was not tested."
    return f"The evidence does not decide whether {tuning}{_budget(r)} {said.question}."


def _survived(r: Resistance, said: _Words, *, start: bool = False) -> str:
    """None of the attacks broke it, with what limits that."""
    collapsed = " (some attacked models stopped working instead)" if r.by_collapse else ""
    return f"{'None' if start else 'none'} of the attacks tried {said.broken}{collapsed}"


def _budget(r: Resistance) -> str:
    """` for up to 64 steps`, where all attacks have that; else nothing."""
    attacks = [a for a in r.attacks if a.role == "attack"]
    own = any(a.edit or a.budget_flops is not None or a.budget != r.budget for a in attacks)
    return "" if own else f" for up to {f.counted(r.budget, 'step')}"


def _within(r: Resistance, tuning: str) -> str:
    """` (fine-tuning for up to 64 steps)`."""
    budget = _budget(r)
    return f" ({tuning}{budget})" if budget else ""
