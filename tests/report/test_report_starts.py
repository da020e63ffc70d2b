"""What the report shows of edits, budgets of their own, checkpoints, and of models as they were
loaded and asked.
"""

import re

import pytest

from helpers import factory as synthetic
from helpers.report_example import make_study, make_view
from titer.records.record import StartFacts
from titer.report import model_card_section, render_html, render_markdown
from titer.report.content import conditions
from titer.report.content import models as starts
from titer.report.content import provenance as facts
from titer.report.content import resistance as evidence
from titer.report.content import sentences as words
from titer.report.content import summary as answer
from titer.report.drawing import figures
from titer.study.cell import CellStart
from titer.verdicts import judge

BREAKS, RESISTS, Make = synthetic.BREAKS, synthetic.RESISTS, synthetic.Make


def rows(table):
    return [[cell.text for cell in row] for row in table.rows]


def edited(after=0.02, **more):
    """(view, verdict) of a study with an attack in steps and an edit."""
    make = Make(
        attacks={"full_sft": {}, "prune": {"role": "attack"}}, methods={"prune": {"trains": False}}
    )
    make.attack("none", "full_sft", BREAKS).attack("defended", "full_sft", RESISTS, **more)
    make.edit("none", "prune", 0.9, flops=1e6).edit("defended", "prune", after, flops=1e6)
    view = make.view()
    return view, judge(view)


# -- edits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("after", "said", "outcome"),
    [(0.02, "no", "not broken"), (0.9, "yes", "broken by the edit"), (0.5, "not decided", "")],
)
def test_an_edit_gets_a_yes_or_a_no(after, said, outcome):
    _, verdict = edited(after)
    c = verdict.candidates[0]
    (row,) = rows(evidence.edit_table(c))
    assert row[:3] == ["prune", "attack", said]
    assert row[6:8] == [f"{after:.2f}", "1.00\u00a0×\u00a010⁶\u00a0FLOP"]
    assert [r[0] for r in rows(evidence.attack_table(c))] == ["full_sft"]
    assert "T = 16 optimizer steps" in evidence.attack_table(c).caption
    seeds = [r for r in rows(evidence.seed_table(c)) if r[0] == "prune"]
    assert len(seeds) == 5 and {r[2] for r in seeds} == {outcome or "not decided"}
    assert {r[3] for r in seeds} == {"—"}


def test_an_edit_is_not_drawn_against_a_budget():
    _, verdict = edited()
    c = verdict.candidates[0]
    assert [x.heading for x in figures.harm_figures(verdict, c)] == ["full_sft"]
    assert [x.heading for x in figures.survival_figures(verdict, c)] == ["full_sft"]
    # In FLOPs it can be set beside the others.
    assert "prune" in figures.budget_figure(verdict, c).summary


def test_an_edit_that_breaks_the_model_is_told_first():
    view, verdict = edited(0.9)
    c = verdict.candidates[0]
    lines = dict(answer.answer(c))
    assert lines["Budget"].startswith("Broken by 1 edit (1.00\u00a0×\u00a010⁶\u00a0FLOP), without")
    assert "τ is" not in lines["How sure"]
    assert conditions.worst_text(c) == "prune (breaks it without training)"
    for text in (render_html(view, verdict), render_markdown(view, verdict)):
        assert "Training-free edits of defended" in text
    card = model_card_section(verdict, "defended", view=view)
    assert "prune (training-free edit)" in card


def test_budgets_that_differ_are_all_named():
    view, verdict = edited()
    c = verdict.candidates[0]
    both = "16 optimizer steps (full_sft) and 1 edit (prune)"
    assert words.budget(c.resistance) == both
    for text in (
        dict(answer.answer(c))["Budget"],
        words.scope(c),
        dict(facts.design(view, verdict))["Budget T"],
        model_card_section(verdict, "defended", view=view),
        " ".join(t for _, t in answer.changes(c)),
    ):
        assert both in text
    assert dict(facts.design(view, verdict))["Probes at"] == "0, 1, 2, 4, 8, 16"


def test_a_budget_in_flops_is_named_as_such():
    costly = {"budget": {"flops": 6e9, "steps": 16}}
    make = Make(attacks={"full_sft": costly}).attack(
        "none", "full_sft", BREAKS[:5], probes=(0, 1, 2, 4, 6)
    )
    make.attack("defended", "full_sft", RESISTS[:5], probes=(0, 1, 2, 4, 6))
    verdict = judge(make.view())
    c = verdict.candidates[0]
    assert words.budget(c.resistance) == "6e+09 FLOPs (at most 16 optimizer steps)"
    text = render_markdown(make.view(), verdict)
    assert "T = 6e+09 FLOPs (at most 16 optimizer steps)" in text


def test_what_an_edit_cost_is_counted_with_the_runs_that_are_complete():
    view, verdict = edited()
    table = facts.attack_cost(view, verdict.candidates[0])
    assert [r[:3] for r in rows(table)] == [["full_sft", "5", "16"], ["prune", "5", "1"]]


# -- costs ----------------------------------------------------------------------------------------


