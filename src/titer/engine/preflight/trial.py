"""Trying every method and every measure of a study on the models it starts from: one step, one
reading of a few items, timed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch

from titer.assets.checks import quiet
from titer.data.bundle import ModelBundle
from titer.engine.estimate import Timed, TimedReading, measure_key, method_key
from titer.engine.meter import Meter
from titer.engine.preflight.finding import Finding, cause_of, error, notice
from titer.engine.prober import BoundMeasure
from titer.engine.randomness import seeded
from titer.engine.work import CellWork
from titer.errors import AssetError, TiterError
from titer.measures.measure import scored, transcripts_of
from titer.methods.anatomy import expert_weights
from titer.methods.method import Method, StepLog
from titer.study.cell import Planned, Start
from titer.study.reference import ModelRef

FEW = 4
"""Items of a reading."""


class Bench(Protocol):
    """Brings what a cell needs. One starting model is at hand at a time."""

    device: torch.device

    def open(self, ref: ModelRef) -> None:
        """Switch to this starting model and release the previous one."""

    def work(self, planned: Planned) -> CellWork:
        """The cell in hand, its model a fresh copy. Raises AssetError if the model cannot be
        used.
        """

    def give_back(self) -> None:
        """The cell is done."""


@dataclass
class Tried:
    """Results of the trials of one starting model."""

    findings: list[Finding] = field(default_factory=list)
    methods: dict[str, Timed] = field(default_factory=dict)
    readings: dict[str, TimedReading] = field(default_factory=dict)
    tried: list[str] = field(default_factory=list)


def rooted(planned: Planned) -> Planned:
    """The cell on the model its own was made from: what a defense will make does not exist yet, but
    has the same parts."""
    models = {name: Start(ref=start.ref) for name, start in planned.models.items()}
    return planned.model_copy(
        update={
            "start": Start(ref=planned.start.ref),
            "models": models if planned.cell.method else {},
        }
    )


def called(planned: Planned) -> str:
    """What a cell's method is called in findings."""
    cell, role = planned.cell, planned.roles[0]
    name = cell.method.name if cell.method else "no method"
    label = role.attack or role.task
    if label and label != name:
        name = f"{name} ({label})"
    return f"{name} inside the service {cell.host.method.name}" if cell.host else name


# -- with weights ---------------------------------------------------------------------------------


def try_out(
    ref: ModelRef, cells: Sequence[Planned], bench: Bench, say: Callable[[str], None]
) -> Tried:
    """Take steps and readings on one starting model. Raises AssetError if it cannot be loaded."""
    found, unread = Tried(), set[str]()
    if any(p.facts is not None and p.facts.adapter for p in cells):
        import peft  # noqa: F401  # it takes seconds, once per worker: no part of a method's setup
    bench.open(ref)
    with _silent():
        for planned in cells:
            new = planned.cell.method is not None and method_key(planned) not in found.methods
            keys = {measure_key(m) for m in planned.cell.measures}
            if new or keys - found.readings.keys() - unread:
                say(f"{called(planned)} on {ref}" if new else f"measures on {ref}")
                _one(ref, rooted(planned), bench, found, unread, steps=new)
    return found


def _one(
    ref: ModelRef, planned: Planned, bench: Bench, found: Tried, unread: set[str], *, steps: bool
) -> None:
    work = bench.work(planned)
    try:
        for bound in work.measures:
            key = measure_key(bound.spec)
            if key in found.readings or key in unread:
                continue
            problem = _read(ref, bound, work, found)
            if problem:
                unread.add(key)
                found.findings.append(problem)
            else:
                found.tried.append(bound.measure.name)
        if steps:
            # Also if it fails: it would fail again in the next cell.
            found.methods[method_key(planned)] = Timed(0.0, 0.0, None)
            found.tried.append(called(planned))
            _steps(ref, planned, work, found, unread)
            if work.method is not None and work.method.rehearsal() is not work.method:
                _rehearse(ref, planned, work.method.rehearsal(), bench, found)
    finally:
        bench.give_back()


def _read(ref: ModelRef, bound: BoundMeasure, work: CellWork, found: Tried) -> Finding | None:
    """Read a few items of the unchanged model; returns what is wrong, if anything."""
    name, few, meter = bound.measure.name, bound.examples[:FEW], Meter()
    try:
        with meter.charging("search"):
            value = _value(bound, work.bundle)
    except (Exception, SystemExit) as problem:
        return _failed(ref, name, f"{name} cannot be read on {ref}", "a reading", problem)
    cost = meter.cost()
    timed = TimedReading(len(few), cost.seconds, cost.flops)
    found.readings[measure_key(bound.spec)] = timed
    if value is None:
        return error(
            ref,
            name,
            f"{name} gets no finite numbers from {ref}",
            "weights that give finite logits",
        )
    return None


def _value(bound: BoundMeasure, bundle: ModelBundle) -> float | None:
    """A reading of a few items; what a judge would say of them is not asked here."""
    transcripts = transcripts_of(bound.measure, bundle, bound.examples[:FEW])
    if bound.measure.judge() is not None:
        return 0.0
    return scored(bound.measure, transcripts, bound.spec.label).value


FITTING = "a method, settings and a model that fit one another"


