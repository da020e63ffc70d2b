"""Models on hand: the ones cells start from, and the ones they only read."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import torch

from titer.assets.models import LoadedModel, load_model
from titer.engine.fingerprint import model_fingerprint, tokenizer_fingerprint
from titer.errors import AssetError
from titer.records.store import RunStore
from titer.study.cell import Start
from titer.study.reference import ModelRef

PRISTINE_BYTES = 5e8
"""Memory that models kept between cells may take (on the host). A larger model is loaded anew for
every cell: seconds for a quarter of the memory.
"""


class Broker:
    """Loads models by `Start`, and keeps the last few: many cells start from the same one."""

    def __init__(self, store: RunStore, device: torch.device) -> None:
        self.store, self.device = store, device
        self._kept: OrderedDict[Start, LoadedModel] = OrderedDict()
        self._borrowed: dict[Start, LoadedModel] = {}
        self._seals: dict[Start, str] = {}
        self._tokenizers: dict[Start, tuple[Any, str]] = {}

    def copy(self, start: Start) -> LoadedModel:
        """A model on the device, to be changed at will. Raises AssetError, UnknownNameError."""
        loaded = self._found(start)
        if start in self._kept or start in self._borrowed:
            model = copy.deepcopy(loaded.model)
            loaded = LoadedModel(model, loaded.tokenizer, loaded.provenance, loaded.neutralised)
        loaded.model.to(self.device)
        self._lend_tokenizer(start, loaded)
        return loaded

    def frozen(self, start: Start) -> LoadedModel:
        """A model on the device that is only read. It is shared: never change it."""
        if start in self._borrowed:
            return self._borrowed[start]
        loaded = self._found(start)
        if start in self._kept and self.device.type != "cpu":
            model = copy.deepcopy(loaded.model)
            loaded = LoadedModel(model, loaded.tokenizer, loaded.provenance, loaded.neutralised)
        loaded.model.to(self.device)
        self._borrowed[start] = loaded
        self._seals[start] = model_fingerprint(loaded.model)
        self._lend_tokenizer(start, loaded)
        return loaded

    def changed(self) -> list[str]:
        """What the cell changed although it is shared with other cells, in words."""
        models = [
            f"the model {_named(start)}"
            for start, loaded in self._borrowed.items()
            if model_fingerprint(loaded.model) != self._seals[start]
        ]
        tokenizers = [
            f"the tokenizer of {_named(start)}"
            for start, (tokenizer, seal) in self._tokenizers.items()
            if tokenizer_fingerprint(tokenizer) != seal
        ]
        return models + tokenizers

    def give_back(self) -> None:
        """The cell is done: forget what it borrowed. What it changed is loaded again."""
        if self.changed():
            self._kept.clear()
        self._borrowed.clear()
        self._seals.clear()
        self._tokenizers.clear()

    def _lend_tokenizer(self, start: Start, loaded: LoadedModel) -> None:
        tokenizer = loaded.tokenizer
        self._tokenizers.setdefault(start, (tokenizer, tokenizer_fingerprint(tokenizer)))

    def _found(self, start: Start) -> LoadedModel:
        if start in self._borrowed:
            return self._borrowed[start]
        if start not in self._kept:
            loaded = load_model(start.ref) if start.parent is None else self._made(start.parent)
            loaded.model.eval().requires_grad_(False)
            size = sum(p.numel() * p.element_size() for p in loaded.model.parameters())
            while self._kept and size * (len(self._kept) + 1) > PRISTINE_BYTES:
                self._kept.popitem(last=False)
            if size > PRISTINE_BYTES:
                return loaded
            self._kept[start] = loaded
        self._kept.move_to_end(start)
        return self._kept[start]

    def _made(self, parent: str) -> LoadedModel:
        """The model a building cell of this run made, if it is still what its record says."""
        made, record = self.store.models / parent, self.store.record(parent)
        if record is None or record.artifact is None or not made.exists():
            raise AssetError(
                "the model a cell starts from is missing",
                field="parent",
                value=parent,
                expected="weights made by an earlier cell of this run",
                remedy="give the `titer run` command again; they are made anew",
            )
        loaded = load_model(ModelRef(source="path", name=str(made)))
        if (found := loaded.provenance["sha256"]) != record.artifact.sha256:
            raise AssetError(
                "the weights made by an earlier cell have changed",
                field=str(made),
                value=found,
                expected=record.artifact.sha256,
                remedy=f"delete {made.name} under models/ and give the `titer run` command again",
            )
        return loaded


def _named(start: Start) -> str:
    return start.parent or str(start.ref)
