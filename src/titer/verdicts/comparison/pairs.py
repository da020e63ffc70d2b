"""Statements about pairs of candidates: which withstands an attack longer, whose worst attack is
dearer, who is better on a benchmark.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from titer.records.record import CellRecord, MeasureFacts
from titer.verdicts.evidence.index import Evidence
from titer.verdicts.output.comparison import AttackPair, BenchmarkPair, Side, WorstPair
from titer.verdicts.output.verdict import CandidateVerdict, Interval
from titer.verdicts.phrases import listed
from titer.verdicts.resistance.factor import Span, ratio_of_minima, spans_of
from titer.verdicts.statistics.paired import paired_limits
from titer.verdicts.statistics.seeds import holm

MOST_ARRANGEMENTS = 50_000
_DRAWS, _SEED = 20_000, 20_240_216


@dataclass(frozen=True)
class Compared:
    """One candidate of one run. label: its name, with that of the run where names repeat."""

    label: str
    name: str
    evidence: Evidence
    verdict: CandidateVerdict
    side: Side


Pairs = Sequence[tuple[Compared, Compared]]


# -- budgets --------------------------------------------------------------------------------------


def attack_pairs(pairs: Pairs, alpha: float) -> tuple[AttackPair, ...]:
    """Every attack that two candidates share, Holm over all of them."""
    tests = []
    for a, b in pairs:
        for label in _common(a, b):
            found = _in_steps(a, b, label)
            if found is not None:
                one, two = found
                later, p = permutation_test(one, two)
                edit = all(c.evidence.design_of(label).edits is not None for c in (a, b))
                tests.append((a.label, b.label, label, edit, (len(one), len(two)), later, p))
    out = []
    for (first, second, label, edit, n, later, p), adjusted in zip(
        tests, holm([t[-1] for t in tests]), strict=True
    ):
        longer = None if adjusted > alpha else first if later > 0 else second
        out.append(
            AttackPair(
                first=first,
                second=second,
                attack=label,
                n=n,
                later=later,
                p_value=p,
                adjusted=adjusted,
                longer=longer,
                statement=_said(first, second, label, longer, adjusted, edit)
                + ("" if longer else _hopeless(n, len(tests), alpha)),
            )
        )
    return tuple(out)


def _said(
    first: str, second: str, attack: str, longer: str | None, adjusted: float, edit: bool
) -> str:
    p = f"(adjusted p = {adjusted:.2g})"
    if longer is None:
        return f"{first} and {second} are not distinguished under {attack} {p}"
    other = second if longer == first else first
    how = "in more seeds" if edit else "for more steps"
    return f"{longer} withstands {attack} {how} than {other} {p}"


def _hopeless(n: tuple[int, int], tests: int, alpha: float) -> str:
    """Said where even the clearest difference would not be seen."""
    least = 2 / math.comb(sum(n), n[0])
    if least * tests <= alpha:
        return ""
    return (
        f"; {n[0]} and {n[1]} seeds can never distinguish {tests} comparisons made together, more "
        "are needed"
    )


def _common(a: Compared, b: Compared) -> list[str]:
    """Attacks of both batteries that count as attacks, in declared order."""
    theirs = {u.label for u in b.evidence.battery}
    labels = [u.label for u in a.evidence.battery]
    return [
        x for x in labels if x in theirs and a.evidence.role(x) == b.evidence.role(x) == "attack"
    ]


def _spans(c: Compared, attack: str, *, steps: bool = False) -> list[Span]:
    """(l, u] per seed, in FLOPs or in steps; empty unless every preregistered seed is complete."""
    return spans_of(c.evidence, c.name, attack, c.evidence.study.resistance.phi, steps=steps) or []


def _in_steps(a: Compared, b: Compared, attack: str) -> tuple[list[Span], list[Span]] | None:
    """(l, u] in steps of both, on one probe grid; None if they cannot be compared.

    In FLOPs two models of different size are probed at different places, and their runs are not
    exchangeable under the null. Where FLOPs end the runs, both are cut at the last planned probe
    that every run without a breach came to.
    """
    designs = [c.evidence.design_of(attack) for c in (a, b)]
    one, two = _spans(a, attack, steps=True), _spans(b, attack, steps=True)
    if not one or not two or designs[0].grid != designs[1].grid:
        return None
    if all(d.flops is None for d in designs):
        return one, two
    ends = [low for low, high in (*one, *two) if math.isinf(high)]
    last = max((g for g in designs[0].grid if g <= min(ends, default=math.inf)), default=0)
    return _cut(one, last), _cut(two, last)


def _cut(spans: Sequence[Span], last: int) -> list[Span]:
    return [(min(low, last), high if high <= last else math.inf) for low, high in spans]


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


def worst(a: Compared, b: Compared, alpha: float) -> WorstPair:
    """The ratio of two candidates' budgets under their worst attacks. alpha: of each end."""
    labels = _common(a, b)
    top, bottom = ([_spans(c, x) for x in labels] for c in (a, b))
    level = 1 - 2 * alpha

    def pair(estimate: float | None, low: float, high: float | None, said: str) -> WorstPair:
        return WorstPair(
            first=a.label,
            second=b.label,
            estimate=estimate,
            interval=Interval(low=low, high=high, level=level),
            statement=said,
        )

    if not labels or not all([*top, *bottom]):
        return pair(
            None, 0.0, None, f"{a.label} and {b.label} share no attack whose seeds are all complete"
        )
    q = a.evidence.study.resistance.quantile
    estimate, low, high, text = ratio_of_minima(top, bottom, q, alpha)
    low = 0.0 if low is None else low
    if low > 1:
        said = (
            f"under its worst attack {a.label} withstands more than {b.label}: at least {low:.3g} "
            "times the FLOPs"
        )
    elif high is not None and high < 1:
        said = (
            f"under its worst attack {a.label} withstands less than {b.label}: at most {high:.3g} "
            "times the FLOPs"
        )
    else:
        said = f"under their worst attacks {a.label} and {b.label} are not distinguished"
    said += f" (ratio of {q:g}-quantiles: {text})"
    if low == 0 and high is None:
        said += f"; {len(top[0])} and {len(bottom[0])} seeds give no finite interval"
    return pair(estimate, low, high, said)


