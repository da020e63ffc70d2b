"""What the report takes from records and plan: sums and medians done again here, and nothing about
somebody's disk.
"""

import html
import re
import statistics
import time

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from helpers.report_example import example, hostile, make_study, make_verdict, make_view, whole
from titer.records.record import Cost, Environment, MeasureFacts, ProbeRecord, Reading
from titer.records.view import RunView
from titer.report import model_card_section, render_html, render_markdown, write_report
from titer.report import numbers as f
from titer.report.content import conditions
from titer.report.content import models as starts
from titer.report.content import provenance as facts
from titer.report.content import sentences as words
from titer.study.cell import BEFORE_ALIGNMENT, Cell, Planned, Role, Start
from titer.study.reference import ModelRef


def test_work_adds_up():
    view, _ = whole()
    records = view.records.values()
    said = dict(facts.work(view))
    seconds = sum(r.cost.seconds for r in records)
    assert said["Records"] == str(len(records)) and said["Cells planned"] == str(
        len(view.plan.cells)
    )
    assert said["Wall time, training"] == f.seconds(seconds)
    assert said["Training compute"] == f.flops(sum(r.cost.flops for r in records))
    assert said["Outcomes"] == f"{len(records)} reached budget"
    by_purpose = {r[0].text: int(r[1].text) for r in facts.work_by_purpose(view).rows}
    attacked = {p.digest for p in view.plan.cells for role in p.roles if role.purpose == "attack"}
    assert by_purpose["resistance"] == len(attacked) and by_purpose["building M*"] == 9


def test_money_needs_a_price():
    study = make_study()
    assert "Money at the stated price" not in dict(facts.work(make_view(study)))
    priced = study.model_copy(
        update={"runtime": study.runtime.model_copy(update={"price_per_hour": 2.0})}
    )
    view = make_view(priced)
    hours = sum(r.cost.seconds + r.probe_seconds for r in view.records.values()) / 3600
    assert float(
        dict(facts.work(view))["Money at the stated price"].split(" ")[0]
    ) == pytest.approx(2 * hours, rel=0.01)


def test_what_the_attacker_paid_is_a_median_over_whole_runs():
    view, verdict = example()
    a = verdict.candidates[0].resistance.attacks[0]
    changed = dict(view.records)
    for k, t in enumerate(a.trajectories):
        r = changed[t.digest]
        cost = r.cost.model_copy(update={"tokens": 1000 * (k + 1)})
        changed[t.digest] = r.model_copy(
            update={"cost": cost, "outcome": "stopped_broken" if k == 4 else r.outcome}
        )
    row = [
        c.text
        for c in facts.attack_cost(
            type(view)(view.study, view.plan, changed), verdict.candidates[0]
        ).rows[0]
    ]
    assert (
        row[:2] == [a.attack, "4"]
        and row[4] == f"{statistics.median([1000, 2000, 3000, 4000]):.0f}"
    )
    assert row[7] == "10.0\u00a0%"  # 100 of 1000 parameters


def test_two_machines_are_both_named():
    view, _ = example()
    name, record = next(iter(view.records.items()))
    other = record.model_copy(
        update={
            "environment": Environment(
                titer="0.1.0", cpu="Another CPU", packages={"torch": "2.9.1"}
            )
        }
    )
    said = dict(facts.machine(type(view)(view.study, view.plan, {**view.records, name: other})))
    assert said["CPU"] == "Another CPU (1 cell); Example CPU (2 cores) (29 cells)"
    assert said["torch"] == "2.9.0 (29 cells); 2.9.1 (1 cell)" and said["Threads per cell"] == "1"
    assert dict(facts.machine(make_view(make_study(), finished=False))) == {
        "Environment": "no record yet"
    }


def test_the_design_is_the_study():
    view, verdict = whole()
    said, r = dict(facts.design(view, verdict)), view.study.resistance
    assert (
        said["Budget T"] == f"{r.budget} optimizer steps"
        and said["Probes at"] == "0, 1, 2, 4, 8, 16"
    )
    assert (
        said["Threshold φ"] == f"{r.phi:g} — {r.phi_reason}"
        and said["Confirmation seeds"] == "0–4 (n = 5)"
    )
    assert said["Best attainable verdict"] == verdict.attainable
    assert dict(facts.disjointness(view)) == {
        "sizes: harm/eval": "200",
        "exact overlap": "0",
        "near duplicates: harm/attack~harm/eval": "3",
    }
    assert yaml.safe_load(facts.study_yaml(view))["resistance"]["phi"] == r.phi


