"""Every table says what the verdict says. Cells are read back to numbers here, by other code than
wrote them.
"""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.report_example import example, whole
from titer.report import numbers as f
from titer.report.content import conditions, risk
from titer.report.content import resistance as evidence
from titer.report.content import summary as answer
from titer.report.table import SIGNS, tone
from titer.verdicts.output.verdict import VERDICT_FORMAT, Interval

RAISED = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")


def numbers(text):
    """All numbers in a cell: minus signs, powers of ten and percentages undone."""
    text = text.replace("−", "-").replace("\u202f", "").replace("\u00a0", " ")
    text = re.sub(r" × 10([⁻⁰-⁹¹²³]+)", lambda m: "e" + m.group(1).translate(RAISED), text)
    found = re.findall(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?:e-?\d+)?(?: %)?", text)
    return [float(x[:-2]) / 100 if x.endswith("%") else float(x) for x in found]


def rows(table):
    return [[cell.text for cell in row] for row in table.rows]


def near(value, places=None):
    return (
        pytest.approx(value, abs=0.51 * 10**-places)
        if places is not None
        else pytest.approx(value, rel=0.006)
    )


@pytest.fixture(scope="module", params=["whole", "invented"])
def verdict(request):
    return whole()[1] if request.param == "whole" else example(candidates=("guard", "vaccine"))[1]


@given(st.floats(1e-12, 1e15), st.integers(2, 5))
def test_a_number_read_back_is_the_number(value, digits):
    for text in (
        f.number(value, digits),
        f.scientific(value, digits),
        f.engineering(value, "FLOP", digits),
    ):
        assert numbers(text)[0] == pytest.approx(value, rel=0.51 * 10 ** (1 - digits)), text
    assert numbers(f.number(-value, digits))[0] == pytest.approx(
        -value, rel=0.51 * 10 ** (1 - digits)
    )


def test_attacks(verdict):
    for c in verdict.candidates:
        table = evidence.attack_table(c)
        assert f"T = {c.resistance.budget} steps, φ = {c.resistance.phi:g}" in table.caption
        for a, (
            name,
            role,
            status,
            seeds,
            breaches,
            risk_,
            limit,
            quantile,
            control,
            reason,
        ) in zip(c.resistance.attacks, rows(table), strict=True):
            assert (name, role, status, reason) == (a.attack, a.role, a.status, a.reason)
            assert numbers(seeds) == [a.n, a.n_required] and numbers(breaches)[0] == a.breaches
            assert numbers(risk_) == [near(a.breach_upper, 2)]
            assert numbers(limit) == [a.titer_lower, near(a.titer_lower_flops)]
            assert quantile == a.median_budget_text or numbers(quantile)[0] == a.quantile_budget.low
            assert control == {"broken": "yes", "exempt": "exempt"}[a.control_status]


def test_seeds_and_their_readings(verdict):
    for c in (verdict.control, *verdict.candidates):
        shown = iter(rows(evidence.seed_table(c)))
        for a in c.resistance.attacks:
            grid = sorted({p.step for t in a.trajectories for p in t.probes})
            harm = rows(evidence.harm_table(a, c.name))
            for t, cells in zip(a.trajectories, harm, strict=True):
                name, seed, steps, flops, last, _, second, digest = next(shown)
                assert (name, int(seed), digest) == (a.attack, t.seed, t.digest)
                ends = [x for x in (t.last_resisting, t.first_breached) if x is not None]
                assert numbers(steps.split(";")[0]) == ends and (t.collapsed_at is None) == (
                    "collapsed" not in steps
                )
                spent = [
                    x for x in (t.last_resisting_flops, t.first_breached_flops) if x is not None
                ]
                assert numbers(flops) == [near(x) for x in spent]
                assert numbers(last) == [near(t.probes[-1].harm, 2)]
                assert numbers(second) == (
                    [] if t.second_judge is None else [near(t.second_judge, 2)]
                )
                at = {p.step: p for p in t.probes}
                assert int(cells[0]) == t.seed and len(cells) == 1 + len(grid)
                for step, text in zip(grid, cells[1:], strict=True):
                    value, state = text.split(" ")
                    assert float(value) == near(at[step].harm, 2) and at[step].state.startswith(
                        state
                    )
        assert next(shown, None) is None


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("breached", "0.81 (above φ)"),
        ("unconfirmed", "0.81 (above φ)"),
        ("resisting", "0.81 (below φ)"),
        ("ambiguous", "0.81 (not clearly on either side of φ)"),
        (None, "0.81"),
    ],
)
def test_the_second_judge_is_said_to_be_above_or_below(state, said):
    c = example()[1].candidates[0]
    a = c.resistance.attacks[0]
    run = a.trajectories[0].model_copy(update={"second_judge": 0.81, "second_judge_state": state})
    attacks = (a.model_copy(update={"trajectories": (run,)}),)
    table = evidence.seed_table(
        c.model_copy(update={"resistance": c.resistance.model_copy(update={"attacks": attacks})})
    )
    assert rows(table)[0][6] == said


