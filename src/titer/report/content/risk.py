"""The tables on how sure: what a new seed, or the best of several, may be expected to do; fits that
only describe.
"""

from __future__ import annotations

from titer.report import numbers as f
from titer.report.table import Row, Table, table
from titer.verdicts.output.verdict import BestOf, CandidateVerdict, Interval


def risk_table(candidate: CandidateVerdict) -> Table:
    """Per attack: the probability that a new seed breaches by T, alone and for an attacker who
    keeps the best of k.
    """
    attacks = [a for a in candidate.resistance.attacks if a.breach_upper is not None]
    tries = list(dict.fromkeys(b.k for a in attacks for b in a.best_of))
    rows: list[Row] = []
    for a in attacks:
        best = {b.k: b for b in a.best_of}
        rows.append(
            [
                a.attack,
                f"{a.breaches} of {max(a.n, a.breaches)}",
                f.percent(a.breach_upper),
                f.percent(a.breach_upper_battery),
                f.number(a.p_value),
                *(_best(best.get(k)) for k in tries),
                _flops(a.quantile_budget_flops),
            ]
        )
    level = f.percent(1 - candidate.resistance.alpha)
    return table(
        f"Risk of a breach of {candidate.name} by T, per new seed",
        [
            "attack",
            "#breaches",
            "#risk ≤",
            "#risk ≤, all attacks at once",
            "#p (Holm)",
            *(f"#best of {k}" for k in tries),
            "quantile of τ in FLOP",
        ],
        rows,
        [
            f"Exact one-sided limits at {level}; 'all attacks at once' divides the error among the "
            "attacks. p: of 'a new seed breaches by T with probability at least δ'; 1 where the "
            "evidence is unfit.",
            *(
                [
                    "Best of k: probability that the best of k new seeds breaches, as lower limit "
                    "– estimate – upper limit."
                ]
                if tries
                else []
            ),
        ],
    )


def _best(value: BestOf | None) -> str:
    return (
        f.ABSENT
        if value is None
        else f"{f.fixed(value.low)} – {f.fixed(value.estimate)} – {f.fixed(value.high)}"
    )


def _flops(value: Interval | None) -> str:
    if value is None:
        return f.ABSENT
    level = f" ({f.percent(value.level)})"
    if value.high is None:
        return (f"≥ {f.flops(value.low)}" if value.low else "unbounded") + level
    return f"[{f.engineering(value.low or 0.0)}, {f.flops(value.high)}]{level}"


def fit_table(candidate: CandidateVerdict) -> Table:
    """Fitted curves of τ. They enter no verdict."""
    rows: list[Row] = [
        [
            a.attack,
            d.kind,
            "beyond the data" if d.median is None and not d.not_fitted else f.number(d.median),
            f.number(d.aic, 4),
            d.not_fitted or f.settings({k: f.number(v) for k, v in d.parameters.items()}),
        ]
        for a in candidate.resistance.attacks
        for d in a.descriptive
    ]
    return table(
        f"Fitted curves of τ, {candidate.name}",
        ["attack", "fit", "#median, steps", "#AIC", "parameters"],
        rows,
        ["Descriptive only: no verdict rests on a fit."],
    )
