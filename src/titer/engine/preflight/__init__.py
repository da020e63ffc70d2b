"""Finds, before a run, what would fail in the middle of it.

Every distinct starting model is loaded once, one at a time, and each method takes a step on it and
each measure a reading. What a defense will make does not exist yet: it has the same parts as the
model it is made from, which stands for it. Models whose weights are not on this machine are looked
at as far as their configuration and tokenizer go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch

from titer.data.pools import Pools
from titer.engine.estimate import Timed, TimedReading, Timings
from titer.engine.preflight.finding import Finding, error, notice
from titer.engine.preflight.judges import judge_findings
from titer.engine.preflight.outline import is_local, outline
from titer.engine.preflight.text import text_findings
from titer.engine.preflight.trial import Bench, called, try_out, try_to_begin
from titer.errors import AssetError
from titer.study.cell import CONTROL_MODEL, PARENT, Plan, Planned
from titer.study.reference import ModelRef
from titer.study.spec import Study

__all__ = ["Bench", "Finding", "Preflight", "outline", "preflight"]

Weights = Literal["local", "all", "none"]
"""Which models are loaded: those on this machine, all (they may be fetched), or none."""


@dataclass(frozen=True)
class Preflight:
    """findings: errors first. unchecked: what was not looked at, as sentences. tried: methods and
    measures that were tried, by model. parameters: of every model, None where that is not known.
    """

    findings: tuple[Finding, ...]
    unchecked: tuple[str, ...]
    tried: dict[str, list[str]]
    parameters: dict[ModelRef, int | None]
    timings: Timings


def preflight(
    study: Study,
    plan: Plan,
    pools: Pools,
    *,
    weights: Weights,
    bench: Bench,
    sketch: Bench,
    say: Callable[[str], None] = lambda what: None,
) -> Preflight:
    """Check everything a study will do.

    plan: the complete one (`estimate.complete_plan`). bench: brings cells on real models; sketch:
    on models without numbers. Raises AssetError if a starting model cannot be loaded.
    """
    look = _Look(study, plan, pools, weights, bench, sketch, say)
    with _threads(study.runtime.threads):
        for ref, cells in look.starting.items():
            look.at(ref, cells)
    look.at_further_models()
    if weights == "none":
        look.unchecked.append("no preflight was asked for, so no step, reading or judge was tried")
    else:
        look.at_judges()
    return look.result()


class _Look:
    def __init__(
        self,
        study: Study,
        plan: Plan,
        pools: Pools,
        weights: Weights,
        bench: Bench,
        sketch: Bench,
        say: Callable[[str], None],
    ) -> None:
        self.study, self.plan, self.pools, self.weights = study, plan, pools, weights
        self.bench, self.sketch, self.say = bench, sketch, say
        self.starting: dict[ModelRef, list[Planned]] = {}
        for planned in plan.cells:
            self.starting.setdefault(planned.start.ref, []).append(planned)
        self.findings: list[Finding] = []
        self.unchecked: list[str] = []
        self.tried: dict[str, list[str]] = {}
        self.parameters: dict[ModelRef, int | None] = {}
        self.methods: dict[tuple[str, str], Timed] = {}
        self.readings: dict[tuple[str, str], TimedReading] = {}
        self.judges: dict[str, float] = {}

    def at(self, ref: ModelRef, cells: Sequence[Planned]) -> None:
        """A starting model, with all cells that start from it or from what is made of it."""
        model, loaded = str(ref), None
        if self.weights == "all" or (self.weights == "local" and is_local(ref)):
            loaded = try_out(ref, cells, self.bench, self.say)
            self.methods |= {(model, key): timed for key, timed in loaded.methods.items()}
            self.readings |= {(model, key): read for key, read in loaded.readings.items()}
            self.tried[model] = list(dict.fromkeys(loaded.tried))
        known = outline(ref)
        self.parameters[ref] = known.parameters if known else None
        if known is None:
            self.unchecked.append(
                f"nothing is known of {ref}: neither its weights nor its configuration are here"
            )
            return
        self.say(f"text for {ref}")
        of_text = text_findings(known, cells, self.pools)
        self.findings += of_text
        if loaded is not None:
            # A problem with the text of a measure would be reported by its reading too; report it
            # once.
            said = {f.about for f in of_text if f.severity == "error"}
            self.findings += [f for f in loaded.findings if f.about not in said]
            return
        self.findings += try_to_begin(ref, cells, self.sketch)
        if self.weights != "none":
            self.unchecked.append(
                f"no step and no reading was tried on {ref}, whose weights are not here"
            )

    def at_further_models(self) -> None:
        wanted: dict[ModelRef, tuple[str, str]] = {}
        for planned in self.plan.cells:
            for name, start in planned.models.items():
                if name not in (PARENT, CONTROL_MODEL):
                    wanted.setdefault(start.ref, (name, called(planned)))
        for ref, (name, method) in wanted.items():
            if ref in self.parameters:
                continue
            try:
                known = outline(ref)
            except AssetError as problem:
                known = None
                self.findings.append(
                    error(
                        ref,
                        method,
                        f"the further model {name} of {method} cannot be read "
                        f"({problem.problem}: {problem.value})",
                        problem.expected or "a causal language model",
                    )
                )
            else:
                if known is None:
                    self.unchecked.append(
                        f"the further model {name} of {method}, {ref}, is not here"
                    )
            self.parameters[ref] = known.parameters if known else None
        used = {name for p in self.plan.cells for name in p.models}
        for name in self.study.models.keys() - used:
            self.findings.append(
                notice(
                    self.study.models[name],
                    name,
                    f"no method of the study asks for the further model {name}",
                    "a method that wants it, or no such entry under `models`",
                )
            )

    def at_judges(self) -> None:
        self.say("judges")
        found, self.judges = judge_findings(self.plan.cells)
        self.findings += found

    def result(self) -> Preflight:
        findings = dict.fromkeys(sorted(self.findings, key=lambda f: f.severity != "error"))
        return Preflight(
            findings=tuple(findings),
            unchecked=tuple(self.unchecked),
            tried=self.tried,
            parameters=self.parameters,
            timings=Timings(self.methods, self.readings, self.judges),
        )


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """As many threads as a worker has, so that times are comparable."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