def test_shares_and_risks(verdict):
    for c in verdict.candidates:
        for a in c.resistance.attacks:
            for p, row in zip(a.curve, rows(evidence.share_table(a, c.name)), strict=True):
                step, n, breached, share, band, collapsed = row
                assert [int(x) for x in (step, n, breached, collapsed)] == [
                    p.step,
                    p.n,
                    p.breached,
                    p.collapsed,
                ]
                assert numbers(share) == [near(1 - p.breached / p.n, 2)]
                assert numbers(band.replace(",", " ")) == [near(1 - p.high, 2), near(1 - p.low, 2)]
        for a, row in zip(c.resistance.attacks, rows(risk.risk_table(c)), strict=True):
            assert numbers(row[2]) == [near(a.breach_upper, 2)]
            assert numbers(row[3]) == (
                [] if a.breach_upper_battery is None else [near(a.breach_upper_battery, 2)]
            )
            assert numbers(row[4]) == ([] if a.p_value is None else [near(a.p_value)])
            best = [numbers(x.replace("–", " ")) for x in row[5:-1]]
            assert best == [
                [near(b.low, 2), near(b.estimate, 2), near(b.high, 2)] for b in a.best_of
            ]


def test_factors_and_sensitivity(verdict):
    factors = [(c.name, x) for c in verdict.candidates for x in c.resistance.factors]
    for (name, x), row in zip(factors, rows(evidence.factor_table(verdict)), strict=True):
        assert row[:2] == [name, x.against] and row[5] == x.text
        assert numbers(row[2]) == ([] if x.estimate is None else [near(x.estimate)])
        ends = [e for e in (x.interval.low, x.interval.high) if e is not None]
        assert numbers(row[3])[: len(ends)] == [near(e, 2) for e in ends] and numbers(row[3])[
            -1
        ] == near(x.interval.level, 2)
    for c, row in zip(verdict.candidates, rows(evidence.sensitivity_table(verdict)), strict=True):
        assert row == [c.name, *c.resistance.sensitivity.values()]


def test_the_other_conditions(verdict):
    for c in verdict.candidates:
        for b, row in zip(
            c.stability.benchmarks,
            rows(conditions.stability_table(c.name, c.stability)),
            strict=True,
        ):
            assert (row[0], row[2], row[11], int(row[9])) == (b.name, b.status, b.reason, b.n)
            assert numbers(row[3]) == [near(b.control)] and numbers(row[4]) == [near(b.candidate)]
            assert numbers(row[5]) == [near(b.difference, 3)] and numbers(row[7]) == [b.margin]
            assert numbers(row[6])[-1] == near(b.interval.level, 2) and numbers(row[6])[0] == near(
                b.interval.low, 3
            )
        tasks = c.trainability.tasks
        for t, row in zip(
            tasks, rows(conditions.trainability_table(c.name, c.trainability)), strict=True
        ):
            assert (row[0], row[1], int(row[9]), row[10]) == (t.name, t.status, t.seeds, t.reason)
            values = [numbers(x)[0] for x in row[2:6]]
            assert values == [
                near(t.control_start),
                near(t.control_final),
                near(t.candidate_final),
                near(t.difference, 3),
            ]
        for t, row in zip(tasks, rows(conditions.speed_table(c.name, c.trainability)), strict=True):
            assert numbers(row[1]) == [near(t.target)] and numbers(row[5]) == [t.slowdown]
            for text, time in ((row[2], t.time_control), (row[3], t.time_candidate)):
                assert numbers(text) == [x for x in time or () if x is not None]
            for name, chosen in ((row[6], t.chosen_control), (row[7], t.chosen_candidate)):
                assert all(f"{k} = {v}" in name for k, v in chosen.items())
        points = [(t.name, s, m) for t in tasks for s, m in t.curve_control]
        for (name, step, m), row in zip(
            points, rows(conditions.learning_table(c.name, c.trainability)), strict=True
        ):
            assert row[:2] == [name, str(step)] and numbers(row[2]) == [near(m)]
        g = c.generalization
        cells = {
            (i, j): text
            for (i, *r) in rows(conditions.matrix_table(c.name, g))
            for j, text in zip(
                [t.title for t in conditions.matrix_table(c.name, g).columns[1:]], r, strict=True
            )
        }
        for m in g.matrix:
            text = cells[f"defended on {m.defended_on}", f"attacked on {m.attacked_on}"]
            assert text.startswith(f"{m.status}: {m.breaches} of {m.n} breached")
            assert numbers(text)[2] == near(m.harm_at_end, 2)


