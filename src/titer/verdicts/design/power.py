"""What a design can be expected to show: seeds, prompts and items it needs, and the probability of
each verdict.

Everything is computed from the study alone, before any work. A *truth* says what the attacks would
really do; the probabilities follow exactly for readings that err independently
(benchmarks/calibration.py compares them with simulated studies, also with shared prompts).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from scipy.stats import binom

from titer.errors import StudyError
from titer.study.base import Strict
from titer.study.spec import Study
from titer.verdicts.design.attainable import (
    attainable,
    part_size,
    prompt_count,
    required_prompts,
    strictest,
)
from titer.verdicts.design.power_conditions import least, stability_power, trainability_power
from titer.verdicts.evidence.trajectories import proportion
from titer.verdicts.statistics.seeds import required_seeds

TARGET = 0.8
"""Probability of the wanted verdict that a design should reach."""
LARGEST_SPREAD = 1e3


def truth(**fields: Any) -> Truth:
    """A truth, its shares checked. Raises StudyError for what is no number from 0 to 1."""
    for field in ("breach", "before", "after", "control"):
        _share(float(fields.get(field, 0.0)), field)
    return Truth(**fields)


class Truth(Strict):
    """What is supposed to be true. breach: probability that a seed breaches by T, under the first
    `attacks` of the battery's attacks (the others never do). before, after: f before and after a
    run breaks. at: step at which it breaks (the first probe from there on shows it), or the end of
    an attack with a smaller budget. control: probability that a seed of an attack breaks the
    undefended control by T, likewise at step `at`.
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
        raise StudyError("not a share", field=field, value=value, expected="a number from 0 to 1")


def _spread(value: float, field: str) -> None:
    if not 0 <= value <= LARGEST_SPREAD:
        raise StudyError(
            "not a standard deviation",
            field=field,
            value=value,
            expected=f"a number from 0 to {LARGEST_SPREAD:g}",
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
    (none for a reference), each on the probes of its own budget.

    Raises StudyError for a truth that cannot be.
    """
    for field in ("breach", "before", "after", "control"):
        _share(getattr(truth, field), field)
    spec, grids = study.resistance, _grids(study)
    if not 0 <= truth.attacks <= len(grids):
        raise StudyError(
            "more attacks than the battery has",
            field="attacks",
            value=truth.attacks,
            expected=f"at most {len(grids)}",
        )
    n, (prompts, confirm) = len(spec.seeds), sizes(study)
    second = prompt_count(study, spec.second) if spec.second else None
    quiet_all = no_fail = all_broken = none_broken = 1.0
    for i, grid in enumerate(grids):
        level, at = spec.alpha / len(grid), min(truth.at, grid[-1])
        here = truth.model_copy(update={"at": at, "breach": truth.breach * (i < truth.attacks)})
        undefended = truth.model_copy(update={"at": at, "breach": truth.control})
        quiet, breached, _ = run_chances(here, grid, spec.phi, level, prompts, confirm, second)
        seen = run_chances(undefended, grid, spec.phi, level, prompts, confirm)[1]
        no_fail *= (1 - breached) ** n
        quiet_all *= quiet**n
        # The control breaks, and is seen to, in every seed of an attack.
        all_broken *= seen**n
        none_broken *= 1 - seen**n
    enough = n >= required_seeds(spec.alpha, spec.delta)
    # f(M[0]) is read once, and must lie surely below φ.
    clear = _reading(truth.before, spec.phi, strictest(study), prompts, confirm)[0]
    holds, fails, unfit = (
        clear * quiet_all * all_broken * enough,
        clear * (1 - no_fail),
        clear * no_fail * none_broken + 1 - clear,
    )
    return Chance(
        truth=truth,
        holds=holds,
        fails=fails,
        invalid=unfit,
        inconclusive=max(0.0, 1 - holds - fails - unfit),
    )


def _grids(study: Study) -> list[tuple[int, ...]]:
    """The probes of every attack of the battery, in declared order."""
    spec = study.resistance
    return [spec.grid(a) for a in spec.expanded()]


def sizes(study: Study) -> tuple[int, int]:
    """(harm prompts, confirmation prompts) a reading uses; as many of both if the harm measure
    brings prompts of its own.
    """
    spec = study.resistance
    confirm = part_size(study, spec.confirm)
    confirm = min(confirm, spec.harm.limit or confirm)
    harm = prompt_count(study, spec.harm)
    return confirm if harm is None else harm, confirm


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
    return Power(
        study=study.name,
        target=target,
        attainable=attainable(study),
        chances=tuple(chance(study, t) for t in truths),
        needs=tuple(_needs(study, truths[0] if truths else Truth(breach=0.0), target)),
        stability=stability_power(study, target, changed, sd),
        trainability=trainability_power(study, target, sd, seed_sd),
    )


def _needs(study: Study, truth: Truth, target: float) -> Iterator[Need]:
    spec, level, grids = study.resistance, strictest(study), _grids(study)
    n, (prompts, confirm) = len(spec.seeds), sizes(study)
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
    runs = max(n, seeds)

    def holds(m: int) -> bool:
        return _all_quiet(truth.before, grids, spec.alpha, spec.phi, m) ** runs >= target

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


def _all_quiet(
    f: float, grids: Sequence[tuple[int, ...]], alpha: float, phi: float, prompts: int
) -> float:
    """P(one run under each attack is surely quiet) of a model with harm f throughout."""
    truth = Truth(breach=0.0, before=f)
    each = (run_chances(truth, g, phi, alpha / len(g), prompts, prompts)[0] for g in grids)
    return math.prod(each)
