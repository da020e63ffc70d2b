"""What a design can be expected to show: seeds, prompts and items it needs, and the probability of
each verdict.

Everything is computed from the study alone, before any work. A *truth* says what the attacks would
really do; the probabilities follow exactly for readings that err independently
(benchmarks/calibration.py compares them with simulated studies, also with shared prompts).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.stats import binom, nct, norm
from scipy.stats import t as student

from titer.errors import StudyError
from titer.study.base import Strict
from titer.study.spec import Benchmark, Study
from titer.verdicts.attainable import attainable, part_size, prompt_count, required_prompts
from titer.verdicts.paired import paired_limits
from titer.verdicts.seeds import required_seeds
from titer.verdicts.tracks import proportion

TARGET = 0.8
"""Probability of the wanted verdict that a design should reach."""
_ROUNDS, _RESAMPLES, _SEED = 400, 1_000, 20_240_216
_LARGEST = 20_000
LARGEST_SPREAD = 1e3


def truth(**fields: Any) -> Truth:
    """A truth, its shares checked. Raises StudyError for a number that is none or out of range."""
    for field in ("breach", "before", "after", "control"):
        _share(float(fields.get(field, 0.0)), field)
    return Truth(**fields)


class Truth(Strict):
    """What is supposed to be true. breach: probability that a seed breaches by T, under `attacks`
    of the battery's attacks (the others never do). before, after: f before and after a run
    breaks. at: step at which it breaks (the first probe from there on shows it). control:
    probability that a seed of an attack breaks the undefended control by T, likewise at step
    `at`.
    """

    breach: float
    before: float = 0.1
    after: float = 0.9
    at: int = 1
    attacks: int = 1
    control: float = 1.0


class Chance(Strict):
    """Probability of each status of condition 1 under a truth. invalid: f(M[0]) is not surely below
    φ (it is taken to be `before`), or no attack breaks the control in every seed.
    """

    truth: Truth
    holds: float
    fails: float
    inconclusive: float
    invalid: float


class Need(Strict):
    """How much of something a design needs for a purpose, and how much it has. need: None if no
    amount suffices.
    """

    what: str
    purpose: str
    have: int
    need: int | None


class Power(Strict):
    """The whole answer of `titer power`."""

    study: str
    target: float
    attainable: str
    chances: tuple[Chance, ...]
    needs: tuple[Need, ...]
    stability: dict[str, dict[str, float | int | None]] = {}
    """Benchmark → items, margin, assumed share of changed answers (or sd), probability of `holds`
    if nothing is worse, items needed.
    """
    trainability: dict[str, float | int | None] = {}


def _share(value: float, field: str) -> None:
    if not 0 <= value <= 1:  # false for NaN too
        raise StudyError(
            "not a share",
            field=field,
            value=value,
            expected="a number from 0 to 1",
            remedy="mend it",
        )


def _spread(value: float, field: str) -> None:
    if not 0 <= value <= LARGEST_SPREAD:
        raise StudyError(
            "not a standard deviation",
            field=field,
            value=value,
            expected=f"a number from 0 to {LARGEST_SPREAD:g}",
            remedy="mend it",
        )


def run_chances(
    truth: Truth,
    grid: tuple[int, ...],
    phi: float,
    level: float,
    prompts: int,
    confirm: int,
    second: int | None = None,
) -> tuple[float, float, float]:
    """(P(surely resisting to T), P(confirmed breach), P(neither)) of one seed. second: prompts of a
    second judge, read at T, that sees the same f.
    """
    rest0, hit0 = _reading(truth.before, phi, level, prompts, confirm)
    rest1, hit1 = _reading(truth.after, phi, level, prompts, confirm)
    agree0, agree1 = (
        (1.0, 1.0)
        if second is None
        else tuple(_reading(f, phi, level, second, second)[0] for f in (truth.before, truth.after))
    )
    late = sum(step >= truth.at for step in grid)
    early = len(grid) - late
    sound = rest0 ** len(grid) * agree0, 1 - (1 - hit0) ** len(grid)
    broken = (
        rest0**early * rest1**late * (agree1 if late else agree0),
        1 - (1 - hit0) ** early * (1 - hit1) ** late,
    )
    quiet = (1 - truth.breach) * sound[0] + truth.breach * broken[0]
    breached = (1 - truth.breach) * sound[1] + truth.breach * broken[1]
    return quiet, breached, 1 - quiet - breached


@lru_cache(maxsize=4096)
def _reading(f: float, phi: float, level: float, prompts: int, confirm: int) -> tuple[float, float]:
    """(P(upper bound < φ), P(lower bounds ≥ φ on both prompt sets)) of one reading of a model with
    harm f.
    """

    def below(n: int) -> int:  # the largest count that surely resists
        return max((k for k in range(n + 1) if proportion(k, n, level)[1] < phi), default=-1)

    def above(n: int) -> int:  # the smallest count that is surely beyond φ
        return next((k for k in range(n + 1) if proportion(k, n, level)[0] >= phi), n + 1)

    rest = float(binom.cdf(below(prompts), prompts, f))
    return rest, float(
        binom.sf(above(prompts) - 1, prompts, f) * binom.sf(above(confirm) - 1, confirm, f)
    )


def chance(study: Study, truth: Truth) -> Chance:
    """Probabilities of the statuses of condition 1, all attacks of the battery taken for attacks
    (none for a reference).

    Raises StudyError for a truth that cannot be.
    """
    for field in ("breach", "before", "after", "control"):
        _share(getattr(truth, field), field)
    spec, grid = study.resistance, study.resistance.grid()
    battery = len(spec.expanded())
    if not 0 <= truth.attacks <= battery:
        raise StudyError(
            "more attacks than the battery has",
            field="attacks",
            value=truth.attacks,
            expected=f"at most {battery}",
            remedy="lower it",
        )
    level, n = spec.alpha / len(grid), len(spec.seeds)
    prompts, confirm = sizes(study)
    second = prompt_count(study, spec.second) if spec.second else None
    others = truth.model_copy(update={"breach": 0.0})
    no_fail = all_quiet = 1.0
    for one, count in ((truth, truth.attacks), (others, battery - truth.attacks)):
        quiet, breached, _ = run_chances(one, grid, spec.phi, level, prompts, confirm, second)
        no_fail *= (1 - breached) ** (n * count)
        all_quiet *= quiet ** (n * count)
    undefended = run_chances(
        truth.model_copy(update={"breach": truth.control}), grid, spec.phi, level, prompts, confirm
    )
    broken = undefended[1] ** n  # the control breaks, and is seen to, in every seed of an attack
    holds = all_quiet * broken**battery if n >= required_seeds(spec.alpha, spec.delta) else 0.0
    clear = _reading(truth.before, spec.phi, level, prompts, confirm)[
        0
    ]  # f(M[0]) is read once, and must lie surely below φ
    holds, fails, unfit = (
        clear * holds,
        clear * (1 - no_fail),
        clear * no_fail * (1 - broken) ** battery + 1 - clear,
    )
    return Chance(
        truth=truth,
        holds=holds,
        fails=fails,
        invalid=unfit,
        inconclusive=max(0.0, 1 - holds - fails - unfit),
    )


def sizes(study: Study) -> tuple[int, int]:
    """(harm prompts, confirmation prompts) a reading uses."""
    spec = study.resistance
    confirm = part_size(study, spec.confirm)
    return prompt_count(study, spec.harm), min(confirm, spec.harm.limit or confirm)


def power(
    study: Study,
    truths: tuple[Truth, ...],
    *,
    target: float = TARGET,
    changed: float = 0.05,
    sd: float = 0.1,
    seed_sd: float = 0.03,
) -> Power:
    """Everything `titer power` prints.

    changed: share of answers that differ between M and an equally good M* (half better, half
    worse), for proportions. sd: standard deviation over items of the difference, for means.
    seed_sd: over seeds of a task's final difference. Raises StudyError.
    """
    for field, value in (("target", target), ("changed", changed)):
        _share(value, field)
    for field, value in (("sd", sd), ("seed_sd", seed_sd)):
        _spread(value, field)
    stability = (
        {b.name: _benchmark(study, b, target, changed, sd) for b in study.stability.benchmarks}
        if study.stability
        else {}
    )
    return Power(
        study=study.name,
        target=target,
        attainable=attainable(study),
        chances=tuple(chance(study, t) for t in truths),
        needs=tuple(_needs(study, truths[0] if truths else Truth(breach=0.0), target)),
        stability=stability,
        trainability=_trainability(study, target, sd, seed_sd),
    )


def _needs(study: Study, truth: Truth, target: float):
    spec, grid = study.resistance, study.resistance.grid()
    level, n, battery = spec.alpha / len(grid), len(spec.seeds), len(spec.expanded())
    prompts, confirm = sizes(study)
    seeds = required_seeds(spec.alpha, spec.delta)
    yield Need(
        what="confirmation seeds",
        purpose=f"`holds` at δ = {spec.delta:g}, α = {spec.alpha:g}",
        have=n,
        need=seeds,
    )
    if (spec.delta, spec.alpha) != (0.1, 0.05):
        yield Need(
            what="confirmation seeds",
            purpose="a release-grade claim (δ = 0.1, α = 0.05)",
            have=n,
            need=required_seeds(0.05, 0.1),
        )
    yield Need(
        what="harm prompts",
        purpose="a reading of f = 0 to lie surely below φ",
        have=prompts,
        need=required_prompts(spec.phi, level),
    )
    runs = max(n, seeds) * battery
    sound = Truth(breach=0.0, before=truth.before)

    def holds(m: int) -> bool:
        return run_chances(sound, grid, spec.phi, level, m, m)[0] ** runs >= target

    yield Need(
        what="harm prompts",
        purpose=f"`holds` with probability {target:g} if f = {truth.before:g} throughout",
        have=prompts,
        need=least(holds) if truth.before < spec.phi else None,
    )

    def found(m: int) -> bool:
        return _reading(truth.after, spec.phi, level, m, m)[1] >= target

    yield Need(
        what="harm and confirmation prompts",
        purpose=f"one reading of f = {truth.after:g} to be a confirmed breach with "
        f"probability {target:g}",
        have=min(prompts, confirm),
        need=least(found) if truth.after > spec.phi else None,
    )
    if study.generalization:
        cells = len(study.generalization.groups) ** 2
        yield Need(
            what="generalization seeds",
            purpose=f"a cell of the matrix to hold ({cells} cells judged together)",
            have=len(study.generalization.seeds),
            need=required_seeds(spec.alpha / cells, spec.delta),
        )


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


def _benchmark(
    study: Study, benchmark: Benchmark, target: float, changed: float, sd: float
) -> dict[str, float | int | None]:
    n, alpha = (
        prompt_count(study, benchmark.measure),
        study.stability.alpha if study.stability else 0.05,
    )
    if benchmark.kind == "perplexity":
        z = float(norm.ppf(1 - alpha) + norm.ppf(target))
        return {
            "items": n,
            "margin": benchmark.margin,
            "sd": sd,
            "holds": mean_power(n, benchmark.margin, sd, alpha),
            "needed": math.ceil((z * sd / benchmark.margin) ** 2),
        }
    return {
        "items": n,
        "margin": benchmark.margin,
        "changed": changed,
        "holds": share_power(n, benchmark.margin, changed, alpha),
        "needed": least(lambda m: share_power(m, benchmark.margin, changed, alpha) >= target),
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


def _trainability(
    study: Study, target: float, sd: float, seed_sd: float
) -> dict[str, float | int | None]:
    """For the task with the fewest test items. The verdict's standard error adds a term over seeds
    and one over items.
    """
    spec = study.trainability
    if spec is None:
        return {}
    items = min(prompt_count(study, t.measure) for t in spec.tasks)

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
