"""Cells, measures and methods made by hand, so that `drive` is tested without planning anything."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from pydantic import PrivateAttr

from titer.data.bundle import ModelBundle
from titer.data.examples import Example
from titer.engine.run_cell import BoundMeasure, CellResult, run_cell
from titer.measures.capability import ResponseLikelihood
from titer.measures.exact_answer import ExactAnswer
from titer.measures.measure import Measure, Transcript
from titer.methods.attacks.full_sft import FullSFT
from titer.methods.attacks.lora_sft import LoraSFT
from titer.methods.attacks.weight_noise import WeightNoise
from titer.methods.defenses.adversarial_loss import AdversarialLoss
from titer.methods.defenses.sft_refusal import SFTRefusal
from titer.records.model import CellRecord, MeasureFacts
from titer.study.cell import Cell, CellMeasure, PartUse

# LoRA with much dropout and warm-up: global randomness and the learning rate must survive an
# interruption.
METHODS = {
    "full_sft": FullSFT(lr=1e-3, batch_size=8, weight_decay=0.01, warmup_steps=3),
    "lora_sft": LoraSFT(lr=3e-3, batch_size=8, rank=4, dropout=0.5),
    "weight_noise": WeightNoise(scale=0.02),
    "sft_refusal": SFTRefusal(lr=1e-3, batch_size=8),
    "adversarial_loss": AdversarialLoss(lr=1e-3, batch_size=8, form="capped", retain=1.0),
}
WHEN = {
    "seconds",
    "started",
    "finished",
    "environment",
    "peak_memory_bytes",
    "probe_seconds",
    "resumed",
}


def cell(*, steps: int = 6, probes: Sequence[int] = (), seed: int = 1, **fields) -> Cell:
    return Cell(model="tiny", steps=steps, probes=tuple(probes), seed=seed, max_length=32, **fields)


def bound(
    measure: Measure,
    examples: Sequence[Example],
    label: str = "harm",
    at: str = "probes",
    items="items",
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
    return {n: p.detach().clone() for n, p in result.model.named_parameters()}


def same_weights(first: CellResult, second: CellResult) -> bool:
    a, b = weights(first), weights(second)
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def numbers(record: CellRecord) -> dict:
    """A record as it lies on the disk, without what depends on when and where it was made."""

    def without(value):
        if isinstance(value, dict):
            return {k: without(v) for k, v in value.items() if k not in WHEN}
        return [without(v) for v in value] if isinstance(value, list) else value

    return without(record.model_dump(mode="json"))


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

    def collect(self, bundle: ModelBundle, examples: Sequence[Example]) -> list[Transcript]:
        k = self.right[min(self._looks, len(self.right) - 1)]
        self._looks += 1
        return [{"key": e.key, "right": i < k} for i, e in enumerate(examples)]

    def score(self, transcripts: Sequence[Transcript]) -> list[float]:
        return [float(t["right"]) for t in transcripts]


class Careless(Scripted):
    """A measure that draws random numbers and asks for gradients, as a careless plug-in might."""

    name = "careless"

    def collect(self, bundle: ModelBundle, examples: Sequence[Example]) -> list[Transcript]:
        torch.manual_seed(len(examples))
        torch.rand(100)
        bundle.model.train()
        return super().collect(bundle, examples)


class Diverging(FullSFT):
    """Its loss is not a number from step `at` on."""

    name = "diverging"
    at: int = 3

    def start(self, bundle, data, *, seed, horizon):
        run = super().start(bundle, data, seed=seed, horizon=horizon)
        objective = run.objective

        def injected(model, step):
            loss, other = objective(model, step)
            return loss * (math.nan if step >= self.at else 1.0), other

        run.objective = injected
        return run


__all__ = [
    "METHODS",
    "Careless",
    "Diverging",
    "Scripted",
    "bound",
    "cell",
    "numbers",
    "run_cell",
    "same_weights",
    "two_measures",
]
