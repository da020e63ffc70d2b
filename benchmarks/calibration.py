"""Calibration of the instrument: simulated attackers with known laws, judged by the rules of
docs/statistics.md.

    python benchmarks/calibration.py [--studies 10000] [--write docs/statistics.md] [--json FILE]

No model is needed. Every scenario draws whole studies, judges them, and compares a rate with what
is promised, to within three Monte-Carlo errors: false `holds` at most α, coverage at least nominal,
power as `titer power` says. The last table shows what common shortcuts would have claimed on the
same data. `--write` puts the tables between the markers of a Markdown file. Exit status 1 if a
promise is broken.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy.stats import norm

import simulate as sim
from titer.records.record import MeasureFacts
from titer.verdicts.comparison.pairs import permutation_test
from titer.verdicts.design.power import Truth, run_chances
from titer.verdicts.resistance.factor import ratio_of_minima
from titer.verdicts.statistics.crossed import crossed_limits, time_ratio
from titer.verdicts.statistics.paired import paired_limits
from titer.verdicts.statistics.seeds import best_of, holm, no_breach_p, required_seeds

ALPHA, PHI, PROMPTS = 0.05, 0.5, 200
GRID = (0, 1, 2, 4, 8, 16, 32, 64)
DESIGNS = ((5, 0.5), (14, 0.2), (30, 0.1))
"""(seeds, δ): each n is enough for its δ at α = 0.05."""
BEGIN, END = "<!-- calibration: begin -->", "<!-- calibration: end -->"


@dataclass(frozen=True)
class Row:
    """One promise kept or broken. rate: observed. kind: `at most` or `at least` the promise,
    `equals` it, or `shown` (no promise).
    """

    scenario: str
    seeds: int
    studies: int
    rate: float
    error: float
    kind: str
    promise: float

    @property
    def kept(self) -> bool:
        slack = 3 * self.error + 1e-12
        return {
            "at most": self.rate <= self.promise + slack,
            "at least": self.rate >= self.promise - slack,
            "equals": abs(self.rate - self.promise) <= slack,
        }.get(self.kind, True)


def row(
    scenario: str, n: int, hits: np.ndarray, kind: str = "shown", promise: float = math.nan
) -> Row:
    """A rate with its Monte-Carlo error (from the promise where that is a rate, so that 0 of 10,000
    has one too).
    """
    rate = float(np.mean(hits))
    base = promise if 0 < promise < 1 else rate
    return Row(
        scenario, n, len(hits), rate, math.sqrt(base * (1 - base) / len(hits)), kind, promise
    )


Reader = Callable[[np.random.Generator, np.ndarray, int], np.ndarray]
READERS: dict[str, Reader] = {
    "own prompts": sim.read_independent,
    "shared prompts": sim.read_shared,
}


def read(rng, plan, harm, reader: Reader) -> sim.Outcomes:
    return sim.judge_many(
        plan, PHI, reader(rng, harm, PROMPTS), reader(rng, harm, PROMPTS), PROMPTS
    )


# -- promises -------------------------------------------------------------------------------------


def false_holds(rng, studies: int) -> Iterator[Row]:
    """P(τ ≤ T) is exactly δ, so that `holds` is wrong whenever it is said; broken runs sit exactly
    on φ, where they look best.
    """
    for n, delta in DESIGNS:
        plan = sim.design(n, delta, GRID, ALPHA)
        breaks = rng.random((studies, n)) < delta
        exact = sim.true_harm(np.where(breaks, 8.0, math.inf), GRID, 0.05, 0.9)
        yield row(
            "false holds: readings without error",
            n,
            sim.judge_exact(plan, PHI, exact).status_S == sim.HOLDS,
            "at most",
            ALPHA,
        )
        for at, when in ((1.0, "from step 1 on"), (64.0, "at T only")):
            harm = sim.true_harm(np.where(breaks, at, math.inf), GRID, 0.05, PHI)
            for name, reader in READERS.items():
                status = read(rng, plan, harm, reader).status_S
                yield row(
                    f"false holds: f = φ {when}, {name}", n, status == sim.HOLDS, "at most", ALPHA
                )


def false_fails(rng, studies: int) -> Iterator[Row]:
    """f stays just below φ in every run: a breach would be an error of both readings."""
    for n, delta in DESIGNS:
        plan = sim.design(n, delta, GRID, ALPHA)
        harm = np.full((studies, n, len(GRID)), PHI - 1e-9)
        for name, reader in READERS.items():
            yield row(
                f"false fails: f just below φ, {name}",
                n,
                read(rng, plan, harm, reader).status_S == sim.FAILS,
                "at most",
                ALPHA,
            )


LAWS: dict[str, tuple[Callable, Callable]] = {
    "log-normal": (
        lambda rng, size: np.exp(rng.normal(math.log(12), 1.2, size)),
        lambda q: 12 * math.exp(1.2 * norm.ppf(q)),
    ),
    "Weibull": (
        lambda rng, size: 20 * rng.weibull(0.7, size),
        lambda q: 20 * (-math.log1p(-q)) ** (1 / 0.7),
    ),
}


def coverage(rng, studies: int) -> Iterator[Row]:
    """Limits and intervals against the known quantiles of τ; readings have noise (f = 0.1 before,
    0.8 after).
    """
    for (n, delta), (law, (draw, quantile)) in ((d, x) for d in DESIGNS for x in LAWS.items()):
        plan = sim.design(n, delta, GRID, ALPHA)
        found = read(
            rng, plan, sim.true_harm(draw(rng, (studies, n)), GRID, 0.1, 0.8), sim.read_shared
        )
        yield row(
            f"titer's lower limit covers T_δ, {law}",
            n,
            ~(found.limit_S > quantile(delta)),
            "at least",
            1 - ALPHA,
        )
        low, high = sim.order_limits_many(found.last_SN, found.first_SN, 0.5, ALPHA, ALPHA)
        inside = (low <= quantile(0.5)) & (quantile(0.5) <= high)
        yield row(f"interval covers the median of τ, {law}", n, inside, "at least", 1 - 2 * ALPHA)


def factor_coverage(rng, studies: int) -> Iterator[Row]:
    """min over two attacks of the median of τ, M* over M; the truth is 3. Attack b costs twice the
    FLOPs a step.
    """
    price, sigma = (1.0, 2.0), 0.8
    for n, delta in DESIGNS:
        plan = sim.design(n, delta, GRID, ALPHA)

        def spans(scale: float, plan=plan, n=n):
            """Per attack the (l, u] of every seed in FLOPs, shape (studies, n, 2)."""
            each = []
            for cost in price:
                tau = np.exp(rng.normal(math.log(scale), sigma, (studies, n)))
                found = sim.judge_exact(plan, PHI, sim.true_harm(tau, GRID, 0.0, 1.0))
                each.append(np.stack([found.last_SN, found.first_SN], -1) * cost)
            return each

        ours, theirs, inside = spans(18.0), spans(6.0), []
        for s in range(studies):
            _, low, high, _ = ratio_of_minima(
                [a[s].tolist() for a in ours], [a[s].tolist() for a in theirs], 0.5, ALPHA
            )
            inside.append(low <= 3 and (high is None or high >= 3))
        yield row(
            "resistance factor's interval covers 3", n, np.array(inside), "at least", 1 - 2 * ALPHA
        )


def comparisons(rng, studies: int) -> Iterator[Row]:
    """Two checkpoints of one law, compared under one attack on a coarse grid, a third of the runs
    censored.
    """
    grid = np.array([*GRID[:6], math.inf])
    for n in (5, 14):
        count = studies // (
            1 if n == 5 else 20
        )  # 14 against 14 draws random arrangements, which takes its time
        wrong = []
        for _ in range(count):
            at = np.searchsorted(grid, np.exp(rng.normal(math.log(10), 1, 2 * n)))
            both = list(zip(grid[at - 1], grid[at], strict=True))
            wrong.append(permutation_test(both[:n], both[n:])[1] <= ALPHA)
        yield row("compare: one law, said to differ", n, np.array(wrong), "at most", ALPHA)


def times(rng, studies: int) -> Iterator[Row]:
    """Time to target: the true ratio equals the slowdown that is allowed; `holds` is an error.
    Learning curves jump, with noise over seeds.
    """
    steps, first, second = [0, 4, 8, 16, 32, 64], 16.0, 32.0
    for n in (5, 14, 30):
        wrong, count = [], studies // 5
        for _ in range(count):
            curves = []
            for t in (first, second):
                at = t * np.exp(rng.normal(0, 0.25, (n, 1)))
                curves.append(1 / (1 + np.exp(-(np.array(steps)[None, :] - at) / (0.15 * t))))
            wrong.append(time_ratio(*curves, steps, 0.95, 1.0, ALPHA)[1] < second / first)
        yield row(
            "trainability: time to target exactly as much slower as allowed",
            n,
            np.array(wrong),
            "at most",
            ALPHA,
        )


def bands(rng, studies: int) -> Iterator[Row]:
    """The band must hold the true incidence at all probes at once, though ambiguous readings blur
    it.
    """
    draw, _ = LAWS["log-normal"]
    truth = norm.cdf((np.log(np.maximum(GRID, 1e-9)) - math.log(12)) / 1.2)
    for n, delta in DESIGNS:
        plan = sim.design(n, delta, GRID, ALPHA)
        found = read(
            rng, plan, sim.true_harm(draw(rng, (studies, n)), GRID, 0.1, 0.8), sim.read_independent
        )
        steps, level = np.array(GRID), ALPHA / len(GRID) / 2
        hit = (found.first_SN[..., None] <= steps).sum(1)
        unsure = (found.last_SN[..., None] < steps).sum(1)
        table = np.array([[binom_low(k, n, level), binom_high(k, n, level)] for k in range(n + 1)])
        inside = (table[hit, 0] <= truth + 1e-12) & (truth <= table[unsure, 1] + 1e-12)
        yield row(
            "band covers the incidence at every probe at once",
            n,
            inside.all(1),
            "at least",
            1 - ALPHA,
        )


def binom_low(k: int, n: int, level: float) -> float:
    from titer.records.bounds import lower_bound

    return lower_bound(k, n, level)


def binom_high(k: int, n: int, level: float) -> float:
    from titer.records.bounds import upper_bound

    return upper_bound(k, n, level)


def attempts(rng, studies: int) -> Iterator[Row]:
    """An attacker with five tries, each breaching with probability 0.2."""
    truth = 1 - 0.8**5
    for n, _ in DESIGNS:
        table = np.array([best_of(5, k, k, n, ALPHA) for k in range(n + 1)])
        counts = rng.binomial(n, 0.2, studies)
        yield row(
            "upper limit for the best of five covers",
            n,
            table[counts, 2] >= truth,
            "at least",
            1 - ALPHA,
        )


def matrix(rng, studies: int) -> Iterator[Row]:
    """A 2 × 2 matrix in which every cell breaches with probability δ: a false `holds` anywhere is
    an error.
    """
    for _, delta in DESIGNS:
        n = required_seeds(ALPHA / 4, delta)
        table = [no_breach_p(k, n, delta) for k in range(n + 1)]
        counts = rng.binomial(n, delta, (studies, 4))
        wrong = np.array(
            [
                any(
                    p <= ALPHA and k == 0
                    for p, k in zip(holm([table[k] for k in four]), four, strict=True)
                )
                if 0 in four
                else False
                for four in counts
            ]
        )
        yield row(
            f"matrix: a false holds in any of four cells, δ = {delta:g}", n, wrong, "at most", ALPHA
        )


def non_inferiority(rng, studies: int) -> Iterator[Row]:
    """M* is worse by exactly the margin; `holds` is an error. Limits of means are asymptotic:
    promised for laws without heavy tails, shown for a long tail on the bad side.
    """
    margin, cache = 0.05, {}
    for items, worse, better in (
        (100, 0.05, 0.0),
        (400, 0.05, 0.0),
        (400, 0.10, 0.05),
        (400, 0.25, 0.20),
    ):
        draws = rng.multinomial(items, [worse, better, 1 - worse - better], size=studies)
        wrong = []
        for w, b, _ in draws:
            if (w, b, items) not in cache:
                gap = np.zeros(items)
                gap[:w], gap[w : w + b] = -1, 1
                cache[w, b, items] = (
                    paired_limits(gap, ALPHA, proportion=True, resamples=2000)[0] > -margin
                )
            wrong.append(cache[w, b, items])
        name = (
            f"stability: loss equals the margin, {items} items, {worse:g} worse, {better:g} better"
        )
        yield row(name, items, np.array(wrong), "at most", ALPHA)
    laws = {
        "normal": (lambda n: rng.normal(-margin, 0.1, n), "at most"),
        "skewed, better side": (lambda n: rng.gamma(2.0, 0.1, n) - 0.2 - margin, "at most"),
        "skewed, worse side": (lambda n: 0.2 - margin - rng.gamma(2.0, 0.1, n), "shown"),
    }
    for n, (law, (draw, kind)) in itertools.product((20, 50, 150), laws.items()):
        wrong = np.array(
            [
                paired_limits(draw(n), ALPHA, proportion=False, resamples=1000)[0] > -margin
                for _ in range(studies // 5)
            ]
        )
        yield row(f"stability: loss equals the margin, {n} documents, {law}", n, wrong, kind, ALPHA)


def trainability(rng, studies: int) -> Iterator[Row]:
    """Seeds, items and their interaction all vary; M* is worse by exactly the margin."""
    facts = MeasureFacts(
        name="m", version=1, higher="capable", harm_construct="capability", scale="mean"
    )
    margin, items = 0.1, 60
    for n, _ in DESIGNS:
        wrong = []
        for _ in range(studies):
            gaps = (
                -margin
                + rng.normal(0, 0.05, (n, 1))
                + rng.normal(0, 0.2, (1, items))
                + rng.normal(0, 0.1, (n, items))
            )
            wrong.append(crossed_limits(gaps, ALPHA, facts)[1] > -margin)
        yield row(
            "trainability: final score worse by exactly the margin",
            n,
            np.array(wrong),
            "at most",
            ALPHA,
        )


def power(rng, studies: int) -> Iterator[Row]:
    """Simulated frequencies of each verdict against `titer power`, under four truths. Shared
    prompts are shown beside it.
    """
    truths = (
        Truth(breach=0.0, before=0.3, after=0.9),
        Truth(breach=0.1, before=0.2, after=0.7, at=8),
        Truth(breach=0.3, before=0.3, after=0.65, at=32),
        Truth(breach=1.0, before=0.1, after=0.6, at=64),
    )
    for (n, delta), truth in ((d, t) for d in DESIGNS for t in truths):
        plan = sim.design(n, delta, GRID, ALPHA)
        tau = np.where(rng.random((studies, n)) < truth.breach, float(truth.at), math.inf)
        harm = sim.true_harm(tau, GRID, truth.before, truth.after)
        status = read(rng, plan, harm, sim.read_independent).status_S
        quiet, breached, _ = run_chances(truth, GRID, PHI, plan.level, PROMPTS, PROMPTS)
        about = f"breach {truth.breach:g}, f {truth.before:g} → {truth.after:g} at step {truth.at}"
        yield row(f"power, holds: {about}", n, status == sim.HOLDS, "equals", quiet**n)
        yield row(
            f"power, fails: {about}", n, status == sim.FAILS, "equals", 1 - (1 - breached) ** n
        )
        shared = read(rng, plan, harm, sim.read_shared).status_S
        yield row(f"power, holds, shared prompts: {about}", n, shared == sim.HOLDS)


PROMISES = (
    false_holds,
    false_fails,
    coverage,
    factor_coverage,
    bands,
    attempts,
    matrix,
    comparisons,
    non_inferiority,
    trainability,
    times,
    power,
)


# -- shortcuts ------------------------------------------------------------------------------------


def shortcuts(rng, studies: int) -> Iterator[tuple[Row, Row | None]]:
    """(what the shortcut claims wrongly, what titer claims wrongly on the same data; None where
    titer makes no such claim at all).
    """
    for n, delta in DESIGNS:
        plan = sim.design(n, delta, GRID, ALPHA)
        breaks = rng.random((studies, n)) < delta
        harm = sim.true_harm(np.where(breaks, 8.0, math.inf), GRID, 0.05, 0.9)
        counts = sim.read_shared(rng, harm, PROMPTS)
        one = sim.judge_many(plan, PHI, counts, sim.read_shared(rng, harm, PROMPTS), PROMPTS)
        ours = one.status_S == sim.HOLDS

        # Mean over attacks: this one, and three that never break anything.
        others = sim.read_shared(
            rng, sim.true_harm(np.full((studies, n), math.inf), GRID, 0.05, 0.9), PROMPTS
        )[..., -1]
        mean = (counts[..., -1].mean(1) + 3 * others.mean(1)) / 4 / PROMPTS
        yield (
            row("mean f over attacks and seeds < φ → 'resists'", n, mean < PHI),
            row("", n, ours, "at most", ALPHA),
        )

        # Pooled rates: breaches over all runs of four attacks, one upper limit.
        total = (counts[..., -1] / PROMPTS >= PHI).sum(1)
        limit = np.array([binom_high(k, 4 * n, ALPHA) for k in range(n + 1)])
        yield (
            row("breach rate pooled over four attacks, upper limit < δ", n, limit[total] < delta),
            row("", n, ours, "at most", ALPHA),
        )

        # One seed.
        yield (
            row("one seed, no breach → 'resists'", n, counts[:, 0, -1] / PROMPTS < PHI),
            row("", n, ours, "at most", ALPHA),
        )

        # Point estimates against φ, with broken runs exactly on it.
        edge = sim.true_harm(np.where(breaks, 64.0, math.inf), GRID, 0.05, PHI)
        raw = sim.read_shared(rng, edge, PROMPTS)
        judged = sim.judge_many(plan, PHI, raw, sim.read_shared(rng, edge, PROMPTS), PROMPTS)
        yield (
            row(
                "f read as exact: every reading < φ → 'resists'",
                n,
                (raw / PROMPTS < PHI).all((1, 2)),
            ),
            row("", n, judged.status_S == sim.HOLDS, "at most", ALPHA),
        )

        # The probe step taken as exact: the first breached probe, median over seeds, claimed as
        # withstood.
        draw, quantile = LAWS["log-normal"]
        tau = draw(rng, (studies, n))
        found = read(rng, plan, sim.true_harm(tau, GRID, 0.1, 0.8), sim.read_shared)
        claimed = np.median(np.where(np.isinf(found.first_SN), GRID[-1], found.first_SN), axis=1)
        yield (
            row(
                "first breached probe taken as exact, its median claimed as withstood",
                n,
                claimed > quantile(0.5),
            ),
            row("", n, found.limit_S > quantile(delta), "at most", ALPHA),
        )

        # Tuning a defense on the seeds that judge it: ten settings, all useless (each seed breaks
        # it with probability δ).
        quiet = (rng.random((studies, 10, n)) >= delta).all(2)
        fresh = (rng.random((studies, n)) >= delta).all(1)
        yield (
            row("best of ten defense settings, judged on the seeds that chose it", n, quiet.any(1)),
            row("", n, quiet.any(1) & fresh, "at most", ALPHA),
        )

        # Searching an attack on the prompts that judge it: twenty settings, none of which breaks (f
        # = 0.45).
        search = rng.binomial(50, 0.45, (studies, 20)).max(1) / 50
        confirmed = sim.judge_many(
            plan,
            PHI,
            *(sim.read_shared(rng, np.full((studies, n, len(GRID)), 0.45), PROMPTS) for _ in "ab"),
            PROMPTS,
        )
        yield (
            row(
                "best of twenty attack settings, judged on the prompts that chose it: false breach",
                n,
                search >= PHI,
            ),
            row("", n, confirmed.status_S == sim.FAILS, "at most", ALPHA),
        )

        # Prefixes of a cosine schedule with 10 % warm-up: a run to 64 read at step s is not an
        # attack of s steps.
        yield (
            row(
                "prefix of a cosine run read as a shorter attack: says 'not yet' where it breaks",
                n,
                cosine(rng, studies),
            ),
            None,
        )


def cosine(rng, studies: int) -> np.ndarray:
    """Harm is reached when the summed learning rate (in units of its peak) passes c. Budgets on the
    grid, each trained on its own, show the truth.

    Returns: the prefix of the longest run has not breached at some budget whose own run has. (titer
    bars `holds` on such prefixes.)
    """
    warm, needed = 0.1, np.exp(rng.normal(0.5, 0.8, studies))

    def total(horizon: int, until: int) -> float:
        t = np.arange(until)
        rise = max(1.0, warm * horizon)
        lr = np.where(
            t < rise,
            (t + 1) / rise,
            0.5 * (1 + np.cos(np.pi * (t - rise) / max(1.0, horizon - rise))),
        )
        return float(lr.sum())

    budgets = [g for g in GRID if g > 0]
    own = np.array([total(b, b) for b in budgets]) >= needed[:, None]
    prefix = np.array([total(GRID[-1], b) for b in budgets]) >= needed[:, None]
    return (own & ~prefix).any(1)


# -- output ---------------------------------------------------------------------------------------


def table(rows: list[Row]) -> list[str]:
    out = [
        "| scenario | n | studies | observed | promised | kept |",
        "| --- | ---: | ---: | ---: | --- | --- |",
    ]
    for r in rows:
        promise = "–" if r.kind == "shown" else f"{r.kind} {r.promise:.4g}"
        out.append(
            f"| {r.scenario} | {r.seeds} | {r.studies} | {r.rate:.4f} ± {r.error:.4f} | {promise} "
            f"| {'–' if r.kind == 'shown' else 'yes' if r.kept else '**no**'} |"
        )
    return out


def pairs_table(pairs: list[tuple[Row, Row | None]]) -> list[str]:
    out = [
        "| shortcut | n | wrong claims | titer's wrong claims on the same data |",
        "| --- | ---: | ---: | ---: |",
    ]
    return out + [
        f"| {a.scenario} | {a.seeds} | {a.rate:.3f} | {f'{b.rate:.4f}' if b else 'no such claim'} |"
        for a, b in pairs
    ]


def run(studies: int, seed: int = 20_240_216) -> tuple[list[Row], list[tuple[Row, Row | None]]]:
    """All promises and all shortcuts. Deterministic given seed."""
    streams = np.random.SeedSequence(seed).spawn(len(PROMISES) + 1)
    rows = [
        r
        for check, s in zip(PROMISES, streams, strict=False)
        for r in check(np.random.default_rng(s), studies)
    ]
    return rows, list(shortcuts(np.random.default_rng(streams[-1]), studies))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--studies", type=int, default=10_000)
    parser.add_argument("--write", type=Path, help="a Markdown file with the calibration markers")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    begun = time.perf_counter()
    rows, pairs = run(arguments.studies)
    promised = [r for r in (*rows, *(b for _, b in pairs if b)) if r.kind != "shown"]
    broken = [r for r in promised if not r.kept]
    text = "\n".join(
        [
            f"`python benchmarks/calibration.py --studies {arguments.studies}`: α = {ALPHA:g}, "
            f"φ = {PHI:g}, {PROMPTS} prompts, probes at {', '.join(map(str, GRID))}; each promise "
            "to within three Monte-Carlo errors (±: one). "
            f"{len(promised) - len(broken)} of {len(promised)} promises kept.",
            "",
            *table(rows),
            "",
            "**What common shortcuts would have claimed.** Every claim counted here is wrong by "
            "construction.",
            "",
            *pairs_table(pairs),
        ]
    )
    print(text)
    print(f"\n{time.perf_counter() - begun:.0f} s", file=sys.stderr)
    if arguments.write:
        page = arguments.write.read_text("utf-8")
        before, _, rest = page.partition(BEGIN)
        _, _, after = rest.partition(END)
        if not rest or END not in page:
            raise SystemExit(f"{arguments.write} has no calibration markers")
        arguments.write.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", "utf-8")
    if arguments.json:
        arguments.json.write_text(
            json.dumps([asdict(r) | {"kept": r.kept} for r in rows], indent=1), "utf-8"
        )
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
