"""Whether runs may be compared: only if they ask the same question. What differs is named."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from titer.study.base import digest
from titer.study.cell import CellMeasure
from titer.study.resistance import AttackUse
from titer.verdicts.evidence.index import Evidence
from titer.verdicts.phrases import flops, listed

Named = Sequence[tuple[str, Evidence]]
"""(run, its evidence)"""


def question(evidence: Evidence) -> dict[str, Any]:
    """What a run asks, field by field; two runs may be compared if all of it is equal."""
    study, spec = evidence.study, evidence.study.resistance
    cells = [
        p.cell for p in evidence.view.plan.cells if any(r.purpose == "attack" for r in p.roles)
    ]
    harm = {_measure(m) for c in cells for m in c.measures if m.label in ("harm", "confirm")}
    versions = {c.method.name: (c.method.version, c.method.code) for c in cells if c.method}
    content = sorted({(slot, use.content) for c in cells for slot, use in c.texts.items()})
    battery = [
        [a.name, a.attack, versions.get(a.attack), a.settings, a.search, a.role, _reward(a)]
        for a in evidence.battery
    ]
    return {
        "threat model": study.threat_model,
        "φ": spec.phi,
        "budget and probes": _budgets(evidence),
        "battery": digest([battery, content]),
        "construct": evidence.construct,
        "harm prompts and measure": digest(sorted(map(list, harm), key=str)),
    }


def _measure(m: CellMeasure) -> tuple[Any, ...]:
    text = (m.text.content, m.text.examples) if m.text else ("", None)
    return m.label, m.name, m.version, m.code, digest(m.settings), *text


def _reward(use: AttackUse) -> Any:
    return use.reward.model_dump(mode="json") if use.reward else None


def _budgets(evidence: Evidence) -> Any:
    """The probes if all attacks share them, else those of each attack; FLOPs where they are the
    budget.
    """
    own = {}
    for a in evidence.battery:
        design = evidence.design_of(a.label)
        limit = [] if design.flops is None else [flops(design.flops)]
        own[a.label] = [*design.grid, *limit]
    values = list(own.values())
    return values[0] if all(v == values[0] for v in values) else own


def differences(evidences: Named) -> tuple[str, ...]:
    """What the runs do not share, as sentences."""
    asked = [(name, question(e)) for name, e in evidences]
    out = []
    for field in asked[0][1]:
        values: dict[str, list[str]] = {}
        for name, q in asked:
            values.setdefault(str(q[field] or "nothing read yet"), []).append(name)
        if len(values) > 1:
            each = "; ".join(f"{v}: {listed(names)}" for v, names in values.items())
            out.append(f"{field} differs ({each})")
    return tuple(out)


def remarks(evidences: Named) -> tuple[str, ...]:
    """What may be compared but should be known."""
    out = []
    if len({_undefended(e) for _, e in evidences}) > 1:
        out.append(
            "the undefended models differ: budgets compare the defended models, not what the "
            "defenses added"
        )
    if len({(e.design.delta, e.design.alpha, len(e.design.seeds)) for _, e in evidences}) > 1:
        out.append(
            "δ, α or the number of seeds differ, so `holds` does not mean the same in every row"
        )
    if missing := [n for n, e in evidences if e.view.missing or not e.view.plan.complete]:
        out.append(f"unfinished: {listed(missing)}")
    return tuple(out)


def _undefended(evidence: Evidence) -> str:
    align = evidence.study.align
    return str(evidence.study.model) + digest(align.model_dump(mode="json") if align else None)