def _steps(ref: ModelRef, planned: Planned, work: CellWork, found: Tried, unread: set[str]) -> None:
    name, meter = called(planned), Meter(exact=work.exact_flops)
    doing = f"{name} cannot be run on {ref}"
    try:
        _encode(work)
        with seeded(planned.cell.seed, work.bundle.device):
            with meter.charging("setup"):
                run = work.begin()
            setup = meter.cost()
            with meter.charging("step"):
                log = run.step()
            first, later = meter.cost(), None
            found.findings += _of_step(ref, name, log)
            if log is not None:  # a second one: the first also makes what an optimizer keeps
                with meter.charging("step"):
                    later = run.step()
            total = meter.cost()
            found.methods[method_key(planned)] = Timed(
                setup=setup.seconds,
                first=first.seconds - setup.seconds,
                later=None if later is None else total.seconds - first.seconds,
                setup_flops=setup.flops,
                flops=total.flops - first.flops,
            )
            bundle = run.model()
            if planned.facts is not None and planned.facts.adapter:
                found.findings += _unadapted(ref, name, bundle.model)
            for bound in work.measures:
                if measure_key(bound.spec) not in unread:
                    doing = f"after {name}, {bound.measure.name} cannot be read on {ref}"
                    _value(bound, bundle)
    except (Exception, SystemExit) as problem:
        found.findings.append(_failed(ref, name, doing, FITTING, problem))


REHEARSED = 16
"""Steps of a rehearsal: more phases than any method has."""


def _rehearse(ref: ModelRef, planned: Planned, method: Method, bench: Bench, found: Tried) -> None:
    """Try what a method of several phases does after its first steps."""
    work = replace(bench.work(planned), method=method)
    try:
        with seeded(planned.cell.seed, work.bundle.device):
            run = work.begin()
            for _ in range(REHEARSED):
                if run.step() is None:
                    break
    except (Exception, SystemExit) as problem:
        name = called(planned)
        found.findings.append(
            _failed(ref, name, f"{name} cannot be run on {ref}", FITTING, problem)
        )


def _encode(work: CellWork) -> None:
    """Text is encoded once for all cells of a worker, so it is no part of a method's setup."""
    bundle = work.bundle
    for example in (e for examples in work.texts.values() for e in examples):
        for answer in (example.response, example.refusal):
            if answer is not None:
                bundle.encode(example, answer, bundle.max_length)


def _of_step(ref: ModelRef, name: str, log: StepLog | None) -> Iterator[Finding]:
    if log is None:
        return
    numbers = [v for v in (log.loss, log.grad_norm) if v is not None]
    if not all(map(_finite, numbers)):
        yield error(
            ref,
            name,
            f"the first step of {name} on {ref} gives a loss or gradient that is not finite",
            "finite numbers: another precision, or other text",
        )
    elif log.grad_norm == 0.0:
        yield error(
            ref,
            name,
            f"the first step of {name} on {ref} has a gradient of exactly zero",
            "a method that trains something",
        )


def _finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")


def _unadapted(ref: ModelRef, name: str, model: Any) -> Iterator[Finding]:
    """Experts without an adapter: most of a mixture's weights are then out of an attack's reach."""
    stacks = expert_weights(model)
    homes = {stack.rpartition(".")[0] for stack in stacks}
    adapters = [n for n, p in model.named_parameters() if p.requires_grad and "lora_" in n]
    bare = [h for h in homes if not any(f"{h}." in n for n in adapters)]
    if adapters and bare:
        share = sum(p.numel() for p in stacks.values()) / sum(
            p.numel() for n, p in model.named_parameters() if "lora_" not in n
        )
        yield notice(
            ref,
            name,
            f"{name} puts no adapter on the experts of {ref}, which hold {share:.0%} of its "
            "weights",
            "full_sft beside it in the battery",
        )


def _failed(
    ref: ModelRef, about: str, sentence: str, expected: str, problem: BaseException
) -> Finding:
    if isinstance(problem, (MemoryError, torch.OutOfMemoryError)):
        expected = "a smaller batch_size, max_length or eval_batch, or more memory"
        return error(ref, about, f"{sentence}, because memory ran out", expected)
    if not isinstance(problem, TiterError):
        return error(ref, about, f"{sentence} ({cause_of(problem)})", expected)
    why = problem.problem
    if problem.value is not None and str(problem.value) not in why:
        why += f": {problem.value}"
    return error(ref, about, f"{sentence} ({why})", problem.expected or expected)


@contextmanager
def _silent() -> Iterator[None]:
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# -- without weights ------------------------------------------------------------------------------


def try_to_begin(ref: ModelRef, cells: Sequence[Planned], sketch: Bench) -> list[Finding]:
    """Let every method begin on a model without numbers: what cannot find its way in the
    architecture says so here. Whatever needs numbers to begin is passed over."""
    found: list[Finding] = []
    seen: set[str] = set()
    sketch.open(ref)
    with _silent():
        for planned in cells:
            key = method_key(planned)
            if planned.cell.method is None or key in seen:
                continue
            seen.add(key)
            try:
                with seeded(planned.cell.seed, torch.device("cpu")):
                    sketch.work(rooted(planned)).begin()
            except AssetError:
                pass  # a further model; told where it is looked for
            except (TiterError, ValueError) as problem:
                if "meta" not in str(problem):
                    name = called(planned)
                    sentence = f"{name} cannot be run on {ref}"
                    found.append(_failed(ref, name, sentence, FITTING, problem))
            except Exception:  # it needs numbers
                pass
            finally:
                sketch.give_back()
    return found