def test_setup_and_forward_only_work_are_shown_wherever_costs_are():
    make = Make().attack("none", "full_sft", BREAKS)
    make.defense("defended", 1e12, setup_flops=2e11, forward_tokens=700, judge_calls=5)
    make.attack("defended", "full_sft", RESISTS)
    for digest, (_, made) in make.cells.items():
        if made[0].purpose == "attack":
            record = make.records[digest]
            spent = {
                "setup_flops": 3e8,
                "search_flops": 1e8,
                "forward_tokens": 40,
                "judge_calls": 2,
            }
            make.records[digest] = record.model_copy(
                update={"cost": record.cost.model_copy(update=spent)}
            )
    view = make.view()
    verdict = judge(view)
    (row,) = rows(conditions.cost_table(verdict))
    assert row[7:] == ["200\u00a0×\u00a010⁹\u00a0FLOP", "0\u00a0FLOP", "700", "5"]
    (row,) = rows(facts.attack_cost(view, verdict.candidates[0]))
    assert row[8:] == ["300\u00a0×\u00a010⁶\u00a0FLOP", "100\u00a0×\u00a010⁶\u00a0FLOP", "40", "2"]
    work = dict(facts.work(view))
    assert work["Of it before the first step"] == "203\u00a0×\u00a010⁹\u00a0FLOP"
    assert work["Of it choosing among variants"] == "1.00\u00a0×\u00a010⁹\u00a0FLOP"
    assert (work["Tokens of forward-only passes"], work["Texts scored by a judge"]) == (
        "1100",
        "25",
    )


# -- models ---------------------------------------------------------------------------------------


def loaded():
    """(view, verdict): a model from elsewhere with dropout, compared once, beside a plain M."""
    make = Make(candidates=[{"name": "outside", "model": "hub:a/b"}])
    plain = StartFacts(weights="m" * 64, parameters=1000)
    dressed = {"weights": "o" * 64, "parameters": 1200, "neutralised": {"dropout": "0.1 → 0"}}
    make.attack("none", "full_sft", BREAKS, start=plain)
    make.attack(
        "outside",
        "full_sft",
        RESISTS,
        start=StartFacts(**dressed),
        wording={"system": "You obey.", "wrapper": "<b>{prompt}</b>"},
    )
    far = StartFacts(**dressed, compared=True, distance=1.5)
    make.benchmark("outside", {"x": [1.0]}, {"x": synthetic.BENCH_FACTS["recall"]}, start=far)
    view = make.view()
    return view, judge(view)


def test_models_are_shown_as_they_were_loaded():
    view, verdict = loaded()
    assert rows(starts.loaded_table(view)) == [
        ["control M", "—", "m" * 64, "1000", "—", "—"],
        ["outside", "—", "o" * 64, "1200", "1.50", "dropout = 0.1 → 0"],
    ]
    assert {f.code for f in verdict.candidates[0].flags} >= {"neutralised", "unrelated_weights"}
    card = model_card_section(verdict, "outside", view=view)
    assert "o" * 64 in card and "dropout = 0.1 → 0" in card and "m" * 64 not in card
    for text in (render_html(view, verdict), render_markdown(view, verdict)):
        assert "Models as they were loaded" in text and "dropout = 0.1 → 0" in text


def test_how_models_were_asked_is_shown_where_not_plainly_and_escaped():
    view, verdict = loaded()
    assert rows(starts.wording_table(view)) == [
        ["attack", "outside", "full_sft", "system = You obey., wrapper = <b>{prompt}</b>", "5"]
    ]
    page, text = render_html(view, verdict), render_markdown(view, verdict)
    assert "How models were asked, where not plainly" in page and "<b>{prompt}" not in page
    assert "&lt;b>{prompt}&lt;/b>" in text and "&lt;b&gt;{prompt}&lt;/b&gt;" in page
    plain = make_view(make_study())
    assert not starts.wording_table(plain)


def test_models_that_methods_read_are_named_too():
    view, _ = loaded()
    planned = view.plan.cells[0]
    start = planned.start.model_copy(
        update={"ref": type(planned.start.ref)(source="hub", name="c/embedder")}
    )
    cell = planned.cell.model_copy(update={"models": {"embedding": CellStart(model="e" * 16)}})
    other = planned.model_copy(update={"cell": cell, "models": {"embedding": start}})
    plan = view.plan.model_copy(update={"cells": (other, *view.plan.cells[1:])})
    found = rows(starts.models(type(view)(view.study, plan, view.records)))
    assert ["hub:c/embedder", "e" * 16] in found


def test_several_checkpoints_are_told_apart():
    spec = {"name": "c", "defense": "d", "steps": 1, "seeds": [5, 6, 7, 8, 9]}
    make = Make(candidates=[spec]).attack("none", "full_sft", BREAKS)
    make.defense("c")
    for i, seed in enumerate(range(5)):
        start = StartFacts(weights=f"w{i}", parameters=10)
        make.attack("c", "full_sft", RESISTS, seeds=[seed], checkpoint=5 + i, start=start)
    view = make.view()
    verdict = judge(view)
    assert [r[:3] for r in rows(starts.loaded_table(view))] == [
        ["c", str(5 + i), f"w{i}"] for i in range(5)
    ]
    c = verdict.candidates[0]
    assert words.about(c) == "this method (5 checkpoints, one per attack seed)"
    card = model_card_section(verdict, "c", view=view)
    assert "about this method" in card and "the method that made this checkpoint" not in card
    assert conditions.cost_table(verdict).notes == ("Of several checkpoints, the mean over them.",)
    assert not re.search(
        r"about this checkpoint", render_markdown(view, verdict).split("## Cost")[0]
    )
