"""The figures: harm against budget, share of seeds not breached, learning curves. Each with the
numbers it shows.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from markupsafe import Markup

from titer.report import numbers as f
from titer.report.content import sentences
from titer.report.content.resistance import harm_table, share_table
from titer.report.drawing import svg
from titer.report.table import Table
from titer.study.base import digest
from titer.verdicts.output.verdict import (
    AttackVerdict,
    CandidateVerdict,
    StudyVerdict,
    TaskVerdict,
    Trajectory,
)


@dataclass(frozen=True)
class Figure:
    """A chart, its heading and one-line summary, and the tables of all numbers in it. narrow: the
    same chart for narrow screens, where `svg` is a wide one.
    """

    heading: str
    summary: str
    svg: Markup
    tables: tuple[Table, ...] = ()
    narrow: Markup | None = None


COLUMNS = {1: "one", 2: "two", 4: "two"}
"""How many figures share a row of the page, by their number; else three."""


def _drawn(
    n: int, ident: str, draw: Callable[[int, str], Markup], narrow: int = svg.NARROW
) -> tuple[Markup, Markup | None]:
    """The chart at the width it has as one of n figures, and for narrow screens. draw: (width, id)
    → chart.
    """
    width = {"one": svg.WIDE, "two": svg.HALF}.get(COLUMNS.get(n, ""), narrow)
    if width == narrow:
        return draw(width, ident), None
    return draw(width, ident), draw(narrow, f"{ident}-narrow")


def harm_figures(verdict: StudyVerdict, candidate: CandidateVerdict) -> list[Figure]:
    """Per attack: f over budget, every seed a line; the control dashed behind the candidate."""
    control = {a.attack: a for a in verdict.control.resistance.attacks}
    shown = [
        (a, base)
        for a in candidate.resistance.attacks
        for base in (control.get(a.attack),)
        if not a.edit and (a.trajectories or (base and base.trajectories))
    ]  # an edit has no budget to draw f against
    return [_harm_figure(candidate, a, base, len(shown)) for a, base in shown]


def _harm_figure(
    candidate: CandidateVerdict, a: AttackVerdict, base: AttackVerdict | None, n: int
) -> Figure:
    name, phi = sentences.reading_name(candidate), candidate.resistance.phi
    grid = sorted({*_grid(a, base), a.budget})  # T is shown even where every run ended before it
    text = _harm_summary(a, base, candidate.name)
    title = f"{name} against budget, attack {a.attack}, candidate {candidate.name}"

    def draw(width: int, ident: str) -> Markup:
        x_label = "budget, optimizer steps"
        panel = svg.Panel(a.budget, 0, 1, grid, x_label=x_label, y_label=name, width=width)
        panel.level(phi, f"φ = {f.exact(phi)}")
        for t in base.trajectories if base else ():
            _draw(panel, t, "control")
        for t in a.trajectories:
            _draw(panel, t, "candidate")
        return panel.render(ident, title, text)

    drawn, narrow = _drawn(n, _ident("harm", candidate.name, a.attack), draw)
    return Figure(a.attack, text, drawn, (harm_table(a, candidate.name),), narrow)


def control_tables(verdict: StudyVerdict) -> list[Table]:
    """The control's numbers, once for all candidates' figures."""
    return [
        t
        for a in verdict.control.resistance.attacks
        if a.trajectories and (t := harm_table(a, "Control M"))
    ]


def _draw(panel: svg.Panel, t: Trajectory, who: str) -> None:
    panel.line([(p.step, p.harm) for p in t.probes], f"{who} thin")
    at = {p.step: p for p in t.probes}
    for step in t.ambiguous:
        if step in at and (harm := at[step].harm) is not None:
            panel.mark(step, harm, "ring", f"{who} open")
    first, last = t.first_breached, t.last_resisting
    if first is not None:
        if first in at and (harm := at[first].harm) is not None:
            panel.mark(first, harm, "dot" if who == "candidate" else "square", f"{who} full")
    elif last is not None and last in at and (harm := at[last].harm) is not None:
        panel.mark(last, harm, "right", f"{who} open")
    if t.collapsed_at in at and (harm := at[t.collapsed_at].harm) is not None:
        panel.mark(t.collapsed_at, harm, "cross", f"{who} open")


def _harm_summary(a: AttackVerdict, base: AttackVerdict | None, name: str) -> str:
    parts = [f"{name}: {a.breaches} of {f.counted(max(a.n, a.breaches), 'seed')} breached"]
    ends = [t.probes[-1].harm for t in a.trajectories if t.probes and t.probes[-1].harm is not None]
    if ends:
        parts.append(f"f at the last probe {f.fixed(min(ends))} to {f.fixed(max(ends))}")
    if base:
        parts.append(f"control: {base.breaches} of {max(base.n, base.breaches)} breached")
    return "; ".join(parts) + "."


def survival_figures(verdict: StudyVerdict, candidate: CandidateVerdict) -> list[Figure]:
    """Per attack: share of seeds not breached at each common probe, with exact simultaneous
    bands.
    """
    control = {a.attack: a for a in verdict.control.resistance.attacks}
    shown = [a for a in candidate.resistance.attacks if a.curve and not a.edit]
    return [_share_figure(candidate, a, control.get(a.attack), len(shown)) for a in shown]


def _share_figure(
    candidate: CandidateVerdict, a: AttackVerdict, base: AttackVerdict | None, n: int
) -> Figure:
    grid, last = sorted({p.step for p in a.curve}), a.curve[-1]
    text = (
        f"At step {last.step}, {last.n - last.breached} of {f.counted(last.n, 'seed')} not "
        f"breached; exact band {f.fixed(1 - last.high)} to {f.fixed(1 - last.low)}."
    )
    title = f"Share of seeds not breached, attack {a.attack}, candidate {candidate.name}"

    def draw(width: int, ident: str) -> Markup:
        x_label, y_label = "budget, optimizer steps", "seeds not breached"
        panel = svg.Panel(a.budget, 0, 1, grid, x_label=x_label, y_label=y_label, width=width)
        if base and base.curve:
            _draw_share(panel, base, "control", 3)
        _draw_share(panel, a, "candidate", 0)
        return panel.render(ident, title, text)

    drawn, narrow = _drawn(n, _ident("share", candidate.name, a.attack), draw)
    tables = (
        share_table(a, candidate.name),
        *([share_table(base, "Control M")] if base and base.curve else []),
    )
    return Figure(a.attack, text, drawn, tables, narrow)


def _draw_share(panel: svg.Panel, a: AttackVerdict, who: str, shift: float) -> None:
    points = [
        (p.step, 1 - p.breached / p.n if p.n else None, 1 - p.high, 1 - p.low) for p in a.curve
    ]
    panel.line([(s, v) for s, v, _, _ in points], f"{who} thin faint")
    for step, value, low, high in points:
        panel.whisker(step, low, high, f"{who} bar", shift)
        if value is not None:
            panel.mark(step, value, "dot" if who == "candidate" else "square", f"{who} full", shift)
    if who == "candidate":
        for p in a.curve:
            if p.collapsed and p.n:
                panel.mark(p.step, p.collapsed / p.n, "cross", f"{who} open")


def budget_figure(verdict: StudyVerdict, candidate: CandidateVerdict) -> Figure | None:
    """Every seed's breach budget in training FLOPs, attack by attack: the axis on which attacks are
    compared.
    """
    control = {a.attack: a for a in verdict.control.resistance.attacks}
    rows, words_ = [], []
    for a in candidate.resistance.attacks:
        base = control.get(a.attack)
        ours, theirs = _spans(a), _spans(base)
        if a.role == "attack" and (ours or theirs):
            rows.append(svg.RangeRow(a.attack, ours, theirs))
            least = min((high for _, high in ours if high is not None), default=None)
            by = "no breach" if least is None else f"breach by {f.flops(least)} at the earliest"
            words_.append(f"{a.attack}: {by}")
    if not rows:
        return None
    title = f"Breach budgets in training FLOPs, candidate {candidate.name} and control"
    text = "; ".join(words_) + "."

    def draw(width: int, ident: str) -> Markup:
        return svg.ranges(ident, title, text, rows, x_label="training compute, FLOP", width=width)

    drawn, narrow = _drawn(1, _ident("flops", candidate.name), draw, svg.NARROW_LIST)
    return Figure("Which attack is cheapest", text, drawn, narrow=narrow)


def _spans(a: AttackVerdict | None) -> list[tuple[float, float | None]]:
    """(l, u] in FLOPs per seed; l is 0 where even the probe at 0 does not resist."""
    return [
        (t.last_resisting_flops or 0.0, t.first_breached_flops)
        for t in (a.trajectories if a else ())
        if t.probes
    ]


def learning_figures(candidate: CandidateVerdict) -> list[Figure]:
    """Per harmless task: mean score over steps, M and M*."""
    shown = [
        (t, values)
        for t in candidate.trainability.tasks
        if (values := [v for _, v in (*t.curve_control, *t.curve_candidate) if v is not None])
    ]
    return [_learning_figure(candidate, t, values, len(shown)) for t, values in shown]


def _learning_figure(
    candidate: CandidateVerdict, t: TaskVerdict, values: list[float], n: int
) -> Figure:
    grid = sorted({s for s, _ in (*t.curve_control, *t.curve_candidate)})
    low, high = _range(t, values)
    text = (
        f"At the end M {f.number(t.control_final)}, {candidate.name} "
        f"{f.number(t.candidate_final)}; {t.status}."
    )
    title = f"Learning curve, task {t.name}, candidate {candidate.name}"

    def draw(width: int, ident: str) -> Markup:
        x_label, y_label = "optimizer steps", t.unit or "score"
        panel = svg.Panel(max(grid), low, high, grid, x_label=x_label, y_label=y_label, width=width)
        if t.target is not None:
            panel.level(t.target, "target")
        for points, who, shape in (
            (t.curve_control, "control", "square"),
            (t.curve_candidate, "candidate", "dot"),
        ):
            panel.line(points, f"{who} mean")
            for step, value in points:
                if value is not None:
                    panel.mark(step, value, shape, f"{who} full")
        return panel.render(ident, title, text)

    drawn, narrow = _drawn(n, _ident("learn", candidate.name, t.name), draw)
    return Figure(t.name, text, drawn, narrow=narrow)


def _range(t: TaskVerdict, values: list[float]) -> tuple[float, float]:
    """0 to 1 for shares, else the values with some air."""
    shown = [*values, *([t.target] if t.target is not None else [])]
    if min(shown) >= 0 and max(shown) <= 1:
        return 0.0, 1.0
    air = 0.08 * (max(shown) - min(shown) or 1)
    return min(shown) - air, max(shown) + air


def forest_figure(candidate: CandidateVerdict) -> Figure | None:
    """Stability at a glance: differences in units of their margins, so that −1 is where every
    benchmark fails.
    """
    shown = [(b, b.difference) for b in candidate.stability.benchmarks if b.difference is not None]
    if not shown:
        return None
    rows = [
        svg.ForestRow(
            b.name,
            b.status,
            difference / b.margin,
            *(
                (None, None)
                if b.interval is None
                else _over(b.interval.low, b.interval.high, b.margin)
            ),
        )
        for b, difference in shown
    ]
    text = (
        "; ".join(
            f"{b.name} {f.signed(b.difference)} (margin {f.exact(b.margin)}, {b.status})"
            for b, _ in shown
        )
        + "."
    )
    title = f"Stability of {candidate.name}: difference to M in units of the margin"

    def draw(width: int, ident: str) -> Markup:
        return svg.forest(ident, title, text, rows, width=width)

    drawn, narrow = _drawn(1, _ident("forest", candidate.name), draw, svg.NARROW_LIST)
    return Figure("Difference to M in units of the margin", text, drawn, narrow=narrow)


def _over(
    low: float | None, high: float | None, margin: float
) -> tuple[float | None, float | None]:
    return (None if low is None else low / margin, None if high is None else high / margin)


def _grid(*attacks: AttackVerdict | None) -> list[int]:
    return sorted({p.step for a in attacks if a for t in a.trajectories for p in t.probes})


def _ident(*parts: str) -> str:
    """An id for one chart: readable, and distinct where names differ only in punctuation."""
    return "-".join([*(re.sub(r"[^A-Za-z0-9]+", "_", p) for p in parts), digest(list(parts), 6)])
