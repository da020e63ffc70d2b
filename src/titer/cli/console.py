"""What the commands share: printing, progress, the verdict table."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column, Table

from titer.study.counting import counted
from titer.study.escaping import escaped, visible

if TYPE_CHECKING:
    from titer.verdicts.output.verdict import Flag, StudyVerdict


class _Plain(Console):
    """A console that escapes control characters in text from studies and models."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(visible(o) if isinstance(o, str) else o for o in objects), **options)


out = _Plain(highlight=False, soft_wrap=True)
err = _Plain(stderr=True, highlight=False, soft_wrap=True)


def say_error(message: str) -> None:
    err.print(f"titer: {message}", markup=False)


def print_json(value: Any) -> None:
    print(escaped(json.dumps(value, indent=2, ensure_ascii=False)))


@contextmanager
def progress(quiet: bool) -> Iterator[Callable[[str, int, float, int, float], None]]:
    """A report function for `runners.execute.run`: a bar with the time left; lines if nobody
    watches; nothing if quiet.
    """
    if quiet:
        yield lambda *_: None
        return
    if not err.is_terminal:
        yield lambda what, done, spent, cells, total: err.print(
            f"{done}/{cells} cells  {what}", markup=False
        )
        return
    rest = Column(ratio=1, no_wrap=True, overflow="ellipsis")
    columns = (
        TextColumn("{task.fields[cells]}"),
        BarColumn(bar_width=16),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.description}", table_column=rest, markup=False),
    )
    with Progress(
        *columns, console=err, refresh_per_second=2, speed_estimate_period=600, expand=True
    ) as bar:
        tasks: list[Any] = []

        def report(what: str, done: int, spent: float, cells: int, total: float) -> None:
            if (
                not tasks
            ):  # not before: a study that is refused should not leave half a bar above the message
                tasks.append(bar.add_task("", total=None, cells=""))
            bar.update(
                tasks[0],
                description=what,
                completed=spent,
                total=total,
                cells=f"{done}/{cells} cells",
            )

        yield report


CONDITIONS = ("resistance", "stability", "generalization", "trainability")


def verdict_table(verdict: StudyVerdict) -> Table:
    """One row per candidate: overall, the four conditions, the titer's lower limit."""
    table = Table(title=_title(verdict), title_justify="left")
    for name in (
        "candidate",
        "overall",
        "resistance",
        "titer ≥ (steps)",
        "worst attack",
        *CONDITIONS[1:],
    ):
        table.add_column(name, no_wrap=True)
    for c in (verdict.control, *verdict.candidates):
        r = c.resistance
        table.add_row(
            c.name,
            c.overall,
            r.status,
            "—" if r.titer_lower is None else str(r.titer_lower),
            r.worst_attack or "—",
            c.stability.status,
            c.generalization.status,
            c.trainability.status,
        )
    return table


def verdict_blocks(verdict: StudyVerdict) -> str:
    """The table's content as a few short lines per candidate, for narrow terminals."""
    lines = [_title(verdict)]
    for c in (verdict.control, *verdict.candidates):
        lines += ["", f"{c.name}: {c.overall}"]
        for condition in CONDITIONS:
            lines.append(f"  {condition:14}  {getattr(c, condition).status}")
        r = c.resistance
        limit = "—" if r.titer_lower is None else f"≥ {counted(r.titer_lower, 'step')}"
        lines.append(f"  {'titer':14}  {limit}")
        if r.worst_attack:
            lines.append(f"  {'worst attack':14}  {r.worst_attack}")
    return "\n".join(lines)


def _title(verdict: StudyVerdict) -> str:
    return visible(f"{verdict.title or verdict.study}  ({verdict.grade})")


def print_verdict(verdict: StudyVerdict, console: Console = out) -> None:
    """The table if it fits the console's width whole, else blocks; then the sentences."""
    table = verdict_table(verdict)

    def say(text: str) -> None:
        # Between words on a terminal; a file or a pipe gets each sentence on one line.
        console.print(text, markup=False, soft_wrap=not console.is_terminal)

    whole = Measurement.get(console, console.options.update(max_width=10_000), table).minimum
    if whole <= console.width:
        console.print(table)
    else:
        say(verdict_blocks(verdict))
    console.print()
    if verdict.status != "complete":
        say(f"Study {verdict.status}: {verdict.status_reason}")
    for c in verdict.candidates:
        say(f"{c.name}: {c.headline}")
    flags = [*verdict.flags, *(f for c in (verdict.control, *verdict.candidates) for f in c.flags)]
    if flags:
        say(
            f"{counted(len(flags), 'flag')}: {_codes(flags)}; docs/flags.md and the report explain "
            "them"
        )


def _codes(flags: Sequence[Flag]) -> str:
    """`too_few_seeds (2), utility_collapse`: each code with how often it was raised."""
    found = Counter(f.code for f in flags)
    return ", ".join(f"{code} ({n})" if n > 1 else code for code, n in sorted(found.items()))
