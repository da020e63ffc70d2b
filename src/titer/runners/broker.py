"""Cache of loaded models: those cells start from, and those they only read."""

from __future__ import annotations

import copy
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from titer.assets.identity import identify
from titer.assets.manifest import manifest
from titer.assets.models import LoadedModel, load_model
from titer.engine.fingerprint import model_fingerprint, tokenizer_fingerprint
from titer.errors import AssetError
from titer.records.record import Artifact
from titer.records.store import RunStore
from titer.study.cell import Start
from titer.study.reference import ModelRef

PRISTINE_BYTES = 5e8
"""Memory that models kept between cells may take (on the host). A larger model is reloaded for
every cell, which takes seconds and saves three quarters of the memory.
"""


class Broker:
    """Loads models by `Start`, and keeps the last few: many cells start from the same one."""

    def __init__(self, store: RunStore, device: torch.device) -> None:
        self.store, self.device = store, device
        self._kept: OrderedDict[Start, LoadedModel] = OrderedDict()
        self._borrowed: dict[Start, LoadedModel] = {}
        self._identities: dict[Start, str | None] = {}
        self._seals: dict[Start, str] = {}
        self._tokenizers: dict[Start, tuple[Any, str]] = {}

    def copy(self, start: Start, identity: str | None = None) -> LoadedModel:
        """A model on the device, to be changed at will. identity: of the root model, as it was when
        the cell was planned. Raises AssetError (also if the files are not those any more),
        UnknownNameError.
        """
        loaded = self._found(start, identity)
        if start in self._kept or start in self._borrowed:
            model = copy.deepcopy(loaded.model)
            loaded = LoadedModel(model, loaded.tokenizer, loaded.provenance, loaded.neutralised)
        loaded.model.to(self.device)
        self._lend_tokenizer(start, loaded)
        return loaded

    def frozen(self, start: Start, identity: str | None = None) -> LoadedModel:
        """A model on the device that is only read. It is shared: never change it. Raises as
        `copy`.
        """
        if start in self._borrowed:
            return self._borrowed[start]
        loaded = self._found(start, identity)
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
        """Release what the finished cell borrowed. A shared model it changed will be reloaded."""
        if self.changed():
            self._kept.clear()
        self._borrowed.clear()
        self._seals.clear()
        self._tokenizers.clear()

    def _lend_tokenizer(self, start: Start, loaded: LoadedModel) -> None:
        tokenizer = loaded.tokenizer
        self._tokenizers.setdefault(start, (tokenizer, tokenizer_fingerprint(tokenizer)))

    def _found(self, start: Start, identity: str | None) -> LoadedModel:
        if start in self._borrowed:
            return self._borrowed[start]
        if start not in self._kept or self._identities.get(start) != identity:
            self._kept.pop(start, None)
            loaded = (
                _loaded(start.ref, identity) if start.parent is None else self._made(start.parent)
            )
            self._identities[start] = identity
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
        if record is None or record.artifact is None or not is_whole(made, record.artifact):
            raise AssetError(
                "the model a cell starts from is missing or has changed",
                field="parent",
                value=parent,
                expected="the files an earlier cell of this run wrote",
                remedy="give the `titer run` command again; it makes them again",
            )
        return load_model(ModelRef(source="path", name=str(made)))


def is_whole(directory: Path, artifact: Artifact) -> bool:
    """Whether the files of a kept model are those that were written, configuration, tokenizer and
    chat template included.
    """
    try:
        return directory.is_dir() and manifest(directory) == artifact.files
    except AssetError:
        return False


def _loaded(ref: ModelRef, identity: str | None) -> LoadedModel:
    """A root model, if its files are those a cell was planned with: before and after they are read.

    Raises AssetError if they were replaced meanwhile: their results would bear another address.
    """
    _check_identity(ref, identity)
    loaded = load_model(ref)
    _check_identity(ref, identity)
    return loaded


def _check_identity(ref: ModelRef, identity: str | None) -> None:
    if identity is not None and (found := identify(ref)) != identity:
        raise AssetError(
            "the files of a model have changed since the run was planned",
            field="model",
            value=f"{ref} ({found})",
            expected=identity,
            remedy="give the same command again: cells that the change affects are planned again",
        )


def _named(start: Start) -> str:
    return start.parent or str(start.ref)
