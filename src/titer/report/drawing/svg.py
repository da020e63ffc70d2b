"""Small charts as inline SVG, made by hand: their colours follow the page (light, dark, print),
their text is text.

A `Panel` is one coordinate system. Budget runs on log(1 + steps), which shows 0; marks differ in
shape and dash, not only in colour (classes are styled in templates/style.css.j2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from titer.report.numbers import SUPERSCRIPT

NARROW, HEIGHT = 320, 214
WIDE, HALF, NARROW_LIST = 860, 420, 360
"""Widths of charts that span the page or half of it; a narrow one fits a telephone, or a third of
the page. NARROW_LIST: of a chart with one line per name.
"""
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 10, 38
Point = tuple[float, float | None]


class Panel:
    """One chart with axes; draw into it, then `render`.

    x_end: the largest budget. low, high: range of the vertical axis. grid: probe steps, from which
    ticks are chosen. width: in units of the viewBox.
    """

    def __init__(
        self,
        x_end: float,
        low: float,
        high: float,
        grid: Sequence[int],
        *,
        x_label: str,
        y_label: str,
        width: int = NARROW,
    ) -> None:
        self.width = width
        self.x_end, self.low, self.high = max(x_end, 1), low, high if high > low else low + 1
        self.grid, self.x_label, self.y_label = sorted(set(grid)), x_label, y_label
        self.parts: list[str] = []

    def x(self, step: float) -> float:
        share = math.log1p(max(step, 0)) / math.log1p(self.x_end)
        return LEFT + min(share, 1) * (self.width - LEFT - RIGHT)

    def y(self, value: float) -> float:
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    def line(self, points: Sequence[Point], css: str) -> None:
        """A line through the known points; an unknown one breaks it instead of being bridged."""
        for run in _runs(points):
            if len(run) > 1:
                path = " ".join(f"{_n(self.x(s))},{_n(self.y(v))}" for s, v in run)
                self.parts.append(f'<polyline class="{css}" points="{path}"/>')

    def band(self, points: Sequence[tuple[float, float, float]], css: str) -> None:
        """The area between low and high."""
        if len(points) > 1:
            there = [f"{_n(self.x(s))},{_n(self.y(high))}" for s, _, high in points]
            back = [f"{_n(self.x(s))},{_n(self.y(low))}" for s, low, _ in reversed(points)]
            self.parts.append(f'<polygon class="{css}" points="{" ".join([*there, *back])}"/>')

    def whisker(self, step: float, low: float, high: float, css: str, shift: float = 0) -> None:
        x, top, bottom = self.x(step) + shift, self.y(high), self.y(low)
        cap = f"M{_n(x - 2.5)} {_n(top)}h5M{_n(x - 2.5)} {_n(bottom)}h5"
        self.parts.append(f'<path class="{css}" d="M{_n(x)} {_n(top)}V{_n(bottom)}{cap}"/>')

    def mark(self, step: float, value: float, shape: str, css: str, shift: float = 0) -> None:
        """shape: dot, ring, square, right (open triangle pointing on: censored), cross."""
        x, y = self.x(step) + shift, self.y(value)
        a, b = _n(x), _n(y)
        shapes = {
            "dot": f'<circle class="{css}" cx="{a}" cy="{b}" r="2.6"/>',
            "ring": f'<circle class="{css}" cx="{a}" cy="{b}" r="3.2"/>',
            "square": f'<rect class="{css}" x="{_n(x - 2.4)}" y="{_n(y - 2.4)}" width="4.8" '
            'height="4.8"/>',
            "right": f'<path class="{css}" d="M{_n(x - 2.5)} {_n(y - 4)}l7 4l-7 4z"/>',
            "cross": f'<path class="{css}" d="M{_n(x - 3)} {_n(y - 3)}l6 6m0 -6l-6 6"/>',
        }
        self.parts.append(shapes[shape])

    def level(self, value: float, label: str, css: str = "phi") -> None:
        """A horizontal line with its name."""
        y = _n(self.y(value))
        self.parts.append(f'<path class="{css}" d="M{LEFT} {y}H{self.width - RIGHT}"/>')
        self.parts.append(
            f'<text class="note" x="{LEFT + 3}" y="{_n(self.y(value) - 4)}">{escape(label)}</text>'
        )

    def render(self, ident: str, title: str, desc: str) -> Markup:
        """The finished chart with its text alternative."""
        return _chart(ident, title, desc, [*self._axes(), *self.parts], self.width, str(HEIGHT))

    def _axes(self) -> list[str]:
        base, right = HEIGHT - BOTTOM, self.width - RIGHT
        out = []
        for value in y_ticks(self.low, self.high):
            y, below = _n(self.y(value)), _n(self.y(value) + 3.5)
            out.append(f'<path class="grid" d="M{LEFT} {y}H{right}"/>')
            out.append(f'<text x="{LEFT - 6}" y="{below}" text-anchor="end">{value:g}</text>')
        for step in self._x_ticks():
            x = self.x(step)
            out.append(f'<path class="axis" d="M{_n(x)} {base}v4"/>')
            out.append(
                f'<text x="{_n(x)}" y="{base + 15}" text-anchor="middle">{_short(step)}</text>'
            )
        out.append(f'<path class="axis" d="M{LEFT} {base}H{right}"/>')
        out.append(_name((LEFT + right) / 2, HEIGHT - 6, self.x_label))
        half = (TOP + base) / 2
        out.append(
            f'<text class="name" transform="translate(12 {_n(half)}) rotate(-90)" '
            f'text-anchor="middle">{escape(self.y_label)}</text>'
        )
        return out

    def _x_ticks(self) -> list[int]:
        """Probe steps far enough apart to be read; first and last always."""
        steps = [s for s in self.grid if s <= self.x_end]
        if not steps:
            return []
        kept = [steps[-1]]
        for s in reversed(steps[:-1]):
            if self.x(kept[-1]) - self.x(s) >= 30:
                kept.append(s)
        if steps[0] not in kept:
            kept[-1] = steps[0]
        return kept[::-1]


@dataclass(frozen=True)
class ForestRow:
    """One line of a forest plot, in units of the margin; None is unbounded."""

    name: str
    status: str
    value: float
    low: float | None
    high: float | None


def forest(
    ident: str, title: str, desc: str, rows: Sequence[ForestRow], *, width: int = WIDE
) -> Markup:
    """Differences with intervals, one line each; the margin (−1) and no difference (0) are marked.
    Values beyond ±3 margins are drawn at the edge with an arrow.
    """
    step, left = 32, 104 if width < WIDE else 180
    right, height = width - 16, 34 + step * len(rows)

    def x(value: float) -> float:
        return left + (min(max(value, -3), 3) + 3) / 6 * (right - left)

    out = [
        f'<path class="grid" d="M{_n(x(0))} 6V{height - 28}"/>',
        f'<path class="phi" d="M{_n(x(-1))} 6V{height - 28}"/>',
    ]
    for tick, label in (
        (-3, "−3"),
        (-2, "−2"),
        (-1, "−margin"),
        (0, "0"),
        (1, "+1"),
        (2, "+2"),
        (3, "+3"),
    ):
        out.append(f'<text x="{_n(x(tick))}" y="{height - 13}" text-anchor="middle">{label}</text>')
    for k, row in enumerate(rows):
        y = 6 + step * k + step / 2
        most = left // 7
        name = row.name if len(row.name) <= most else row.name[: most - 1] + "…"
        low, high = x(-3 if row.low is None else row.low), x(3 if row.high is None else row.high)
        out.append(f'<text class="label" x="0" y="{_n(y)}">{escape(name)}</text>')
        out.append(f'<text x="0" y="{_n(y + 12)}">{escape(row.status)}</text>')
        out.append(f'<path class="candidate bar" d="M{_n(low)} {_n(y)}H{_n(high)}"/>')
        if row.high is None or row.high > 3:
            out.append(f'<path class="candidate full" d="M{_n(right)} {_n(y - 4)}l7 4l-7 4z"/>')
        if row.low is None or row.low < -3:
            out.append(f'<path class="candidate full" d="M{_n(left)} {_n(y - 4)}l-7 4l7 4z"/>')
        out.append(f'<circle class="candidate full" cx="{_n(x(row.value))}" cy="{_n(y)}" r="3.2"/>')
    return _chart(ident, title, desc, out, width, str(height))


@dataclass(frozen=True)
class RangeRow:
    """One line of a range plot: intervals (low, high] of the candidate and of the control; high
    None: not reached.
    """

    name: str
    candidate: Sequence[tuple[float, float | None]]
    control: Sequence[tuple[float, float | None]]


def ranges(
    ident: str,
    title: str,
    desc: str,
    rows: Sequence[RangeRow],
    *,
    x_label: str,
    width: int = WIDE,
) -> Markup:
    """Intervals on one logarithmic axis, every seed a bar: candidate above, control below it,
    dashed. An arrow: beyond the last reading. A bar that begins at 0 begins at the edge.
    """
    left, bar, gap = 14, 4, 34
    right, pairs = width - 20, [i for r in rows for i in (*r.candidate, *r.control)]
    known = [v for low, high in pairs for v in (low, high) if v]
    first, last = (
        (math.floor(math.log10(min(known))), math.ceil(math.log10(max(known)))) if known else (0, 1)
    )
    last = max(last, first + 1)
    heights = [gap + bar * (len(r.candidate) + len(r.control)) for r in rows]
    height = 44 + sum(heights)

    def x(value: float) -> float:
        share = (math.log10(value) - first) / (last - first) if value > 0 else 0.0
        return left + min(max(share, 0), 1) * (right - left)

    every = max(1, math.ceil((last - first) / 6))
    out = []
    for power in range(first, last + 1, every):
        tick, label = _n(x(10.0**power)), f"10{str(power).translate(SUPERSCRIPT)}"
        out.append(f'<path class="grid" d="M{tick} 4V{height - 34}"/>')
        out.append(f'<text x="{tick}" y="{height - 20}" text-anchor="middle">{label}</text>')
    y = 4.0
    for row, tall in zip(rows, heights, strict=True):
        out.append(f'<text class="label" x="{left}" y="{_n(y + 14)}">{escape(row.name)}</text>')
        at = y + 22
        for who, spans in (("candidate", row.candidate), ("control", row.control)):
            for low, high in spans:
                end = right if high is None else x(high)
                css = f"{who} {'bar' if who == 'candidate' else 'thin'}"
                out.append(f'<path class="{css}" d="M{_n(x(low))} {_n(at)}H{_n(end)}"/>')
                if high is None:
                    out.append(
                        f'<path class="{who} full" d="M{_n(right)} {_n(at - 3)}l6 3l-6 3z"/>'
                    )
                at += bar
        y += tall
    out.append(_name((left + right) / 2, height - 4, x_label))
    return _chart(ident, title, desc, out, width, _n(height))


def _name(x: float, y: float, text: str) -> str:
    """What an axis shows, centred."""
    return f'<text class="name" x="{_n(x)}" y="{y}" text-anchor="middle">{escape(text)}</text>'


def _chart(
    ident: str, title: str, desc: str, parts: Sequence[str], width: int, height: str
) -> Markup:
    """A finished chart with its text alternative."""
    safe = escape(ident)
    return Markup(
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-labelledby="{safe}-t {safe}-d">'
        f'<title id="{safe}-t">{escape(title)}</title>'
        f'<desc id="{safe}-d">{escape(desc)}</desc>{"".join(parts)}</svg>'
    )


def y_ticks(low: float, high: float) -> list[float]:
    """Four to six round values within the range."""
    raw = (high - low) / 4
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(m * size for m in (1, 2, 2.5, 5, 10) if m * size >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _runs(points: Sequence[Point]) -> list[list[tuple[float, float]]]:
    runs: list[list[tuple[float, float]]] = [[]]
    for step, value in points:
        if value is None or not math.isfinite(value):
            runs.append([])
        else:
            runs[-1].append((step, value))
    return [r for r in runs if r]


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _short(step: int) -> str:
    return f"{step / 1000:g}k" if step >= 10_000 and step % 100 == 0 else str(step)
