"""What `titer check` tries methods and measures on: one model, with or without weights."""

from __future__ import annotations

import copy
import gc
from pathlib import Path

import torch

from titer.assets.models import LoadedModel, load_model
from titer.data.pools import Pools
from titer.engine.preflight.outline import outline
from titer.engine.work import CellWork
from titer.errors import AssetError
from titer.records.store import RunStore
from titer.runners.broker import Broker
from titer.runners.cell_runner import CellRunner, give_back_memory
from titer.study.cell import Planned, Start
from titer.study.reference import ModelRef
from titer.study.spec import Runtime

KEPT_BYTES = 4e9
"""A starting model is kept for all trials and copied; a larger one is loaded again for each."""


class TryOut:
    """Brings cells as a run does, but keeps no more than one starting model.

    device: where to; torch's meta device for models without numbers.
    """

    def __init__(
        self, scratch: str | Path, pools: Pools, runtime: Runtime, device: torch.device
    ) -> None:
        self.device = device
        store = RunStore(scratch)
        self._runner = CellRunner(store, pools, runtime, device)
        self._shelf = _Shelf(store, device)
        self._runner.broker = self._shelf

    def open(self, ref: ModelRef) -> None:
        self._shelf.turn_to(ref)

    def work(self, planned: Planned) -> CellWork:
        return self._runner.work(planned)

    def give_back(self) -> None:
        self._shelf.give_back()
        give_back_memory()


class _Shelf(Broker):
    """One starting model, and for the length of a cell what its method reads beside it."""

    def __init__(self, store: RunStore, device: torch.device) -> None:
        super().__init__(store, device)
        self._ref: ModelRef | None = None
        self._own: LoadedModel | None = None
        self._read: dict[ModelRef, LoadedModel] = {}

    def turn_to(self, ref: ModelRef) -> None:
        self._ref, self._own = ref, None
        self._read.clear()
        gc.collect()

    def copy(self, start: Start, identity: str | None = None) -> LoadedModel:
        loaded = self._own or self._load(start.ref)
        if start.ref == self._ref and _size(loaded.model) <= KEPT_BYTES:
            self._own = loaded
            loaded = _with(loaded, copy.deepcopy(loaded.model))
        loaded.model.to(self.device)
        return loaded

    def frozen(self, start: Start, identity: str | None = None) -> LoadedModel:
        if start.ref not in self._read:
            if start.ref == self._ref:
                loaded = self.copy(start)
            else:
                loaded = self._load(start.ref)
                loaded.model.to(self.device)
            self._read[start.ref] = loaded
        return self._read[start.ref]

    def give_back(self) -> None:
        self._read.clear()

    def _load(self, ref: ModelRef) -> LoadedModel:
        loaded = _skeleton(ref) if self.device.type == "meta" else load_model(ref)
        loaded.model.eval().requires_grad_(False)
        return loaded


def _size(model: torch.nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


def _with(loaded: LoadedModel, model: torch.nn.Module) -> LoadedModel:
    return LoadedModel(model, loaded.tokenizer, loaded.provenance, loaded.neutralised)


def _skeleton(ref: ModelRef) -> LoadedModel:
    known = outline(ref)
    if known is None:
        raise AssetError(
            "nothing is known of a model",
            field="model",
            value=str(ref),
            expected="its configuration on this machine",
        )
    provenance = {"sha256": "", "parameters": str(known.parameters)}
    return LoadedModel(known.skeleton, known.tokenizer, provenance)
