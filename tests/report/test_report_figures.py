"""Coordinates in the figures, computed again from the verdict by the formulas of the axes, not by
the code that drew.
"""

import itertools
import math
import re
import xml.etree.ElementTree as ET

import pytest

from helpers.report_example import example, make_study, minimal_verdict, whole
from titer.report import render_html
from titer.report.drawing import figures, svg
from titer.verdicts.output.verdict import Interval

LEFT, TOP, BOTTOM = 50, 10, 176
"""The plot area of a panel, in units of its viewBox (320, 420 or 860 × 214)."""


def right_of(root):
    return int(root.get("viewBox").split()[2]) - 12


def across(step, end, right=308):
    return LEFT + (right - LEFT) * math.log(1 + step) / math.log(1 + end)


def up(value, low=0.0, high=1.0):
    return BOTTOM - (BOTTOM - TOP) * (value - low) / (high - low)


def drawn(figure):
    """Elements of the chart as (tag, class, attributes)."""
    root = ET.fromstring(str(figure.svg))
    assert root.get("viewBox").startswith("0 0 ") and root.get("role") == "img"
    return root, [(e.tag, e.get("class") or "", e.attrib) for e in root.iter() if e is not root]


def points(attributes):
    return [tuple(map(float, p.split(","))) for p in attributes["points"].split()]


def close(found, wanted):
    assert len(found) == len(wanted)
    assert all(
        a == pytest.approx(b, abs=0.051)
        for f, w in zip(found, wanted, strict=True)
        for a, b in zip(f, w, strict=True)
    ), (found, wanted)


@pytest.fixture(scope="module", params=["whole", "invented"])
def verdict(request):
    return whole()[1] if request.param == "whole" else example()[1]


def test_harm_curves(verdict):
    base = {a.attack: a for a in verdict.control.resistance.attacks}
    for c in verdict.candidates:
        for a, figure in zip(c.resistance.attacks, figures.harm_figures(verdict, c), strict=True):
            root, parts = drawn(figure)
            right = right_of(root)
            for who, runs in (
                ("control", base[a.attack].trajectories),
                ("candidate", a.trajectories),
            ):
                lines = [
                    points(x) for tag, css, x in parts if tag == "polyline" and css == f"{who} thin"
                ]
                assert len(lines) == len(runs)
                for line, t in zip(lines, runs, strict=True):
                    close(line, [(across(p.step, a.budget, right), up(p.harm)) for p in t.probes])
            dots = [
                (float(x["cx"]), float(x["cy"]))
                for tag, css, x in parts
                if tag == "circle" and css == "candidate full"
            ]
            hit = [
                next(p for p in t.probes if p.step == t.first_breached)
                for t in a.trajectories
                if t.first_breached is not None
            ]
            close(dots, [(across(p.step, a.budget, right), up(p.harm)) for p in hit])
            level = next(x["d"] for tag, css, x in parts if css == "phi")
            assert float(level.split()[1].split("H")[0]) == pytest.approx(
                up(c.resistance.phi), abs=0.051
            )
            ticks = [e for e in ET.fromstring(str(figure.svg)).iter("text") if e.get("y") == "191"]
            assert ticks[-1].text == str(a.budget) and float(ticks[-1].get("x")) == right
            for tick in ticks:
                assert float(tick.get("x")) == pytest.approx(
                    across(int(tick.text), a.budget, right), abs=0.051
                )


def test_survival_bands(verdict):
    base = {a.attack: a for a in verdict.control.resistance.attacks}
    for c in verdict.candidates:
        for a, figure in zip(
            c.resistance.attacks, figures.survival_figures(verdict, c), strict=True
        ):
            root, parts = drawn(figure)
            right = right_of(root)
            for who, curve, shift in (
                ("candidate", a.curve, 0),
                ("control", base[a.attack].curve, 3),
            ):
                bars = [x["d"] for _, css, x in parts if css == f"{who} bar"]
                assert len(bars) == len(curve)
                for d, p in zip(bars, curve, strict=True):
                    start, bottom = d[1:].split("V")[0].split(" "), d.split("V")[1].split("M")[0]
                    wanted = (
                        across(p.step, a.budget, right) + shift,
                        up(1 - p.low),
                        up(1 - p.high),
                    )
                    close([(float(start[0]), float(start[1]), float(bottom))], [wanted])


def test_learning_curves_and_the_target(verdict):
    for c in verdict.candidates:
        for t, figure in zip(c.trainability.tasks, figures.learning_figures(c), strict=True):
            root, parts = drawn(figure)
            right = right_of(root)
            end = max(s for s, _ in t.curve_control)
            for who, curve in (("control", t.curve_control), ("candidate", t.curve_candidate)):
                line = next(points(x) for _, css, x in parts if css == f"{who} mean")
                close(
                    line, [(across(s, end, right), up(v)) for s, v in curve]
                )  # shares: the axis is 0 to 1
            level = next(x["d"] for _, css, x in parts if css == "phi")
            assert float(level.split()[1].split("H")[0]) == pytest.approx(up(t.target), abs=0.051)


