"""Which models were judged: where they came from, what was loaded, how they were asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from titer.records.record import CellRecord, StartFacts
from titer.records.view import RunView
from titer.report import numbers as f
from titer.report.table import Row, Table, table
from titer.study.candidate import CONTROL
from titer.study.cell import Cell, Role, Start

JUDGED = ("attack", "stability", "generalization", "trainability")
"""Purposes of cells that start from a model that is judged."""


def models(view: RunView) -> Table:
    """Identity of every root model, further ones that methods read included: how the study names
    it, and the hash of its content.
    """
    found: dict[tuple[str, str], None] = {}
    for p in view.plan.cells:
        found[_name(p.start), p.cell.model] = None
        for name, start in p.models.items():
            if name in p.cell.models:
                found[_name(start), p.cell.models[name].model] = None
    rows: list[Row] = [[name, identity] for name, identity in found]
    rows = rows or [[f.without_paths(str(view.study.model)), f.ABSENT]]
    return table("Models", ["model", "content hash"], rows)


def _name(start: Start) -> str:
    return f.without_paths(str(start.ref))


def tested(view: RunView, candidate: str) -> list[tuple[str, str]]:
    """(label, value): which weights were attacked: the model as the study names it and the hash of
    its content, what built M* from it, the hash of the weights as they were loaded, and what was
    set otherwise.
    """
    planned = [
        p
        for p in view.plan.cells
        if any(r.purpose == "attack" and r.candidate == candidate for r in p.roles)
    ]
    cells = [p.cell for p in planned]
    by_digest = {p.digest: p.cell for p in view.plan.cells}
    starts = [r.start for role, r in _judged(view) if role.candidate == candidate]
    found = [
        ("Model", [_name(p.start) for p in planned]),
        ("Its content hash", [c.model for c in cells]),
        ("Changed by", [_built(by_digest, c.parent) for c in cells]),
        ("Run by the service", [_host(c) for c in cells]),
        ("Weights, sha256", [s.weights for s in starts]),
        ("Set to what an attacker would choose", [f.settings(s.neutralised) for s in starts]),
    ]
    shown = [
        (label, dict.fromkeys(v for v in values if v not in ("", f.ABSENT)))
        for label, values in found
    ]
    return [(label, ", ".join(values)) for label, values in shown if values]


def _built(cells: Mapping[str, Cell], digest: str | None) -> str:
    """`sft_refusal, 8 steps (cell 0123456789abcdef)`; of several stages the last."""
    made = cells.get(digest or "")
    if made is None or made.method is None:
        return f"cell {digest}" if digest else ""
    return f"{made.method.name}, {f.counted(made.steps, 'step')} (cell {digest})"


def _host(cell: Cell) -> str:
    return cell.host.method.name if cell.host else ""


def _judged(view: RunView) -> Iterator[tuple[Role, CellRecord]]:
    """Records of cells that start from a model that is judged, in plan order. Models retrained for
    the matrix are left out."""
    for p in view.plan.cells:
        record = view.records.get(p.digest)
        for role in p.roles if record else ():
            if record and role.purpose in JUDGED and not role.defended_on:
                yield role, record


def loaded_table(view: RunView) -> Table:
    """Every model that was judged, as it was loaded: its weights, how far they lie from the
    control's, and what was shipped beside them and set otherwise.
    """
    found: dict[tuple[str, int | None, str], StartFacts] = {}
    for role, record in _judged(view):
        start = record.start
        key = (role.candidate, role.defense_seed, start.weights)
        # Only one look compares the weights with the control's.
        if start.weights and not (key in found and found[key].compared):
            found[key] = start
    names = dict.fromkeys((CONTROL, *(c.name for c in view.study.candidates)))
    rows: list[Row] = [
        [
            "control M" if name == CONTROL else name,
            f.ABSENT if seed is None else str(seed),
            weights,
            f.number(start.parameters or None),
            _distance(start),
            f.settings(start.neutralised),
        ]
        for name in names
        for (who, seed, weights), start in found.items()
        if who == name
    ]
    return table(
        "Models as they were loaded",
        [
            "model",
            "#defense seed",
            "weights, sha256",
            "#parameters",
            "#distance to M",
            "shipped beside the weights → set to",
        ],
        rows,
        [
            "Distance: ‖w − w_M‖ / ‖w_M‖; only models from elsewhere are compared. What is judged "
            "is the weights; the attacker chooses everything shipped beside them."
        ]
        if rows
        else [],
    )


def _distance(start: StartFacts) -> str:
    if not start.compared:
        return f.ABSENT
    return "another shape" if start.distance is None else f.number(start.distance)


def wording_table(view: RunView) -> Table:
    """How models were asked at their last probe, where that differs from asking plainly."""
    found: dict[tuple[str, str, str, str], int] = {}
    for p in view.plan.cells:
        record = view.records.get(p.digest)
        for role in p.roles if record and record.wording else ():
            if record:
                said = f.settings(record.wording)
                key = (role.purpose, role.candidate, role.attack or role.task, said)
                found[key] = found.get(key, 0) + 1
    rows: list[Row] = [
        [f.words(purpose), candidate or f.ABSENT, what or f.ABSENT, said, str(n)]
        for (purpose, candidate, what, said), n in found.items()
    ]
    return table(
        "How models were asked, where not plainly",
        ["cells", "candidate", "attack or task", "wording", "#cells"],
        rows,
    )
