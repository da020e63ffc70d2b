"""Reasons not to believe a study as a whole, each found by a small function."""

from __future__ import annotations

from collections.abc import Iterator

from titer.study.candidate import CONTROL
from titer.verdicts.evidence.index import Evidence
from titer.verdicts.flags.kinds import flag, ids
from titer.verdicts.output.verdict import Flag, Resistance
from titer.verdicts.phrases import listed


def study_flags(
    evidence: Evidence, control: Resistance, start: tuple[str, str]
) -> tuple[Flag, ...]:
    """Flags of the whole study: the control, the data, the design, the records."""
    return tuple(
        found
        for find in (
            _control_start,
            _measure,
            _overlap,
            _unknown_data,
            _too_few_seeds,
            _incomplete,
            _corrupted,
        )
        for found in find(evidence, start)
    ) + tuple(_control_not_broken(control))


Start = tuple[str, str]


def _control_start(evidence: Evidence, start: Start) -> Iterator[Flag]:
    if start[0] == "harmful":
        yield flag(
            "control_harmful_at_start",
            "",
            start[1].partition(";")[0],
            digests=ids(evidence.trajectories(CONTROL, evidence.battery[0].label)),
        )


def _measure(evidence: Evidence, start: Start) -> Iterator[Flag]:
    if evidence.unfit_measure and not evidence.view.plan.disjointness.get("exact_overlap"):
        yield flag("measure_unfit", "", evidence.unfit_measure)


def _overlap(evidence: Evidence, start: Start) -> Iterator[Flag]:
    shared = evidence.view.plan.disjointness.get("exact_overlap")
    if shared:
        yield flag("exact_overlap", "", f"{shared} examples are in two parts of the data")
    near = evidence.view.plan.disjointness.get("near_duplicates") or {}
    for pair, count in near.items():
        if count:
            a, _, b = pair.partition("~")
            yield flag(
                "near_duplicates",
                pair,
                f"{count} examples of {b or pair} nearly repeat those of {a}",
            )


def _unknown_data(evidence: Evidence, start: Start) -> Iterator[Flag]:
    for name in evidence.view.plan.disjointness.get("unknown_defender_data") or ():
        yield flag(
            "unknown_defender_data",
            name,
            f"the data that made {name} are unknown, so the evaluation prompts may be among them",
        )


def _too_few_seeds(evidence: Evidence, start: Start) -> Iterator[Flag]:
    design = evidence.design
    if len(design.seeds) < design.n_required:
        yield flag(
            "too_few_seeds",
            "",
            f"{len(design.seeds)} seeds can never show `holds` at δ = {design.delta:g}, "
            f"α = {design.alpha:g}",
            remedy=f"plan {design.n_required} seeds, or state a larger δ before the next study",
        )


def _incomplete(evidence: Evidence, start: Start) -> Iterator[Flag]:
    missing, whole = evidence.view.missing, evidence.view.plan.complete
    if missing or not whole:
        what = f"{missing} of {len(evidence.view.plan.cells)} planned cells have no record"
        waits = ", and cells that wait for a search are not planned yet"
        yield flag("incomplete_run", "", what if whole else what + waits)


def _corrupted(evidence: Evidence, start: Start) -> Iterator[Flag]:
    problems = evidence.view.problems
    if problems:
        yield flag(
            "corrupted_records",
            "",
            f"{len(problems)} records were set aside: {'; '.join(problems[:3])}",
        )
    for problem in evidence.view.plan_problems:
        yield flag("changed_plan", "", problem)


def _control_not_broken(control: Resistance) -> Iterator[Flag]:
    for a in control.attacks:
        if a.role == "attack" and a.n and any(t.first_breached is None for t in a.trajectories):
            whole = [t.seed for t in a.trajectories if t.first_breached is None]
            by = "" if a.edit else f" by {a.budget_text}"
            yield flag(
                "control_not_broken",
                a.attack,
                f"{a.attack} does not break the undefended model{by} in seeds {listed(whole)}",
                digests=(d for t in a.trajectories for d in t.digests),
            )
