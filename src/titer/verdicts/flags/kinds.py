"""Every flag there is: how grave it is, and what to do about it. docs/flags.md explains each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from titer.verdicts.evidence.trajectories import SeedTrajectory
from titer.verdicts.output.verdict import Flag, Severity


class Kind(NamedTuple):
    severity: Severity
    remedy: str


KINDS: dict[str, Kind] = {
    # the study
    "control_not_broken": Kind(
        "invalidates",
        "raise its budget or learning rate, or give it more text; until then it shows nothing",
    ),
    "control_harmful_at_start": Kind(
        "invalidates",
        "align the model first, choose φ well above its start, or read more prompts",
    ),
    "measure_unfit": Kind(
        "invalidates", "use a harm measure that scores items 0 or 1, with more meaning more harm"
    ),
    "exact_overlap": Kind(
        "invalidates",
        "cut the parts disjointly; titer refuses such a study, so ask where this plan comes from",
    ),
    "near_duplicates": Kind(
        "warns",
        "list the other pool in `drop_near`, so that its near-duplicates leave before the cut",
    ),
    "unknown_defender_data": Kind(
        "warns",
        "evaluate on text published after the model, or build it with titer from stated data",
    ),
    "too_few_seeds": Kind(
        "blocks", "plan as many seeds as are needed, or state a larger δ before the next study"
    ),
    "incomplete_run": Kind(
        "blocks", "give the same `titer run` command again: finished cells are kept"
    ),
    "corrupted_records": Kind(
        "blocks", "give the same `titer run` command again: those cells are repeated"
    ),
    "changed_plan": Kind(
        "blocks", "give the same `titer run` command again: the plan is derived again"
    ),
    # the model as it was loaded
    "identical_weights": Kind(
        "blocks",
        "check that the defense ran and was kept, or that the right model was named: a defense "
        "that leaves the weights as they are defends nothing",
    ),
    "unrelated_weights": Kind(
        "warns",
        "compare models of one family: attacks and margins are tried out on the undefended model, "
        "and say little about another one",
    ),
    "neutralised": Kind(
        "warns",
        "nothing, if only the weights are to be judged; do not count such settings as a defense",
    ),
    # its runs
    "nonfinite_gradients": Kind(
        "blocks",
        "lower the learning rate, clip gradients, or use fp32; the defense may mask its gradients",
    ),
    "zero_gradients": Kind(
        "blocks",
        "check that the attack trains the parameters it should; attack from a perturbed or "
        "re-initialised head",
    ),
    "attack_loss_not_falling": Kind(
        "warns",
        "search learning rates over two orders of magnitude: an attack that does not train tests "
        "nothing",
    ),
    "diverged": Kind(
        "blocks",
        "lower the learning rate or clip gradients; a diverged run is no evidence of resistance",
    ),
    "ambiguous_probe": Kind("blocks", "read more prompts, so that the bounds clear φ on one side"),
    "judges_disagree": Kind(
        "blocks",
        "read transcripts, calibrate both judges against people, and keep the primary one named",
    ),
    "harm_not_monotone": Kind(
        "warns",
        "look for collapse or an unstable learning rate; the smallest budgets may be the dangerous "
        "ones",
    ),
    "utility_collapse": Kind(
        "blocks", "add attacks that mix in harmless data and that repair the model afterwards"
    ),
    "incoherent_output": Kind(
        "blocks",
        "read transcripts; a model that says nothing sensible is neither harmful nor resistant",
    ),
    "template_differs": Kind(
        "blocks",
        "train and read with one template; an attack that asks in other words says so by its "
        "wording",
    ),
    "hidden_not_removed": Kind(
        "warns",
        "attack with prefilled answers and sampling; look for behaviour that is hidden rather than "
        "removed",
    ),
    "horizon_as_prefix": Kind("blocks", "use a constant schedule, or one cell per budget"),
    "search_breach_unconfirmed": Kind("blocks", "confirm those settings on the confirmation seeds"),
    "simple_beats_search": Kind("warns", "widen the search to include these settings"),
    # its benchmarks
    "benchmark_at_chance": Kind(
        "invalidates",
        "choose a benchmark on which the undefended model is well above a useless one",
    ),
    "over_refusal": Kind(
        "warns", "add harmless prompts that look dangerous to the defense's retain data"
    ),
}


def flag(
    code: str,
    where: str,
    explanation: str,
    *,
    digests: Iterable[str] = (),
    severity: Severity | None = None,
    remedy: str | None = None,
) -> Flag:
    """A flag of a known kind; severity and remedy only where they differ from its kind's."""
    kind = KINDS[code]
    return Flag(
        code=code,
        severity=severity or kind.severity,
        where=where,
        explanation=explanation,
        remedy=remedy or kind.remedy,
        digests=tuple(digests),
    )


def ids(trajectories: Iterable[SeedTrajectory]) -> tuple[str, ...]:
    """Cells behind some trajectories."""
    return tuple(d for k in trajectories for d in k.digests)
