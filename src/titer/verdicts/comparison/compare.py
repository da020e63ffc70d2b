"""Candidates of one or several runs side by side, with statements about pairs that are corrected
for how many are made.

Runs may be compared only if they ask the same question: same threat model, φ, battery, construct,
harm prompts (`comparable`). The tests are in `pairs`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from titer.errors import UsageError
from titer.records.view import RunView
from titer.study.candidate import CONTROL
from titer.verdicts.comparison.comparable import Named, differences, remarks
from titer.verdicts.comparison.pairs import Compared, attack_pairs, benchmark_pairs, worst
from titer.verdicts.evidence.index import Evidence
from titer.verdicts.judge import judge
from titer.verdicts.output.comparison import Comparison, Side
from titer.verdicts.phrases import listed

__all__ = ["Comparison", "Side", "compare"]


def compare(runs: Sequence[tuple[str, RunView]], *, force: bool = False) -> Comparison:
    """Compare every candidate of the runs with every other. runs: (name, view).

    Raises UsageError if fewer than two candidates are there, or if the runs ask different questions
    and `force` is not given.
    """
    evidences = [(name, Evidence(view)) for name, view in runs]
    differ = differences(evidences)
    if differ and not force:
        raise UsageError(
            "these runs ask different questions: " + "; ".join(differ),
            field="RUN",
            value=", ".join(n for n, _ in runs),
            expected="the same threat model, φ, battery, construct and harm prompts",
            remedy="run one study over all candidates, or give --force: the comparison then says "
            "what differs",
        )
    found = _candidates(evidences)
    if len(found) < 2:
        raise UsageError(
            "there is nothing to compare",
            field="RUN",
            value=", ".join(n for n, _ in runs),
            expected="at least two candidates in all",
        )
    alpha = min(e.design.alpha for _, e in evidences)
    pairs = list(itertools.combinations(found, 2))
    return Comparison(
        alpha=alpha,
        sides=tuple(c.side for c in found),
        attacks=attack_pairs(pairs, alpha),
        worst=tuple(worst(a, b, alpha / (2 * len(pairs))) for a, b in pairs),
        benchmarks=benchmark_pairs(pairs, alpha),
        differences=differ,
        forced=bool(differ),
        remarks=remarks(evidences),
    )


def _candidates(evidences: Named) -> list[Compared]:
    names = [c.name for _, e in evidences for c in e.study.candidates if c.name != CONTROL]
    out: list[Compared] = []
    for run, evidence in evidences:
        verdict = judge(evidence.view)
        for c in verdict.candidates:
            label = c.name if names.count(c.name) == 1 else f"{run}:{c.name}"
            r = c.resistance
            side = Side(
                name=label,
                run=run,
                study=verdict.study,
                overall=c.overall,
                resistance=r.status,
                titer_lower=r.titer_lower,
                titer_lower_flops=r.titer_lower_flops,
                worst_attack=r.worst_attack,
                stability=c.stability.status,
                generalization=c.generalization.status,
                trainability=c.trainability.status,
            )
            out.append(Compared(label, c.name, evidence, c, side))
    labels = [c.label for c in out]
    if repeated := [k for k in dict.fromkeys(labels) if labels.count(k) > 1]:
        raise UsageError(
            "two runs have the same name",
            field="RUN",
            value=listed(repeated[:1]),
            expected="each run directory once",
        )
    return out
