"""Builds cells from text, measures, methods and starting models, and keeps the cells planned so
far."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from titer.assets.identity import identify
from titer.data.examples import digest_of
from titer.data.pools import Pools
from titer.engine.reward import refuse_unfit
from titer.errors import StudyError, ThreatModelError, TiterError
from titer.measures.measure import Measure
from titer.measures.registry import resolve_measure
from titer.methods.method import Method
from titer.methods.registry import resolve
from titer.records.record import CellRecord
from titer.study.cell import (
    Cell,
    CellHost,
    CellMeasure,
    CellMethod,
    CellStart,
    PartUse,
    Plan,
    Planned,
    Role,
    Start,
)
from titer.study.facts import MethodFacts, MethodKind
from titer.study.plugins import code_digest
from titer.study.spec import DataUse, MeasureUse, MethodUse, Study
from titer.study.uses import TextUse

Known = Callable[[str], CellRecord | None]
"""digest → record, or None while there is none."""

Texts = dict[str, PartUse]
"""slot → text"""


@dataclass(frozen=True)
class Service:
    """A fine-tuning service that runs what is planned on a candidate."""

    method: Method
    host: CellHost


@dataclass(frozen=True)
class Origin:
    """What a cell starts from: where the model is found, the further models it may read by name,
    and the service that runs its method, if any. defense_seed: which checkpoint of several it is.
    """

    start: Start
    models: dict[str, Start] = field(default_factory=dict)
    service: Service | None = None
    defense_seed: int | None = None


class Pieces:
    """The study with its text in hand, and the cells planned so far."""

    def __init__(self, study: Study, pools: Pools, known: Known) -> None:
        self.study, self.pools, self.known = study, pools, known
        self.complete = True
        self._planned: dict[str, Planned] = {}

    def plan(self) -> Plan:
        outside = [c.name for c in self.study.candidates if c.model is not None]
        return Plan(
            study=self.study.digest,
            cells=tuple(self._planned.values()),
            complete=self.complete,
            disjointness=self.pools.disjointness() | {"unknown_defender_data": outside},
            sources=self.pools.provenance,
        )

    # -- cells ----------------------------------------------------------------------------------

    def add(
        self,
        origin: Origin,
        role: Role,
        *,
        method: Bound | None = None,
        models: Iterable[str] = (),
        **fields: Any,
    ) -> str:
        """Plan a cell, or add a role to one that is already planned. Returns its digest. models:
        names of further models beside those the method asks for."""
        runtime = self.study.runtime
        wanted = (method.models(origin) if method else {}) | {
            name: origin.models[name] for name in models
        }
        host = origin.service.host if origin.service and method and not fields.get("keep") else None
        cell = Cell(
            model=identify(origin.start.ref),
            parent=origin.start.parent,
            method=method.cell if method else None,
            texts=method.texts if method else {},
            models={name: located(start) for name, start in wanted.items()},
            host=host,
            precision=runtime.precision,
            max_length=runtime.max_length,
            **fields,
        )
        address = cell.digest
        before = self._planned.get(address)
        self._planned[address] = Planned(
            digest=address,
            cell=cell,
            roles=(*before.roles, role) if before else (role,),
            start=origin.start,
            models=wanted,
            facts=method.facts if method else None,
        )
        return address

    def finished(self, digests: Iterable[str]) -> tuple[CellRecord, ...] | None:
        """The records of these cells, None while one is missing."""
        records = [self.known(digest) for digest in digests]
        done = tuple(r for r in records if r is not None)
        return done if len(done) == len(records) else None

    # -- text -----------------------------------------------------------------------------------

    def part(
        self, use: TextUse, domains: Iterable[str] | None = None, *, harmful: bool = False
    ) -> PartUse:
        """Text of a pool. domains: those of a group; they restrict text that has any of them, and
        harmful text in any case. Raises StudyError if it has none of one of them."""
        names, examples = use.domains, use.examples
        if domains is not None:
            group = tuple(domains)
            if harmful or self._has_any(use.part, group):
                names = group
                if examples is not None:  # a group may hold fewer than the whole part
                    examples = min(examples, len(self.pools.part(use.part, names)))
        size = len(self.pools.part(use.part, names))
        if examples is not None and examples > size:
            raise StudyError(
                "a part is smaller than what every seed draws from it",
                field=f"examples of {use.part}",
                value=examples,
                expected=f"at most {size}",
                remedy="draw fewer, or enlarge the part",
            )
        content = self.pools.digest(use.part, names)
        return PartUse(part=use.part, content=content, domains=names, examples=examples)

    def _has_any(self, address: str, domains: tuple[str, ...]) -> bool:
        return any(e.domain in domains for e in self.pools.part(address))

    def texts(self, data: DataUse, domains: Iterable[str] | None = None) -> Texts:
        return {
            slot: self.part(use, domains, harmful=slot == "harmful")
            for slot, use in data.slots.items()
        }

    # -- measures -------------------------------------------------------------------------------

    def measure(
        self,
        use: MeasureUse,
        label: str,
        at: Literal["probes", "ends", "suspected_breach"] = "probes",
        *,
        part: str | None = None,
        domains: Iterable[str] | None = None,
    ) -> CellMeasure:
        """A measure on its text, or on another part of it. Raises StudyError if the text lacks what
        it needs, or it has none."""
        measure = resolve_measure(use.measure, use.settings, field=label)
        address = part or use.part
        text = None
        if measure.own_items() is None:
            if address is None:
                raise StudyError(
                    f"{use.measure} was given nothing to read",
                    field=label,
                    value=None,
                    expected="a part of a pool under `part`",
                )
            text = self._read(use, measure, label, address, domains)
        return _resolved(measure, label, text, at)

    def reward(self, use: MeasureUse, field: str) -> CellMeasure:
        """A measure to train on. It scores replies that the method samples, so it has no text of
        its own. Raises StudyError if it is given some, or does not score replies."""
        measure = resolve_measure(use.measure, use.settings, field=field)
        refuse_unfit(measure, f"{field}.measure")
        if use.part is not None:
            raise StudyError(
                "a reward reads no part of a pool: it scores what the method lets the model say",
                field=f"{field}.part",
                value=use.part,
                expected="no part",
            )
        return _resolved(measure, "reward", None)

    def _read(
        self, use: MeasureUse, measure: Any, label: str, address: str, domains: Iterable[str] | None
    ) -> PartUse:
        names = tuple(domains) if domains is not None else use.domains
        examples = self.pools.part(address, names)
        for need in measure.needed():
            if any(getattr(e, need) in (None, "", ()) for e in examples):
                raise StudyError(
                    f"{use.measure} needs a {need} in every example it reads",
                    field=label,
                    value=address,
                    expected=f"a part whose examples have a {need}",
                    remedy="name another part or another measure",
                )
        limit = use.limit and min(use.limit, len(examples))
        return self.part(TextUse(part=address, domains=names, examples=limit))

    # -- methods --------------------------------------------------------------------------------

    def method(
        self,
        kind: MethodKind,
        use: MethodUse,
        data: DataUse,
        field: str,
        *,
        text_field: str | None = None,
        domains: Iterable[str] | None = None,
    ) -> Bound:
        """A method with its text. field, text_field: where the study names them, if not in one
        place. Raises UnknownNameError, ThreatModelError, or StudyError if the text lacks what it
        needs."""
        threat = self.study.threat_model
        method = resolve(kind, use.name, use.settings, field=field, threat_model=threat)
        texts = self.texts(data, domains)
        try:
            self._check_text(method, texts, f"{text_field or field}.data")
            cell = CellMethod(
                kind=kind,
                name=method.name,
                version=method.version,
                settings=method.model_dump(mode="json"),
                code=code_digest(type(method)),
            )
            return Bound(method, cell, texts, method.facts(tuple(texts)), field)
        except TiterError:
            raise
        except (Exception, SystemExit) as error:  # of a plug-in, which may raise anything
            raise StudyError(
                f"{use.name} fails when it is planned ({type(error).__name__}: {error})",
                field=field,
                value=use.name,
                expected="a method whose `needed`, `facts`, `version` and settings can be read",
            ) from error

    def _check_text(self, method: Method, texts: Texts, field: str) -> None:
        for need in method.needed():
            slot, _, answer = need.partition(".")
            if slot and slot not in texts:
                raise StudyError(
                    f"{method.name} needs {slot} text",
                    field=field,
                    value=None,
                    expected=f"a part of a pool under '{slot}'",
                )
            if not texts:
                raise StudyError(
                    f"{method.name} was given no text",
                    field=field,
                    value=None,
                    expected="harmful and/or harmless parts",
                )
            for name in (slot,) if slot else texts:
                use = texts[name]
                examples = self.pools.part(use.part, use.domains)
                if answer and any(getattr(e, answer) is None for e in examples):
                    raise StudyError(
                        f"{method.name} needs a {answer} for every {name} example",
                        field=f"{field}.{name}",
                        value=use.part,
                        expected=f"examples with a {answer}",
                        remedy="set `respond: content_free` or `refuse: standard` on the pool",
                    )


@dataclass(frozen=True)
class Bound:
    """A method with its text, ready for a cell."""

    method: Method
    cell: CellMethod
    texts: Texts
    facts: MethodFacts
    field: str

    def models(self, origin: Origin) -> dict[str, Start]:
        """The further models it asks for, and its host if it has one. Raises StudyError naming one
        that the study lacks; ThreatModelError for an edit where a service does the training."""
        names = set(self.method.wanted())
        if origin.service and self.method.kind == "attack":
            if not self.facts.trains:
                raise ThreatModelError(
                    f"{self.method.name} edits weights, which a customer of a fine-tuning service "
                    "does not hold",
                    field=self.field,
                    value=self.method.name,
                    expected="an attack that trains",
                )
            names |= set(origin.service.method.wanted())
        for name in sorted(names):
            if name not in origin.models:
                raise StudyError(
                    f"{self.method.name} needs a further model",
                    field="models",
                    value=name,
                    expected=f"`models: {{{name}: …}}` in the study",
                )
        return {name: origin.models[name] for name in sorted(names)}


def _resolved(
    measure: Measure,
    label: str,
    text: PartUse | None,
    at: Literal["probes", "ends", "suspected_breach"] = "probes",
) -> CellMeasure:
    judge, own = measure.judge(), measure.own_items()
    return CellMeasure(
        label=label,
        name=measure.name,
        version=measure.version,
        settings=measure.model_dump(mode="json"),
        text=text,
        at=at,
        code=code_digest(type(measure)),
        judge="" if judge is None else judge.identity(),
        items="" if own is None else digest_of(own),
    )


def located(start: Start) -> CellStart:
    """A starting model by content."""
    return CellStart(model=identify(start.ref), parent=start.parent)
