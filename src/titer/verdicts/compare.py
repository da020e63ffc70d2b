"""Candidates of one or several runs side by side, with statements about pairs that are corrected
for how many are made.

Runs may be compared only if they ask the same question: same threat model, φ, battery, construct,
harm prompts. What differs is named.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from titer.errors import UsageError
from titer.records.view import RunView
from titer.study.base import Strict, digest
from titer.study.spec import CONTROL
from titer.verdicts.evidence import Evidence
from titer.verdicts.factor import Span, ratio_of_minima, spans_of
from titer.verdicts.judge import judge
from titer.verdicts.model import CandidateVerdict, Interval, Status
from titer.verdicts.paired import paired_limits
from titer.verdicts.seeds import holm
from titer.verdicts.words import listed

MOST_ARRANGEMENTS = 50_000
_DRAWS, _SEED = 20_000, 20_240_216


class Side(Strict):
    """One candidate: which run it is of, and what that run's verdict says."""

    name: str
    run: str
    study: str
    overall: Status
    resistance: Status
    titer_lower: int | None
    titer_lower_flops: float | None
    worst_attack: str | None
    stability: Status
    generalization: Status
    trainability: Status


class AttackPair(Strict):
    """Which of two candidates withstands one attack longer. p_value: exact permutation test of 'no
    difference', two-sided; in steps; adjusted: Holm over all such tests of the comparison.
    longer: the one said to, None if not distinguished.
    """

    first: str
    second: str
    attack: str
    n: tuple[int, int]
    later: int
    """Pairs of seeds in which the first surely breaches later, minus those in which the second
    does.
    """
    p_value: float
    adjusted: float
    longer: str | None
    statement: str


class WorstPair(Strict):
    """Ratio of budgets (FLOPs, q-quantile, min over the attacks common to both) of first over
    second; simultaneous over all pairs and both directions.
    """

    first: str
    second: str
    estimate: float | None
    interval: Interval
    statement: str


class BenchmarkPair(Strict):
    """Difference first − second on a benchmark, oriented so that negative is worse for the first;
    simultaneous over all such pairs.
    """

    first: str
    second: str
    benchmark: str
    difference: float | None
    interval: Interval | None
    better: str | None
    statement: str


class Comparison(Strict):
    """differences: what the runs do not share, as sentences; if there are any, the comparison was
    forced.
    """

    format: Literal[1] = 1
    alpha: float
    sides: tuple[Side, ...]
    attacks: tuple[AttackPair, ...]
    worst: tuple[WorstPair, ...]
    benchmarks: tuple[BenchmarkPair, ...]
    differences: tuple[str, ...] = ()
    forced: bool = False
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Candidate:
    label: str
    name: str
    evidence: Evidence
    verdict: CandidateVerdict
    side: Side


def compare(runs: Sequence[tuple[str, RunView]], *, force: bool = False) -> Comparison:
    """Compare every candidate of the runs with every other. runs: (name, view).

    Raises UsageError if fewer than two candidates are there, or if the runs ask different questions
    and `force` is not given.
    """
    evidences = [(name, Evidence(view)) for name, view in runs]
    differences = _differences(evidences)
    if differences and not force:
        raise UsageError(
            "these runs ask different questions: " + "; ".join(differences),
            field="RUN",
            value=", ".join(n for n, _ in runs),
            expected="the same threat model, φ, battery, construct and harm prompts",
            remedy="run one study over all candidates, or give --force: the comparison then says what differs",
        )
    found = _candidates(evidences)
    if len(found) < 2:
        raise UsageError(
            "there is nothing to compare",
            field="RUN",
            value=", ".join(n for n, _ in runs),
            expected="at least two candidates in all",
            remedy="name more runs",
        )
    alpha = min(e.design.alpha for _, e in evidences)
    pairs = list(itertools.combinations(found, 2))
    return Comparison(
        alpha=alpha,
        sides=tuple(c.side for c in found),
        attacks=_attack_pairs(pairs, alpha),
        worst=tuple(_worst(a, b, alpha / (2 * len(pairs))) for a, b in pairs),
        benchmarks=_benchmark_pairs(pairs, alpha),
        differences=differences,
        forced=bool(differences),
        remarks=_remarks(evidences),
    )


# -- may they be compared? --------------------------------------------------------------------------------------------


def question(evidence: Evidence) -> dict[str, Any]:
    """What a run asks, field by field; two runs may be compared if all of it is equal."""
    study, spec = evidence.study, evidence.study.resistance
    cells = [
        p.cell for p in evidence.view.plan.cells if any(r.purpose == "attack" for r in p.roles)
    ]
    harm = {
        (m.label, m.name, m.version, digest(m.settings), m.text.content, m.text.examples)
        for c in cells
        for m in c.measures
        if m.label in ("harm", "confirm")
    }
    versions = {c.method.name: c.method.version for c in cells if c.method}
    content = sorted({c.harmful.content for c in cells if c.harmful})
    battery = [
        [a.name, a.attack, versions.get(a.attack), a.settings, a.search] for a in evidence.battery
    ]
    return {
        "threat model": study.threat_model,
        "φ": spec.phi,
        "budget and probes": list(spec.grid()),
        "battery": digest([battery, content]),
        "construct": evidence.construct,
        "harm prompts and measure": digest(sorted(map(list, harm), key=str)),
    }