def test_forest_in_units_of_the_margin(verdict):
    left, right = 180, 844  # −3 and +3 margins

    def place(value):
        return left + (right - left) * (min(max(value, -3), 3) + 3) / 6

    for c in verdict.candidates:
        _, parts = drawn(figures.forest_figure(c))
        dots = [float(x["cx"]) for tag, _, x in parts if tag == "circle"]
        bars = [x["d"] for _, css, x in parts if css == "candidate bar"]
        for b, dot, bar in zip(c.stability.benchmarks, dots, bars, strict=True):
            assert dot == pytest.approx(place(b.difference / b.margin), abs=0.051)
            ends = float(bar[1:].split(" ")[0]), float(bar.split("H")[1])
            high = 3 if b.interval.high is None else b.interval.high / b.margin
            close([ends], [(place(b.interval.low / b.margin), place(high))])
        failing = next(x["d"] for _, css, x in parts if css == "phi")
        assert float(failing[1:].split(" ")[0]) == pytest.approx(place(-1), abs=0.051)


def test_a_text_alternative_says_the_result(verdict):
    for c in verdict.candidates:
        base = {a.attack: a for a in verdict.control.resistance.attacks}
        for a, figure in zip(c.resistance.attacks, figures.harm_figures(verdict, c), strict=True):
            root, _ = drawn(figure)
            title, desc = root.find("title").text, root.find("desc").text
            assert a.attack in title and c.name in title and desc == figure.summary
            assert (
                f"{a.breaches} of {a.n} seeds breached" in desc
                and f"control: {base[a.attack].breaches} of" in desc
            )
            assert root.get("aria-labelledby").split() == [
                root.find("title").get("id"),
                root.find("desc").get("id"),
            ]


def test_names_that_differ_in_punctuation_get_ids_of_their_own():
    assert (
        len({figures._ident("harm", name, "x") for name in ("a.b", "a-b", "a b", "a_b", "<a>b")})
        == 5
    )


def test_unknown_readings_and_open_intervals_are_drawn_as_such():
    panel = svg.Panel(8, 0, 1, (0, 8), x_label="x", y_label="y")
    panel.line([(0, 0.1), (2, math.nan), (4, 0.3), (8, None)], "candidate")
    assert panel.parts == []  # single points are no line
    _, verdict = example()
    c = verdict.candidates[0]
    b = c.stability.benchmarks[0].model_copy(
        update={"interval": Interval(low=None, high=None, level=0.9)}
    )
    c = c.model_copy(update={"stability": c.stability.model_copy(update={"benchmarks": (b,)})})
    arrows = [
        x
        for tag, css, x in drawn(figures.forest_figure(c))[1]
        if tag == "path" and css == "candidate full"
    ]
    assert len(arrows) == 2
    nothing = b.model_copy(update={"difference": None})
    assert (
        figures.forest_figure(
            c.model_copy(
                update={"stability": c.stability.model_copy(update={"benchmarks": (nothing,)})}
            )
        )
        is None
    )


def test_ticks_do_not_run_into_each_other():
    for grid in ((0, 1, 2, 4, 8, 16, 32, 64), tuple(range(0, 1001, 10)), (0, 1), (0, 20_000)):
        panel = svg.Panel(grid[-1], 0, 1, grid, x_label="x", y_label="y")
        ticks = panel._x_ticks()
        assert ticks[0] == 0 and ticks[-1] == grid[-1] and set(ticks) <= set(grid)
        gaps = [across(b, grid[-1]) - across(a, grid[-1]) for a, b in itertools.pairwise(ticks)]
        assert all(gap >= 30 for gap in gaps)


def test_breach_budgets_lie_on_one_logarithmic_axis():
    rows = [svg.RangeRow("a", [(1e9, 1e10), (0.0, None)], [(1e8, 1e9)])]
    drawn = str(svg.ranges("i", "t", "d", rows, x_label="FLOP"))
    bars = [
        tuple(map(float, m))
        for m in re.findall(r'(?:bar|thin)" d="M([\d.]+) [\d.]+H([\d.]+)"', drawn)
    ]
    left, right = 14, 840  # the axis runs over the decades 10⁸ to 10¹⁰
    middle = (left + right) / 2
    assert bars == [(middle, right), (left, right), (left, middle)]
    assert drawn.count('z"/>') == 1  # one arrow: one seed never breached
    assert 'role="img"' in drawn and "<title" in drawn and "<desc" in drawn


def test_the_cheapest_attack_is_told_in_words_too():
    _, verdict = example()
    figure = figures.budget_figure(verdict, verdict.candidates[0])
    assert "full_sft: breach by 24.0 × 10⁹" in figure.summary.replace(
        "\xa0", " "
    )  # 16 steps of 1.5e9
    assert "weight_noise" not in figure.summary  # a reference is no attack


def test_figures_fill_the_page_and_have_a_form_for_telephones():
    """One figure spans the page, two or four half of it; then there is a narrow one too."""
    view, verdict = example(attacks=("full_sft",))
    (one,) = figures.harm_figures(verdict, verdict.candidates[0])
    assert 'viewBox="0 0 860' in one.svg and 'viewBox="0 0 320' in one.narrow
    assert set(re.findall(r' id="([^"]+)"', one.svg)).isdisjoint(
        re.findall(r' id="([^"]+)"', one.narrow)
    )
    assert one.narrow.count("<polyline") == one.svg.count("<polyline") > 0
    page = render_html(view, verdict)
    assert page.count('<div class="panels one">') >= 2 and one.narrow in page and one.svg in page
    _, verdict = example(attacks=("full_sft", "lora_sft", "prune"))
    three = figures.harm_figures(verdict, verdict.candidates[0])
    assert len(three) == 3 and all(x.narrow is None and 'viewBox="0 0 320' in x.svg for x in three)


def test_nothing_read_no_figure():
    study = make_study()
    verdict = minimal_verdict(study)
    assert figures.budget_figure(verdict, verdict.candidates[0]) is None
