"""What a design can be expected to show of stability and trainability: see `power`."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from scipy.stats import nct, norm
from scipy.stats import t as student

from titer.study.spec import Benchmark, Study
from titer.verdicts.design.attainable import prompt_count
from titer.verdicts.statistics.paired import paired_limits

_ROUNDS, _RESAMPLES, _SEED = 400, 1_000, 20_240_216
_LARGEST = 20_000


def least(enough: Callable[[int], bool]) -> int | None:
    """Smallest n ≤ 20 000 from which on `enough` is true, to within one per cent (bisection; exact
    up to 100); None if none is.
    """
    high = 1
    while not enough(high):
        high *= 2
        if high > _LARGEST:
            return None
    low = high // 2
    while high - low > max(1, high // 100):
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


Answers = dict[str, float | int | None]


def stability_power(study: Study, target: float, changed: float, sd: float) -> dict[str, Answers]:
    """Benchmark → items, and the probability that an equally good candidate is shown to be so.
    Benchmarks whose number of items the study does not tell are left out.
    """
    spec = study.stability
    sizes = {b.name: prompt_count(study, b.measure) for b in spec.benchmarks} if spec else {}
    return {
        b.name: _benchmark(n, b, spec.alpha, target, changed, sd)
        for b in (spec.benchmarks if spec else ())
        if spec and (n := sizes[b.name]) is not None
    }


def _benchmark(
    n: int, benchmark: Benchmark, alpha: float, target: float, changed: float, sd: float
) -> Answers:
    margin = benchmark.margin
    if benchmark.kind == "perplexity":
        z = float(norm.ppf(1 - alpha) + norm.ppf(target))
        return {
            "items": n,
            "margin": margin,
            "sd": sd,
            "holds": mean_power(n, margin, sd, alpha),
            "needed": math.ceil((z * sd / margin) ** 2),
        }
    return {
        "items": n,
        "margin": margin,
        "changed": changed,
        "holds": share_power(n, margin, changed, alpha),
        "needed": least(lambda m: share_power(m, margin, changed, alpha) >= target),
    }


def mean_power(n: int, margin: float, sd: float, alpha: float) -> float:
    """P(lower limit > −margin) for a mean difference whose truth is 0: normal theory (the verdict's
    bootstrap agrees for n ≥ 30).
    """
    if sd == 0:
        return 1.0
    return float(norm.cdf(margin * math.sqrt(n) / sd - norm.ppf(1 - alpha)))


@lru_cache(maxsize=4096)
def share_power(n: int, margin: float, changed: float, alpha: float) -> float:
    """P(lower limit > −margin) for paired shares if `changed` of the answers differ, half each way:
    simulated with the verdict's own limits.
    """
    draws = np.random.default_rng(_SEED).multinomial(
        n, [changed / 2, changed / 2, 1 - changed], size=_ROUNDS
    )
    pairs, counts = np.unique(draws[:, :2], axis=0, return_counts=True)
    passed = sum(
        int(c)
        for (w, b), c in zip(pairs, counts, strict=True)
        if _passes(int(w), int(b), n, margin, alpha)
    )
    return passed / _ROUNDS


@lru_cache(maxsize=65536)
def _passes(worse: int, better: int, n: int, margin: float, alpha: float) -> bool:
    gaps = np.zeros(n)
    gaps[:worse], gaps[worse : worse + better] = -1.0, 1.0
    return paired_limits(gaps, alpha, proportion=True, resamples=_RESAMPLES)[0] > -margin


def trainability_power(study: Study, target: float, sd: float, seed_sd: float) -> Answers:
    """For the task with the fewest test items. The verdict's standard error adds a term over seeds
    and one over items. Empty if the study does not tell how many items a task has.
    """
    spec = study.trainability
    sizes = [prompt_count(study, t.measure) for t in spec.tasks] if spec else []
    items = min((n for n in sizes if n is not None), default=0)
    if spec is None or not items:
        return {}

    def holds(n: int) -> float:
        return t_power(n, spec.margin, math.sqrt(seed_sd**2 / n + sd**2 / items), spec.alpha)

    needed = next((n for n in range(2, 500) if holds(n) >= target), None)
    return {
        "seeds": len(spec.seeds),
        "items": items,
        "margin": spec.margin,
        "sd over seeds": seed_sd,
        "sd over items": sd,
        "holds": holds(len(spec.seeds)),
        "needed": needed,
    }


def t_power(n: int, margin: float, error: float, alpha: float) -> float:
    """P(lower limit > −margin) of a t limit over n seeds with standard error `error` if the truth
    is 0: noncentral t, n − 1 degrees of freedom.
    """
    if n < 2:
        return 0.0
    if error == 0:
        return 1.0
    return float(nct.sf(student.ppf(1 - alpha, n - 1), n - 1, margin / error))