def _differences(evidences: Sequence[tuple[str, Evidence]]) -> tuple[str, ...]:
    asked = [(name, question(e)) for name, e in evidences]
    out = []
    for field in asked[0][1]:
        values: dict[str, list[str]] = {}
        for name, q in asked:
            values.setdefault(str(q[field] or "nothing read yet"), []).append(name)
        if len(values) > 1:
            out.append(
                f"{field} differs ({'; '.join(f'{v}: {listed(names)}' for v, names in values.items())})"
            )
    return tuple(out)


def _remarks(evidences: Sequence[tuple[str, Evidence]]) -> tuple[str, ...]:
    """What may be compared but should be known."""
    out = []
    if (
        len(
            {
                str(e.study.model)
                + digest(e.study.align.model_dump(mode="json") if e.study.align else None)
                for _, e in evidences
            }
        )
        > 1
    ):
        out.append(
            "the undefended models differ: budgets compare the defended models, not what the defenses added"
        )
    if len({(e.design.delta, e.design.alpha, len(e.design.seeds)) for _, e in evidences}) > 1:
        out.append(
            "δ, α or the number of seeds differ, so `holds` does not mean the same in every row"
        )
    if missing := [n for n, e in evidences if e.view.missing or not e.view.plan.complete]:
        out.append(f"unfinished: {listed(missing)}")
    return tuple(out)


def _candidates(evidences: Sequence[tuple[str, Evidence]]) -> list[_Candidate]:
    names = [c.name for _, e in evidences for c in e.study.candidates if c.name != CONTROL]
    out: list[_Candidate] = []
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
            out.append(_Candidate(label, c.name, evidence, c, side))
    if repeated := [k for k in {c.label for c in out} if sum(c.label == k for c in out) > 1]:
        raise UsageError(
            "two runs have the same name",
            field="RUN",
            value=repeated[0],
            expected="each run once",
            remedy="name each run directory once",
        )
    return out


# -- budgets ----------------------------------------------------------------------------------------------------------


def _attack_pairs(
    pairs: Sequence[tuple[_Candidate, _Candidate]], alpha: float
) -> tuple[AttackPair, ...]:
    tests = []
    for a, b in pairs:
        for label in _common(a, b):
            # In steps, on one probe grid: in FLOPs two models of different size are probed at
            # different places, and their runs are not exchangeable under the null.
            one, two = _spans(a, label, steps=True), _spans(b, label, steps=True)
            if one and two and a.evidence.design.grid == b.evidence.design.grid:
                later, p = permutation_test(one, two)
                tests.append((a.label, b.label, label, (len(one), len(two)), later, p))
    out = []
    for (a_name, b_name, label, n, later, p), adjusted in zip(
        tests, holm([t[-1] for t in tests]), strict=True
    ):
        longer = None if adjusted > alpha else a_name if later > 0 else b_name
        least = 2 / math.comb(sum(n), n[0])
        if longer:
            text = f"{longer} withstands {label} for more steps than {b_name if longer == a_name else a_name} (adjusted p = {adjusted:.2g})"
        else:
            text = f"{a_name} and {b_name} are not distinguished under {label} (adjusted p = {adjusted:.2g})"
            if least * len(tests) > alpha:
                text += f"; {n[0]} and {n[1]} seeds can never distinguish {len(tests)} comparisons made together, more are needed"
        out.append(
            AttackPair(
                first=a_name,
                second=b_name,
                attack=label,
                n=n,
                later=later,
                p_value=p,
                adjusted=adjusted,
                longer=longer,
                statement=text,
            )
        )
    return tuple(out)


def _common(a: _Candidate, b: _Candidate) -> list[str]:
    """Attacks of both batteries that count as attacks, in declared order."""
    theirs = {u.label for u in b.evidence.battery}
    labels = [u.label for u in a.evidence.battery]
    return [
        x for x in labels if x in theirs and a.evidence.role(x) == b.evidence.role(x) == "attack"
    ]


def _spans(c: _Candidate, attack: str, *, steps: bool = False) -> list[Span]:
    """(l, u] per seed, in FLOPs or in steps; empty unless every preregistered seed is complete."""
    return spans_of(c.evidence, c.name, attack, c.evidence.study.resistance.phi, steps=steps) or []


