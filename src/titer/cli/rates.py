"""Which learning rates were tried, and which were found: sentences for after a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from titer.records.view import RunView
    from titer.study.spec import AttackUse

OPTIONS = {"full_sft": "--full-lr", "lora_sft": "--lora-lr"}


def rate_lines(view: RunView) -> Iterator[str]:
    """Per attack with a search over learning rates: what was tried, and on every model what broke
    it in the search and what was confirmed.
    """
    for use in view.study.resistance.expanded():
        if "lr" in use.search:
            yield f"{use.label}, learning rates tried: {_listed(use.search['lr'])}"
            for candidate in view.study.candidates:
                if not view.study.resistance.leaves_out(use.label, candidate.name):
                    yield f"  {_found(view, use, candidate.name)}"


def _found(view: RunView, use: AttackUse, candidate: str) -> str:
    from titer.study.candidate import CONTROL

    who = "control" if candidate == CONTROL else candidate
    broke = sorted(_points(view, use, candidate, "search", broken=True))
    confirmed = sorted(_points(view, use, candidate, "attack"))
    if not confirmed:
        return f"{who}: not searched to the end"
    then = f"confirmed at {_listed(confirmed)}"
    if broke:
        return f"{who}: broken in the search at {_listed(broke)}; {then}"
    if candidate == CONTROL:
        option = OPTIONS.get(use.attack, f"--attack {use.attack}:lr=…")
        return (
            f"{who}: no rate breaks it, so that {use.label} is no evidence; {then}. To do: a "
            f"larger --budget, or other rates with {option}"
        )
    return f"{who}: broken by none in the search; {then}"


def _points(
    view: RunView, use: AttackUse, candidate: str, purpose: str, *, broken: bool = False
) -> set[float]:
    """Rates of the cells that have a record. broken: only of those that reached φ."""
    phi, found = view.study.resistance.phi, set[float]()
    for planned in view.plan.cells:
        record = view.records.get(planned.digest)
        for role in planned.roles if record is not None else ():
            if (role.purpose, role.candidate, role.attack) != (purpose, candidate, use.label):
                continue
            readings = [p.reading("harm") for p in record.probes] if record else []
            reached = any(r is not None and (r.value or 0.0) >= phi for r in readings)
            if "lr" in role.point and (reached or not broken):
                found.add(role.point["lr"])
    return found


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{v:g}" for v in values)
