"""What the records and the plan say beside the verdict: machine, versions, costs, sources,
measures.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import yaml

from titer.records.record import CellRecord, Reading
from titer.records.view import RunView
from titer.report import numbers as f
from titer.report.table import Row, Table, table
from titer.study.candidate import CONTROL
from titer.study.cell import BEFORE_ALIGNMENT
from titer.verdicts.output.verdict import CandidateVerdict, StudyVerdict
from titer.verdicts.phrases import shared_budgets

PURPOSES = {
    "align": "alignment of M",
    "defense": "building M*",
    "stability": "stability (M and M* as they are)",
    "search": "attack search",
    "attack": "resistance",
    "generalization": "generalization",
    "trainability_search": "learning-rate search for trainability",
    "trainability": "trainability",
}


def records(view: RunView) -> list[CellRecord]:
    """The finished cells in plan order (the order of work must not change a report), then any not
    in the plan.
    """
    order = [p.digest for p in view.plan.cells if p.digest in view.records]
    return [view.records[d] for d in dict.fromkeys([*order, *sorted(view.records)])]


def machine(view: RunView) -> list[tuple[str, str]]:
    """(label, value) about where the cells ran; more than one value means that they ran in more
    than one place.
    """
    found = [r.environment for r in records(view)]
    if not found:
        return [("Environment", "no record yet")]

    def values(get: Callable[[Any], Any]) -> str:
        counts = Counter(str(get(e)) for e in found if get(e) not in (None, "", 0))
        if len(counts) == 1:
            return f.without_paths(next(iter(counts)))
        return (
            "; ".join(
                f"{f.without_paths(v)} ({f.counted(n, 'cell')})" for v, n in sorted(counts.items())
            )
            or f.ABSENT
        )

    packages = sorted({name for e in found for name in e.packages})
    rows = [
        ("titer (at run time)", values(lambda e: e.titer)),
        ("git revision", values(lambda e: e.git)),
        ("Python", values(lambda e: e.python)),
        ("Platform", values(lambda e: e.platform)),
        ("CPU", values(lambda e: e.cpu)),
        ("Device", values(lambda e: e.device)),
        ("Threads per cell", values(lambda e: e.threads)),
    ]

    def version(name: str) -> str:
        return values(lambda e: e.packages.get(name))

    return rows + [(name, version(name)) for name in packages]


def alignment(view: RunView) -> Table:
    """What the study's own alignment stage did to the model: every reading before it and after it
    (that is, of M[0]).
    """

    def readings(purpose: str, candidate: str) -> dict[str, Reading]:
        found = [
            e.record
            for e in view.entries(purpose, candidate=candidate)
            if e.record and e.record.probe(0)
        ]
        return {r.label: r for record in found[:1] for r in record.probes[0].readings}

    before = readings("stability", BEFORE_ALIGNMENT)
    after = readings("attack", CONTROL) | readings("stability", CONTROL)
    rows: list[Row] = [
        [f.words(label), f.number(r.value), f.number(after[label].value), str(r.n)]
        for label, r in before.items()
        if label in after and after[label].n == r.n
    ]
    return table(
        "The model before and after the study's alignment stage",
        ["reading", "#before", "#after (M)", "#items"],
        rows,
        ["harm: f, the harm reading. What an attack removes is what this stage put in."]
        if rows
        else [],
    )


def work(view: RunView) -> list[tuple[str, str]]:
    """(label, value) about how much was done: cells, wall time, FLOPs (of them setup and search),
    forward-only tokens, calls of judges, memory, dates.
    """
    done = records(view)
    spent = sum(r.cost.seconds for r in done)
    probing = sum(r.probe_seconds for r in done)
    outcomes = Counter(f.words(r.outcome) for r in done)
    rows = [
        (
            "Cells planned",
            f"{len(view.plan.cells)}"
            + ("" if view.plan.complete else " so far (more follow a search)"),
        ),
        (
            "Records",
            f"{len(done)}"
            + (f" ({f.counted(view.missing, 'cell')} missing)" if view.missing else ""),
        ),
        ("Outcomes", ", ".join(f"{n} {o}" for o, n in sorted(outcomes.items())) or f.ABSENT),
        ("Wall time, training", f.seconds(spent)),
        ("Wall time, probing", f.seconds(probing)),
        ("Wall time, total", f.seconds(spent + probing)),
        ("Training compute", f.flops(sum(r.cost.flops for r in done))),
        ("Of it before the first step", f.flops(sum(r.cost.setup_flops for r in done))),
        ("Of it choosing among variants", f.flops(sum(r.cost.search_flops for r in done))),
        ("Tokens of forward-only passes", f.number(sum(r.cost.forward_tokens for r in done))),
        ("Texts scored by a judge", f.number(sum(r.cost.judge_calls for r in done))),
        ("Peak memory of one cell", f.size(max((r.peak_memory_bytes for r in done), default=0))),
        ("Resumed from a checkpoint", f.counted(sum(r.resumed for r in done), "time")),
    ]
    price = view.study.runtime.price_per_hour
    if price is not None:
        money = (spent + probing) / 3600 * price
        rows.append(
            ("Money at the stated price", f"{f.number(money)} (at {f.exact(price)} per hour)")
        )
    if done:
        rows.append(("First cell started", min(r.started for r in done)))
        rows.append(("Last cell finished", max(r.finished for r in done)))
    return rows


def work_by_purpose(view: RunView) -> Table:
    """What each part of the study cost. A cell shared by two purposes is counted in both."""
    groups: dict[str, dict[str, CellRecord]] = {}
    for planned in view.plan.cells:
        for role in planned.roles:
            if planned.digest in view.records:
                groups.setdefault(role.purpose, {})[planned.digest] = view.records[planned.digest]
    rows = []
    for purpose, label in PURPOSES.items():
        cells = groups.get(purpose, {}).values()
        if cells:
            seconds = sum(r.cost.seconds + r.probe_seconds for r in cells)
            rows.append(
                [
                    label,
                    str(len(cells)),
                    f.flops(sum(r.cost.flops for r in cells)),
                    f.seconds(seconds),
                ]
            )
    shared = sum(len(g) for g in groups.values()) > len({d for g in groups.values() for d in g})
    return table(
        "Work by purpose",
        ["purpose", "#cells", "#training compute", "#wall time"],
        rows,
        ["Some cells serve two purposes and are counted in both."] if shared else [],
    )


def attack_cost(view: RunView, candidate: CandidateVerdict) -> Table:
    """What the budget T cost the attacker, per attack: medians over the runs that spent all of it,
    or had nothing left to do.
    """
    rows = []
    for a in candidate.resistance.attacks:
        runs = [
            r
            for t in a.trajectories
            if (r := view.records.get(t.digest)) and r.outcome in ("reached_budget", "finished")
        ]

        def mid(
            get: Callable[[CellRecord], float], runs: Iterable[CellRecord] = runs
        ) -> float | None:
            return statistics.median([get(r) for r in runs]) if runs else None

        share = mid(lambda r: r.trainable_parameters / r.parameters if r.parameters else 0.0)
        rows.append(
            [
                a.attack,
                str(len(runs)),
                f.number(mid(lambda r: r.cost.steps)),
                f.number(mid(lambda r: r.cost.examples)),
                f.number(mid(lambda r: r.cost.tokens)),
                f.flops(mid(lambda r: r.cost.flops)),
                f.seconds(mid(lambda r: r.cost.seconds)),
                f.percent(share, 1),
                f.flops(mid(lambda r: r.cost.setup_flops)),
                f.flops(mid(lambda r: r.cost.search_flops)),
                f.number(mid(lambda r: r.cost.forward_tokens)),
                f.number(mid(lambda r: r.cost.judge_calls)),
            ]
        )
    return table(
        "What the budget cost the attacker (medians over runs that spent all of it)",
        [
            "attack",
            "#runs",
            "#steps",
            "#examples",
            "#tokens",
            "#compute",
            "#wall time",
            "#parameters trained",
            "#of it setup",
            "#of it search",
            "#forward-only tokens",
            "#judge calls",
        ],
        rows,
    )


def measures(view: RunView) -> Table:
    """What each measure declares about itself."""
    seen: dict[str, tuple[Any, int]] = {}
    for record in records(view):
        for label, facts in record.measures.items():
            n = next((r.n for p in record.probes if (r := p.reading(label))), 0)
            if label not in seen or n > seen[label][1]:
                seen[label] = (facts, n)
    rows = [
        [
            label,
            f"{m.name} v{m.version}",
            m.harm_construct,
            f"higher is {m.higher}",
            m.sampling,
            m.unit,
            str(n or f.ABSENT),
            f.number(m.chance),
            f.number(m.max_new_tokens),
            f.settings(m.settings),
        ]
        for label, (m, n) in sorted(seen.items())
    ]
    titles = [
        "reading",
        "measure",
        "construct",
        "direction",
        "sampling",
        "unit",
        "#items",
        "#chance",
        "#new tokens",
        "settings",
    ]
    return table("Measures", titles, rows)


def sources(view: RunView) -> Table:
    """Provenance of every text source as the plan gives it."""
    keys = list(dict.fromkeys(k for facts in view.plan.sources.values() for k in facts))
    rows = [
        [name, *(f.plain(facts.get(k)) for k in keys)]
        for name, facts in sorted(view.plan.sources.items())
    ]
    return table("Text sources", ["pool", *map(f.words, keys)], rows)


def disjointness(view: RunView) -> list[tuple[str, str]]:
    """(label, value): the proof that the parts are disjoint."""
    return [(f.words(k), f.plain(v)) for k, v in _flat(view.plan.disjointness)]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}: ")
        else:
            yield f"{prefix}{key}", value


def design(view: RunView, verdict: StudyVerdict) -> list[tuple[str, str]]:
    """(label, value): what was fixed in the study before any result."""
    r = view.study.resistance
    budget = verdict.control.resistance.budget_text or f.counted(r.budget, "optimizer step")
    rows = [
        ("Threat model", f.words(verdict.threat_model)),
        ("Model M", f.without_paths(str(view.study.model))),
        ("Budget T", budget),
        ("Probes at", _probes(view)),
        (
            "Threshold φ",
            f.exact(r.phi)
            + (f" — {f.without_paths(r.phi_reason)}" if r.phi_reason else " (no reason given)"),
        ),
        ("Level α, quantile δ", f"α = {f.exact(r.alpha)}, δ = {f.exact(r.delta)}"),
        ("Confirmation seeds", f"{f.seeds(r.seeds)} (n = {len(r.seeds)})"),
        ("Search seeds", f.seeds(r.search_seeds)),
        ("Theoretical guarantee", view.study.theoretical_guarantee),
        ("Grade", verdict.grade),
        ("Best attainable verdict", verdict.attainable or f.ABSENT),
    ]
    if view.study.generalization:
        rows.append(("Seeds, generalization", f.seeds(view.study.generalization.seeds)))
    if view.study.trainability:
        rows.append(("Seeds, trainability", f.seeds(view.study.trainability.seeds)))
    return rows


def _probes(view: RunView) -> str:
    """The probe steps, by attack where their budgets differ."""
    r = view.study.resistance
    own = [(a.label, ", ".join(map(str, r.grid(a))), "") for a in r.expanded()]
    return shared_budgets(own)


def study_yaml(view: RunView) -> str:
    """The whole study with every default written out, so that it means the same in a later version.
    Local paths are shortened.
    """
    body = f.scrubbed(view.study.model_dump(mode="json"))
    return yaml.safe_dump(body, sort_keys=False, allow_unicode=True, width=100)