# -- benchmarks -----------------------------------------------------------------------------------


def benchmark_pairs(pairs: Pairs, alpha: float) -> tuple[BenchmarkPair, ...]:
    """Every benchmark that two candidates share, Bonferroni over all of them."""
    read = []
    for a, b in pairs:
        for name in [x.name for x in a.verdict.stability.benchmarks]:
            if any(x.name == name for x in b.verdict.stability.benchmarks):
                read.append((a, b, name))
    return tuple(_benchmark(a, b, name, alpha / (2 * len(read))) for a, b, name in read)


@dataclass(frozen=True)
class _Read:
    """One candidate's outcomes on a benchmark, item by item; means over several checkpoints."""

    outcomes: np.ndarray
    facts: MeasureFacts
    items: str | None
    checkpoints: int


def _outcomes(c: Compared, name: str) -> _Read | str:
    """What was read, or why nothing can be said."""
    looks = {e.role.defense_seed: e.record for e in c.evidence.entries("stability", c.name)}
    records: list[CellRecord] = []
    for seed in c.evidence.checkpoints(c.name):
        record = looks.get(seed)
        if record is None or not record.probes or name not in record.measures:
            return "one was not read"
        records.append(record)
    readings = [r.probes[0].reading(name) for r in records]
    found = [r for r in readings if r is not None]
    if len(found) < len(readings):
        return "one was not read"
    if any(r.value is None for r in found):
        return "some outcomes are not finite"
    alike = {(len(r.outcomes), x.items.get(name)) for r, x in zip(found, records, strict=True)}
    if len(alike) > 1 or not found[0].outcomes:
        return "they were not read on the same items by the same measure"
    mean = np.mean([np.asarray(r.outcomes, dtype=float) for r in found], axis=0)
    return _Read(mean, records[0].measures[name], records[0].items.get(name), len(records))


def _benchmark(a: Compared, b: Compared, name: str, alpha: float) -> BenchmarkPair:
    def pair(
        said: str,
        difference: float | None = None,
        interval: Interval | None = None,
        better: str | None = None,
    ) -> BenchmarkPair:
        return BenchmarkPair(
            first=a.label,
            second=b.label,
            benchmark=name,
            difference=difference,
            interval=interval,
            better=better,
            statement=f"{name}: {said}",
        )

    one, two = _outcomes(a, name), _outcomes(b, name)
    why = one if isinstance(one, str) else two if isinstance(two, str) else ""
    if isinstance(one, str) or isinstance(two, str):
        return pair(f"{a.label} and {b.label} cannot be compared, {why}")
    if (one.facts, one.items, one.outcomes.size) != (two.facts, two.items, two.outcomes.size):
        why = "they were not read on the same items by the same measure"
        return pair(f"{a.label} and {b.label} cannot be compared, {why}")
    sign = 1.0 if one.facts.higher == "capable" else -1.0
    gap = sign * (one.outcomes - two.outcomes)
    difference = float(gap.mean())
    low = high = difference
    several = [f"{n} checkpoints" for n in {one.checkpoints, two.checkpoints} if n > 1]
    if one.facts.sampling != "fixed":
        share = one.facts.scale == "proportion" and not several
        spread = float(np.ptp(two.outcomes))
        low, high = paired_limits(gap, alpha, proportion=share, spread=spread)
    better = a.label if low > 0 else b.label if high < 0 else None
    said = f"{better} is better" if better else f"{a.label} and {b.label} are not distinguished"
    over = f", mean over {listed(several)}" if several else ""
    interval = Interval(low=low, high=high, level=1 - 2 * alpha)
    return pair(f"{said} (difference {difference:+.3g}{over})", difference, interval, better)