def test_which_weights_were_attacked():
    view, _ = whole()
    cells = {
        p.cell.model
        for p in view.plan.cells
        for role in p.roles
        if (role.purpose, role.candidate) == ("attack", "mute")
    }
    said = dict(starts.tested(view, "mute"))
    assert set(said["Its content hash"].split(", ")) == cells
    (built,) = {
        p.digest
        for p in view.plan.cells
        for role in p.roles
        if (role.purpose, role.candidate, role.defended_on) == ("defense", "mute", "")
    }
    assert said["Model"] == "tiny:aligned"
    assert said["Changed by"].endswith(f" (cell {built})") and starts.tested(view, "nobody") == []


def test_notices_come_before_the_numbers():
    study = make_study()
    view = make_view(study)
    kinds = [
        k
        for k, _ in words.notices(
            type(view)(study, view.plan, view.records, ("cells/ab.json is damaged",)),
            make_verdict(study),
        )
    ]
    assert kinds == ["warns", "invalidates"]
    released = make_verdict(study, grade="release", status="invalid", status_reason="unfit")
    assert words.notices(view, released) == [("invalid", "This study is invalid. unfit")]


def test_a_flag_of_a_candidate_says_whose_it_is_and_is_told_once():
    _, verdict = example(candidates=("guard", "vaccine"))
    twice = verdict.model_copy(update={"flags": verdict.flags * 2})
    assert conditions.all_flags(twice) == conditions.all_flags(verdict)
    severities = [x.severity for x in conditions.all_flags(verdict)]
    assert severities == sorted(severities, key=["invalidates", "blocks", "warns"].index)


names = st.from_regex(r"secret[a-z]{3,8}", fullmatch=True)


@given(
    st.lists(names, min_size=1, max_size=4),
    st.sampled_from(["/{}", "~/{}", "path:/home/{}", "'/{}'", "C:\\{}"]),
)
def test_of_a_local_path_only_the_last_part_is_left(folders, shape):
    apart = "\\" if shape.startswith("C") else "/"
    text = shape.format(apart.join([*folders, "model"]))
    for said in (f.without_paths(f"see {text} there"), f.scrubbed({text: [text]})):
        assert "secret" not in str(said) and "model" in str(said)


def test_local_paths_leak_nowhere(tmp_path):
    where = "/home/secretuser/secretplace/model"
    view, verdict = example()
    c = verdict.candidates[0]
    a = c.resistance.attacks[0].model_copy(
        update={"settings": {"adapter": where}, "reason": f"see {where}"}
    )
    resistance = c.resistance.model_copy(
        update={"attacks": (a,), "missing": (f"read {where}",), "claim": where}
    )
    stained = c.model_copy(
        update={
            "defense": f"path:{where}",
            "settings": {"data": where},
            "headline": f"of {where}",
            "resistance": resistance,
        }
    )
    flag = verdict.flags[0].model_copy(update={"explanation": f"in {where}", "where": where})
    verdict = verdict.model_copy(
        update={"candidates": (stained,), "flags": (flag,), "status_reason": f"at {where}"}
    )
    study = view.study.model_copy(update={"description": f"from {where}"})
    study = study.model_copy(
        update={"resistance": study.resistance.model_copy(update={"phi_reason": f"as in {where}"})}
    )
    plan = view.plan.model_copy(
        update={"sources": {"harm": {"path": where}}, "disjointness": {"proof": where}}
    )
    view = type(view)(study, plan, view.records, (f"{where}/cells/ab.json is damaged",))
    paths = write_report(view, verdict, tmp_path)
    for text in (
        *(p.read_text("utf-8") for p in (paths.html, paths.markdown, paths.json)),
        model_card_section(verdict, "guard", view=view),
    ):
        assert "secret" not in text and "/home" not in text and "…/model" in text


@pytest.mark.parametrize("made", [whole, lambda: hostile()[:2]])
def test_the_same_run_gives_the_same_report(made):
    view, verdict = made()
    assert render_html(view, verdict) == render_html(view, verdict) and render_markdown(
        view, verdict
    ) == render_markdown(view, verdict)
    shuffled = type(view)(
        view.study, view.plan, dict(reversed(view.records.items())), view.problems
    )
    assert render_html(shuffled, verdict) == render_html(
        view, verdict
    )  # the order of work leaves no trace
    assert render_markdown(shuffled, verdict) == render_markdown(view, verdict)