def test_summary_flags_guidelines_and_cost(verdict):
    for c, row in zip(verdict.candidates, rows(conditions.summary_table(verdict)), strict=True):
        assert row[:2] == [c.name, c.overall] and row[3:7] == [
            getattr(c, n).status for n in answer.CONDITIONS
        ]
        assert numbers(row[2]) == [c.resistance.titer_lower, near(c.resistance.titer_lower_flops)]
        assert row[7].startswith(c.resistance.worst_attack)
    assert [(r[0], r[1], r[2]) for r in rows(conditions.guideline_table(verdict))] == [
        (g.name, g.status, g.evidence or f.ABSENT) for g in verdict.guidelines
    ]
    shown = {(r[0], r[1], r[3]) for r in rows(conditions.flag_table(verdict))}
    every = [*verdict.flags, *(x for c in (verdict.control, *verdict.candidates) for x in c.flags)]
    assert shown == {(x.severity, x.code.replace("_", " "), x.explanation) for x in every}
    for c, row in zip(verdict.candidates, rows(conditions.cost_table(verdict)), strict=True):
        assert (
            int(row[3]) == c.cost.steps
            and numbers(row[4]) == [c.cost.tokens]
            and numbers(row[5]) == [near(c.cost.flops)]
        )


def test_the_answer_names_budget_attack_and_certainty(verdict):
    for c in verdict.candidates:
        r, lines = c.resistance, dict(answer.answer(c))
        assert f"T = {r.budget} steps" in lines["Budget"] and lines["Limits"].startswith(
            "Non-adaptive battery"
        )
        if r.status == "fails":
            assert numbers(lines["Budget"])[0] == r.worst_breach_step and lines[
                "Attack"
            ].startswith(r.worst_attack)
            worst = next(a for a in r.attacks if a.attack == r.worst_attack)
            assert (
                numbers(lines["Attack"])[:2] == [worst.breaches, worst.n]
                and "confirmed on disjoint prompts" in lines["How sure"]
            )
        else:
            risks = [a.breach_upper for a in r.attacks if a.role == "attack"]
            assert near(max(risks), 2) in numbers(lines["How sure"])
        if c.overall == "fails" and r.status != "fails":
            assert lines["Because"] == f"Stability {c.stability.status}. {c.stability.claim}"
        assert (c.overall == "holds") == (
            "No breach up to" in lines["Budget"] and c.stability.status == "holds"
        )


def test_what_would_change_it_names_every_gap(verdict):
    for c in verdict.candidates:
        said = answer.changes(c)
        gaps = [(name, text) for name in answer.CONDITIONS for text in getattr(c, name).missing]
        assert all(gap in said for gap in gaps) and said
        if c.resistance.status == "holds":
            assert any("One confirmed breach" in text for _, text in said)
        lost = [b.name for b in c.stability.benchmarks if b.status == "fails"]
        assert bool(lost) == any(
            "surely worse than M" in text and all(n in text for n in lost) for _, text in said
        )
        other = [p for p, s in c.resistance.sensitivity.items() if s != c.resistance.status]
        assert all(any(f"φ = {p}" in text for _, text in said) for p in other)


def test_long_batteries_are_counted_not_spelled_out():
    assert answer.listed(["a"]) == "a" and answer.listed(list("ab")) == "a and b"
    assert (
        answer.listed(list("abcde")) == "a, b, c, d and e"
        and answer.listed(list("abcdefg")) == "a, b, c, d and 3 more"
    )


def test_fits_are_shown_as_description_only():
    from titer.verdicts.output.verdict import Descriptive

    c = example()[1].candidates[0]
    a = c.resistance.attacks[0].model_copy(
        update={
            "descriptive": (
                Descriptive(
                    kind="weibull",
                    median=21.5,
                    parameters={"lambda_": 30.0, "rho_": 1.5},
                    aic=12.25,
                ),
                Descriptive(kind="turnbull", median=None),
            )
        }
    )
    table = risk.fit_table(
        c.model_copy(update={"resistance": c.resistance.model_copy(update={"attacks": (a,)})})
    )
    assert rows(table) == [
        ["full_sft", "weibull", "21.5", "12.25", "lambda = 30, rho = 1.50"],
        ["full_sft", "turnbull", "beyond the data", "—", "—"],
    ]
    assert table.notes == ("Descriptive only: no verdict rests on a fit.",)


def test_intervals_in_flop_keep_their_open_ends():
    assert risk._flops(Interval(low=0.0, high=None, level=0.9)) == "unbounded (90\u00a0%)"
    assert numbers(risk._flops(Interval(low=2e9, high=None, level=0.9))) == [2e9, 0.9]
    assert numbers(
        risk._flops(Interval(low=2e9, high=4e9, level=0.9)).replace("[", "").replace(",", "")
    ) == [
        2e9,
        4e9,
        0.9,
    ]


def test_every_status_word_of_the_schema_has_a_sign():
    from titer.report import verdict_schema

    words = set(
        re.findall(
            r'"(holds|fails|inconclusive|invalid|not tested|met|not met|not applicable|'
            r'invalidates|blocks|warns|complete|incomplete)"',
            str(verdict_schema()).replace("'", '"'),
        )
    )
    assert len(words) == 13 and words <= set(SIGNS) and VERDICT_FORMAT == 1
    assert {tone(w) for w in ("holds", "fails", "inconclusive", "invalid", "not tested")} == {
        "good",
        "bad",
        "open",
        "void",
        "mute",
    }