def permutation_test(first: Sequence[Span], second: Sequence[Span]) -> tuple[int, float]:
    """(statistic, two-sided p) of 'τ has the same law in both', for interval-censored τ.

    Statistic: pairs in which the first's τ surely exceeds the second's (its l is at or above the
    other's u) minus the reverse: Gehan's (1965) scores. The runs are exchangeable under the null
    whatever the censoring, if both were probed alike, so the permutation distribution is exact:
    over all arrangements up to 50 000, else over 20 000 random ones and the observed (Phipson and
    Smyth 2010).
    """
    spans = [*first, *second]
    low, high = np.array([s[0] for s in spans]), np.array([s[1] for s in spans])
    later = (low[:, None] >= high[None, :]).astype(int)
    score = later - later.T
    n, m = len(first), len(spans)
    total = score.sum(1)  # within the first group the scores cancel, so its sum is the statistic
    observed = int(total[:n].sum())
    if math.comb(m, n) <= MOST_ARRANGEMENTS:
        picks = np.array(list(itertools.combinations(range(m), n)))
        sums = total[picks].sum(1)
        return observed, float(np.mean(np.abs(sums) >= abs(observed)))
    rng = np.random.default_rng(_SEED)
    sums = total[np.argsort(rng.random((_DRAWS, m)), axis=1)[:, :n]].sum(1)
    return observed, float((1 + np.sum(np.abs(sums) >= abs(observed))) / (1 + _DRAWS))


def _worst(a: _Candidate, b: _Candidate, alpha: float) -> WorstPair:
    labels = _common(a, b)
    top, bottom = ([_spans(c, x) for x in labels] for c in (a, b))
    level = 1 - 2 * alpha
    if not labels or not all([*top, *bottom]):
        return WorstPair(
            first=a.label,
            second=b.label,
            estimate=None,
            interval=Interval(low=0.0, high=None, level=level),
            statement=f"{a.label} and {b.label} share no attack whose seeds are all complete",
        )
    q = a.evidence.study.resistance.quantile
    estimate, low, high, text = ratio_of_minima(top, bottom, q, alpha)
    if low > 1:
        said = f"under its worst attack {a.label} withstands more than {b.label}: at least {low:.3g} times the FLOPs"
    elif high is not None and high < 1:
        said = f"under its worst attack {a.label} withstands less than {b.label}: at most {high:.3g} times the FLOPs"
    else:
        said = f"under their worst attacks {a.label} and {b.label} are not distinguished"
    said += f" (ratio of {q:g}-quantiles: {text})"
    if low == 0 and high is None:
        said += f"; {len(top[0])} and {len(bottom[0])} seeds give no finite interval"
    return WorstPair(
        first=a.label,
        second=b.label,
        estimate=estimate,
        interval=Interval(low=low, high=high, level=level),
        statement=said,
    )


# -- benchmarks -------------------------------------------------------------------------------------------------------


def _benchmark_pairs(
    pairs: Sequence[tuple[_Candidate, _Candidate]], alpha: float
) -> tuple[BenchmarkPair, ...]:
    read = []
    for a, b in pairs:
        for name in [x.name for x in a.verdict.stability.benchmarks]:
            if any(x.name == name for x in b.verdict.stability.benchmarks):
                read.append((a, b, name))
    return tuple(_benchmark(a, b, name, alpha / (2 * len(read))) for a, b, name in read)


def _benchmark(a: _Candidate, b: _Candidate, name: str, alpha: float) -> BenchmarkPair:
    def nothing(why: str) -> BenchmarkPair:
        return BenchmarkPair(
            first=a.label,
            second=b.label,
            benchmark=name,
            difference=None,
            interval=None,
            better=None,
            statement=f"{name}: {a.label} and {b.label} cannot be compared, {why}",
        )

    records = [
        next((e.record for e in c.evidence.entries("stability", c.name) if e.record), None)
        for c in (a, b)
    ]
    if any(r is None or not r.probes for r in records):
        return nothing("one was not read")
    one, two = (r.probes[0].reading(name) for r in records if r)
    facts = [r.measures.get(name) for r in records if r]
    items = [r.items.get(name) for r in records if r]
    if one is None or two is None or facts[0] is None:
        return nothing("one was not read")
    if (
        facts[0] != facts[1]
        or items[0] != items[1]
        or len(one.outcomes) != len(two.outcomes)
        or not one.outcomes
    ):
        return nothing("they were not read on the same items by the same measure")
    if one.value is None or two.value is None:
        return nothing("some outcomes are not finite")
    sign = 1.0 if facts[0].higher == "capable" else -1.0
    ours, theirs = (np.asarray(r.outcomes, dtype=float) for r in (one, two))
    gap = sign * (ours - theirs)
    difference = float(gap.mean())
    low = high = difference
    if facts[0].sampling != "fixed":
        low, high = paired_limits(
            gap, alpha, proportion=facts[0].scale == "proportion", spread=float(np.ptp(theirs))
        )
    better = a.label if low > 0 else b.label if high < 0 else None
    said = (
        f"{name}: {better} is better"
        if better
        else f"{name}: {a.label} and {b.label} are not distinguished"
    )
    return BenchmarkPair(
        first=a.label,
        second=b.label,
        benchmark=name,
        difference=difference,
        better=better,
        interval=Interval(low=low, high=high, level=1 - 2 * alpha),
        statement=f"{said} (difference {difference:+.3g})",
    )