def test_transcripts_are_hidden_unless_asked_for_and_never_in_markdown(tmp_path):
    view, verdict = example()
    hidden = write_report(view, verdict, tmp_path / "a")
    assert 'id="transcripts"' not in hidden.html.read_text("utf-8")
    row = {"cell": "abc", "step": 4, "label": "harm", "output": "<b>a secret output</b>"}
    shown = write_report(view, verdict, tmp_path / "b", transcripts=[row])
    assert "&lt;b&gt;a secret output&lt;/b&gt;" in shown.html.read_text(
        "utf-8"
    ) and "#transcripts" in shown.html.read_text("utf-8")
    assert all("secret output" not in p.read_text("utf-8") for p in (shown.markdown, shown.json))
    assert shown.markdown.read_text("utf-8") == hidden.markdown.read_text("utf-8")


def test_a_study_of_a_thousand_trajectories_is_quick_and_small():
    view, verdict = example(
        candidates=[f"c{k}" for k in range(5)], attacks=[f"a{k}" for k in range(8)], n=21
    )
    runs = sum(
        len(a.trajectories)
        for c in (verdict.control, *verdict.candidates)
        for a in c.resistance.attacks
    )
    start = time.process_time()
    page, text = render_html(view, verdict), render_markdown(view, verdict)
    spent = time.process_time() - start
    assert (
        runs >= 1000
        and spent < 8
        and len(page.encode()) < 2_500_000
        and len(text.encode()) < 1_000_000
    )


def test_what_alignment_did_is_shown_only_where_both_sides_were_read_alike():
    view = make_view(make_study())
    assert not facts.alignment(view)  # the study aligns nothing
    template = next(iter(view.records.values()))

    def add(view, purpose, candidate, values):
        cell = Cell(model=f"{purpose}-{candidate}")
        readings = tuple(
            Reading(label=k, value=v, n=n, se=None, outcomes=()) for k, (v, n) in values.items()
        )
        measure = {
            k: MeasureFacts(name=k, version=1, higher="worse", harm_construct="none")
            for k in values
        }
        record = template.model_copy(
            update={
                "digest": cell.digest,
                "cell": cell,
                "measures": measure,
                "probes": (ProbeRecord(step=0, cost=Cost(), readings=readings),),
            }
        )
        planned = Planned(
            digest=cell.digest,
            cell=cell,
            roles=(Role(purpose=purpose, candidate=candidate),),
            start=Start(ref=ModelRef(source="path", name="m")),
        )
        plan = view.plan.model_copy(update={"cells": (*view.plan.cells, planned)})
        return RunView(study=view.study, plan=plan, records={**view.records, cell.digest: record})

    view = add(
        view,
        "stability",
        BEFORE_ALIGNMENT,
        {"over_refusal": (0.0, 150), "other": (0.5, 9), "harm": (0.9, 2)},
    )
    view = add(view, "stability", "none", {"over_refusal": (0.32, 150), "other": (0.4, 8)})
    shown = {row[0].text: [c.text for c in row[1:]] for row in facts.alignment(view).rows}
    assert shown == {
        "over refusal": ["0", "0.320", "150"],
        "harm": ["0.900", "0", "2"],
    }  # other items are no pair


@pytest.mark.parametrize("made", [whole, example])
def test_no_raw_json_and_no_wrong_plural_is_shown(made):
    view, verdict = made()
    page = re.sub(r"(?s)<style>.*?</style>|<pre>.*?</pre>", "", render_html(view, verdict))
    shown = html.unescape(re.sub(r"<[^>]+>", " ", page))
    for text in (shown, render_markdown(view, verdict).split("<details>")[0]):
        assert not re.search(r"[{\[]\s*['\"{\[]|['\"]: ", text)
        wrong = r"\b1 (seeds|steps|cells|times|prompts|values)\b(?! of)|\w\(s\)"
        assert not re.search(wrong, text), re.search(wrong, text)


def test_settings_are_written_as_a_person_would():
    settings = {
        "lr": 1e-4,
        "batch_size": 8,
        "layers": None,
        "targets": [],
        "betas": (0.9, 0.999),
        "alpha": 2000000.0,
        "judge": {"name": "words", "settings": {"max_new_tokens": 6}},
        "model": {"source": "hub", "name": "org/name", "revision": "main", "task": "causal"}
        | {"trust_remote_code": False},
        "parts": [{"attack": "prune", "settings": {"sparsity": 0.2}, "steps": None}],
    }
    assert f.settings(settings) == (
        "lr = 1e-4, batch size = 8, betas = (0.9, 0.999), alpha = 2000000, judge = words (max new "
        "tokens = 6), model = hub:org/name@main, parts = (prune (sparsity = 0.2))"
    )
    assert f.settings({"layers": None}) == f.ABSENT == f.settings({})
