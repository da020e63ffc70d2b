"""Cells, measures and methods made by hand, so that `run_cell` is tested without a plan."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from pydantic import PrivateAttr

from helpers.running import numbers_of as numbers
from titer.data.bundle import ModelBundle
from titer.data.examples import Example
from titer.engine.prober import BoundMeasure
from titer.engine.run_cell import CellResult, run_cell
from titer.engine.work import CellWork
from titer.measures.capability import ResponseLikelihood
from titer.measures.exact_answer import ExactAnswer
from titer.measures.measure import Measure, Transcript
from titer.measures.requests import Own
from titer.methods.attacks.chain import Chain
from titer.methods.attacks.full_sft import FullSFT
from titer.methods.attacks.lora_sft import LoraSFT
from titer.methods.attacks.weight_noise import WeightNoise
from titer.methods.defenses.adversarial_loss import AdversarialLoss
from titer.methods.defenses.sft_refusal import SFTRefusal
from titer.methods.losses import response_ce
from titer.methods.method import Attack, Given, Method, Models, Run, ServiceDefense, StepLog
from titer.methods.runs import EditRun, TrainingRun
from titer.records.record import CellRecord, MeasureFacts
from titer.records.record_validation import contradiction
from titer.study.cell import Cell, CellMeasure, CellMethod, PartUse

# LoRA with much dropout, warm-up, and a chain that replaces its model on the way: global
# randomness, the learning rate and the weights a part began with must survive an interruption.
METHODS = {
    "full_sft": FullSFT(lr=1e-3, batch_size=8, weight_decay=0.01, warmup_steps=3),
    "lora_sft": LoraSFT(lr=3e-3, batch_size=8, rank=4, dropout=0.5),
    "weight_noise": WeightNoise(scale=0.02),
    "sft_refusal": SFTRefusal(lr=1e-3, batch_size=8),
    "adversarial_loss": AdversarialLoss(lr=1e-3, batch_size=8, form="capped", retain=1.0),
    "chain": Chain(
        parts=(
            {"attack": "lora_sft", "settings": {"lr": 3e-3, "batch_size": 8}, "steps": 2},
            {"attack": "full_sft", "settings": {"lr": 1e-3, "batch_size": 8}},
        )
    ),
}


def work(
    method: Method | None,
    bundle: ModelBundle,
    texts: Mapping[str, Sequence[Example]] | None = None,
    measures: Sequence[BoundMeasure] = (),
    *,
    steps: int = 6,
    probes: Sequence[int] = (),
    seed: int = 1,
    models: Mapping[str, ModelBundle] | None = None,
    host: ServiceDefense | None = None,
    host_texts: Mapping[str, Sequence[Example]] | None = None,
    **fields: Any,
) -> CellWork:
    """A cell that runs a method on a model, with all it needs in hand. fields: of the cell."""
    cell = Cell(
        model="tiny",
        method=_named(method),
        steps=steps,
        probes=tuple(probes),
        seed=seed,
        max_length=32,
        measures=tuple(m.spec for m in measures),
        **fields,
    )
    return CellWork(
        cell=cell,
        bundle=bundle,
        method=method,
        texts=texts or {},
        models=Models({n: (lambda held=held: held) for n, held in (models or {}).items()}),
        measures=measures,
        host=host,
        host_texts=host_texts or {},
    )


def _named(method: Method | None) -> CellMethod | None:
    return method and CellMethod(
        kind=method.kind,
        name=method.name,
        version=method.version,
        settings=method.model_dump(mode="json"),
    )


def run(work: CellWork, **options: Any) -> CellResult:
    """`run_cell`, with a record that can be believed and survives the disk."""
    result = run_cell(work, **options)
    record = result.record
    assert contradiction(record) == ""
    assert numbers(CellRecord.model_validate_json(record.model_dump_json())) == numbers(record)
    return result


def bound(
    measure: Measure,
    examples: Sequence[Example],
    label: str = "harm",
    at: str = "probes",
    items: str = "items",
) -> BoundMeasure:
    spec = CellMeasure(
        label=label,
        name=measure.name,
        version=measure.version,
        at=at,
        settings=measure.model_dump(mode="json"),
        text=PartUse(part="p/x", content="content"),
    )
    return BoundMeasure(spec=spec, measure=measure, examples=examples, items=items)


def two_measures(harm: Sequence[Example]) -> list[BoundMeasure]:
    """Exact answers, and a likelihood that notices the slightest change of a weight."""
    return [bound(ExactAnswer(reads="harm"), harm), bound(ResponseLikelihood(), harm, "likelihood")]


def weights(result: CellResult) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in result.bundle.model.named_parameters()}


def same_weights(first: CellResult, second: CellResult) -> bool:
    a, b = weights(first), weights(second)
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def readings(record: CellRecord, step: int):
    return {r.label: r for r in record.probe(step).readings}


# -- measures -------------------------------------------------------------------------------------


class Scripted(Measure):
    """Reads `right[k]` of its examples as right at the k-th look, whatever the model; counts how
    often it looked.
    """

    name = "scripted"
    right: tuple[int, ...] = (0,)
    _looks: int = PrivateAttr(default=0)

    @property
    def looks(self) -> int:
        return self._looks

    def facts(self) -> MeasureFacts:
        return self.declare(higher="harmful", harm_construct="exact")

    def request(self) -> Own:
        return Own()

    def collect(self, bundle: ModelBundle, examples: Sequence[Example]) -> list[Transcript]:
        k = self.right[min(self._looks, len(self.right) - 1)]
        self._looks += 1
        return [{"key": e.key, "right": i < k} for i, e in enumerate(examples)]

    def score(self, transcripts: Sequence[Transcript]) -> list[float]:
        return [float(t["right"]) for t in transcripts]


class Careless(Scripted):
    """A measure that seeds every generator, draws random numbers and leaves the model in training
    mode, as a careless plug-in might.
    """

    name = "careless"

    def collect(self, bundle: ModelBundle, examples: Sequence[Example]) -> list[Transcript]:
        for seed in (torch.manual_seed, random.seed, np.random.seed):
            seed(len(examples))
        torch.rand(100)
        bundle.model.train()
        return super().collect(bundle, examples)


# -- attacks --------------------------------------------------------------------------------------


class Diverging(FullSFT):
    """Its loss, and with it the gradient, is not a number from step `at` on."""

    name = "diverging"
    at: int = 3

    def start(self, given: Given) -> TrainingRun:
        run = super().start(given)
        gradient = run.gradient

        def injected(model: Any, step: int) -> StepLog:
            log = gradient(model, step)
            if step < self.at:
                return log
            for parameter in model.parameters():
                parameter.grad.mul_(math.nan)
            return replace(log, loss=math.nan)

        run.gradient = injected
        return run


class ThinksFirst(FullSFT):
    """Does the work of `passes` training steps before the first one, and takes none of it along."""

    name = "thinks_first"
    passes: int = 1

    def start(self, given: Given) -> TrainingRun:
        run = super().start(given)
        batches = given.text.stream(
            "response", of=("harmful", "harmless"), batch_size=self.batch_size, seed=given.seed
        )
        for step in range(self.passes):
            response_ce(given.model.model, batches.one(step)).backward()
        given.model.model.zero_grad(set_to_none=True)
        return run


class Around(FullSFT):
    """Calls functions with the model before every step."""

    name = "around"
    _before: list[Callable[[Any], Any]] = PrivateAttr(default_factory=list)

    def start(self, given: Given) -> Run:
        run = super().start(given)
        step, bundle = run.step, run.bundle

        def both() -> StepLog:
            for before in self._before:
                before(bundle.model)
            return step()

        run.step = both
        return run

    def calling(self, before: Callable[[Any], Any]) -> Around:
        self._before.append(before)
        return self


class Edits(Attack):
    """Edits nothing, `edits` times (None: for ever); logs `step` at every third step."""

    name = "edits"
    reference = "test"
    trains = False
    starts_as_parent = True
    edits: int | None = None

    def start(self, given: Given) -> EditRun:
        def edit(model: Any, step: int) -> dict[str, float]:
            return {"third": float(step)} if step % 3 == 0 else {}

        return EditRun(given.model, edit, edits=self.edits)


class Replaced(Attack):
    """At step `at` puts another model object in the place of its own, with every weight zero; notes
    what the engine asks for.
    """

    name = "replaced"
    reference = "test"
    trains = False
    starts_as_parent = True
    at: int = 2
    _events: list[str] = PrivateAttr(default_factory=list)

    @property
    def events(self) -> list[str]:
        return self._events

    def start(self, given: Given) -> Run:
        return _Replacing(self, given.model)


class _Replacing:
    def __init__(self, settings: Replaced, bundle: ModelBundle) -> None:
        self.settings, self.bundle, self.taken = settings, bundle, 0

    def model(self) -> ModelBundle:
        self.settings.events.append("model")
        return self.bundle

    def step(self) -> StepLog:
        self.settings.events.append("step")
        self.taken += 1
        if self.taken == self.settings.at:
            zeroed = copy.deepcopy(self.bundle.model)
            with torch.no_grad():
                for parameter in zeroed.parameters():
                    parameter.zero_()
            self.bundle = self.bundle.having(model=zeroed)
        return StepLog()

    def state_dict(self) -> dict[str, Any]:
        return {"taken": self.taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise NotImplementedError


class Borrows(Attack):
    """Asks for further models when it starts and reads them; `wanted` names them, `asks` is what it
    really asks for.
    """

    name = "borrows"
    reference = "test"
    trains = False
    starts_as_parent = True
    of: tuple[str, ...] = ("control",)
    asks: tuple[str, ...] | None = None

    def wanted(self) -> tuple[str, ...]:
        return self.of

    def start(self, given: Given) -> EditRun:
        lent = [given.models.frozen(name) for name in (self.of if self.asks is None else self.asks)]
        sizes = {
            f"size_{i}": float(sum(p.detach().abs().sum() for p in b.model.parameters()))
            for i, b in enumerate(lent)
        }
        return EditRun(given.model, lambda model, step: sizes, edits=None)


# -- services -------------------------------------------------------------------------------------


class Dampens(ServiceDefense):
    """Hands out the trained model with every weight multiplied by `by`; notes at which weights it
    was asked to.
    """

    name = "dampens"
    reference = "test"
    by: float = 0.0
    _released: int = PrivateAttr(default=0)

    @property
    def released(self) -> int:
        return self._released

    def release(self, model: ModelBundle, given: Given) -> ModelBundle:
        self._released += 1
        with torch.no_grad():
            for parameter in model.model.parameters():
                parameter.mul_(self.by)
        return model
